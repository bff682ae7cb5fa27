"""Compute how much sand the wind moves over a month, by saltation.

Usage: python3 saltation.py CASE.txt

Sand grains larger than about 0.1 mm travel in low leaps once the wind is strong enough. How
strong follows Bagnold (1941): the friction velocity must exceed

    u*t = A sqrt((rho_s - rho_a) / rho_a  g d)

with A = 0.1. The friction velocity follows from the wind at one height by the law of the wall,
u* = kappa U / ln(z / z0), over a roughness z0 = d / 30 (Bagnold, 1941) unless the case names
another. Water between the grains raises the threshold by 1.8 + 0.6 log10 W, with W the moisture
in percent of mass (Belly, 1964), and a slope changes it by sqrt(cos b + sin b / tan phi)
(Howard, 1977). Above the threshold the transport in kg per metre width and second is

    Bagnold (1941)            q = C sqrt(d / D) rho_a / g  u*^3                     C = 1.8
    Kawamura (1951)           q = C rho_a / g  (u* - u*t) (u* + u*t)^2              C = 2.78
    Lettau and Lettau (1978)  q = C sqrt(d / D) rho_a / g  u*^2 (u* - u*t)          C = 6.7

with the reference grain size D = 0.25 mm. All three grow with the cube of the wind, so an hour
of gusts moves more sand than a steady hour with the same mean. Each hour is therefore sampled
many times: the wind fluctuates about its mean as a first-order autoregressive process with the
given intensity of turbulence, and the transport is averaged over the samples. Everything is
repeated for grains 10 % smaller and larger, under the same gusts, to tell how much the grain
size matters.

Writes CASE.csv (one row per hour) to the current folder and prints a summary. The wind is read
from the file the case names, beside the case. The standard library is all it needs.

Bagnold, R. A. (1941). The Physics of Blown Sand and Desert Dunes. Methuen, London.
Belly, P.-Y. (1964). Sand movement by wind. Technical Memorandum 1, U.S. Army Corps of
Engineers, Coastal Engineering Research Center.
Howard, A. D. (1977). Effect of slope on the threshold of motion and its application to
orientation of wind ripples. Geological Society of America Bulletin 88, 853-856.
Kawamura, R. (1951). Study on sand movement by wind. Reports of the Physical Sciences Research
Institute of Tokyo University 5, 95-112.
Lettau, K. and Lettau, H. (1978). Experimental and micrometeorological field studies of dune
migration. In: Exploring the World's Driest Climate, University of Wisconsin-Madison, 110-147.
"""

import csv
import math
import random
import sys
from pathlib import Path

VON_KARMAN = 0.4
THRESHOLD_COEFFICIENT = 0.1
REFERENCE_GRAIN_M = 0.25e-3
ANGLE_OF_REPOSE = math.radians(33)
#: Time in seconds over which gusts are correlated.
GUST_MEMORY_S = 30.0
#: Grain size of the sensitivity runs, as a factor.
LARGER = 1.1

#: What a case may say: the type of the value and its default; None: it must be said.
KEYS = {
    "wind": (str, None),
    "formula": (str, None),
    "grain_size_mm": (float, None),
    "grain_density": (float, 2650.0),
    "air_density": (float, 1.225),
    "gravity": (float, 9.81),
    "height": (float, 10.0),
    "roughness": (float, 0.0),
    "moisture": (str, "none"),
    "slope_degrees": (float, 0.0),
    "slope_rises_towards": (float, 0.0),
    "turbulence": (float, 0.18),
    "gust_interval": (float, 10.0),
    "members": (int, 6),
    "seed": (int, 1),
}
#: Why a value is refused.
EXPECTED = {
    "formula": "neither bagnold nor kawamura nor lettau",
    "moisture": "neither none nor series",
    "members": "less than 1",
    "turbulence": "not from 0 to below 1",
    "roughness": "not from 0 (a thirtieth of the grain size) to below the height of the wind",
    "slope_degrees": "not from 0 to below 33, the angle of repose",
}
POSITIVE = ("grain_size_mm", "grain_density", "air_density", "gravity", "height", "gust_interval")


class CaseError(Exception):
    """Say in one sentence what is wrong with an input."""


def bagnold(u, threshold, grain):
    """Return the transport over rho_a / g after Bagnold (1941)."""
    return 1.8 * math.sqrt(grain / REFERENCE_GRAIN_M) * u**3


def kawamura(u, threshold, grain):
    """Return the transport over rho_a / g after Kawamura (1951)."""
    return 2.78 * (u - threshold) * (u + threshold) ** 2


def lettau(u, threshold, grain):
    """Return the transport over rho_a / g after Lettau and Lettau (1978)."""
    return 6.7 * math.sqrt(grain / REFERENCE_GRAIN_M) * u * u * (u - threshold)


FORMULAS = {"bagnold": bagnold, "kawamura": kawamura, "lettau": lettau}


def read_case(path):
    """Read ``key = value`` lines; ``#`` begins a comment."""
    case = {key: default for key, (_, default) in KEYS.items()}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or key not in KEYS:
            raise CaseError(f"{path}, line {number}: expected a known KEY = VALUE, got {text!r}")
        try:
            case[key] = KEYS[key][0](value)
        except ValueError:
            raise CaseError(
                f"{path}, line {number}: {key} must be a number, got {value!r}"
            ) from None
    check_case(path, case)
    return case


def check_case(path, case):
    """Refuse values without a physical meaning."""
    for key, value in case.items():
        if value is None:
            raise CaseError(f"{path}: {key} is missing")
        if key in POSITIVE and not 0 < value < math.inf:
            raise CaseError(f"{path}: {key} must be positive, got {value}")
    choices = {
        "formula": case["formula"] in FORMULAS,
        "moisture": case["moisture"] in ("none", "series"),
        "members": case["members"] >= 1,
        "turbulence": 0 <= case["turbulence"] < 1,
        "roughness": 0 <= case["roughness"] < case["height"],
        "slope_degrees": 0 <= case["slope_degrees"] < math.degrees(ANGLE_OF_REPOSE),
    }
    for key, good in choices.items():
        if not good:
            raise CaseError(f"{path}: {key} = {case[key]} is {EXPECTED[key]}")


def read_wind(path):
    """Read the hours of a wind file: time, speed (m/s), direction (degrees), moisture (percent)."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(line for line in stream if not line.startswith("#")))
    try:
        hours = [
            (row["time"], float(row["speed"]), float(row["direction"]), float(row["moisture"]))
            for row in rows
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise CaseError(
            f"{path}: expected a table of time, speed, direction and moisture ({error})"
        ) from None
    if not hours:
        raise CaseError(f"{path}: there is not one hour of wind in it")
    for time, *values in hours:
        if not all(map(math.isfinite, values)):
            raise CaseError(f"{path}: the hour {time} has a value that is not a number")
    return hours


def threshold(case, grain, direction, moisture):
    """Return the friction velocity in m/s at which grains begin to move.

    Parameters
    ----------
    case : dict
        The case.
    grain : float
        Grain size in metres.
    direction : float
        Where the wind comes from, in degrees.
    moisture : float
        Moisture in percent of mass.
    """
    ratio = (case["grain_density"] - case["air_density"]) / case["air_density"]
    value = THRESHOLD_COEFFICIENT * math.sqrt(ratio * case["gravity"] * grain)
    if case["moisture"] == "series" and moisture > 0:
        value *= max(1.0, 1.8 + 0.6 * math.log10(moisture))
    against = math.radians(direction + 180.0 - case["slope_rises_towards"])
    slope = math.atan(math.tan(math.radians(case["slope_degrees"])) * math.cos(against))
    return value * math.sqrt(math.cos(slope) + math.sin(slope) / math.tan(ANGLE_OF_REPOSE))


def simulate(case, wind, grain):
    """Average the transport of every hour over its gusts.

    Returns
    -------
    list of tuple
        Mean friction velocity in m/s, threshold in m/s, share of the hour in which sand moves,
        and transport in kg/m/s, for each hour.
    """
    roughness = case["roughness"] or grain / 30.0
    to_friction = VON_KARMAN / math.log(case["height"] / roughness)
    formula = FORMULAS[case["formula"]]
    scale = case["air_density"] / case["gravity"]
    memory = math.exp(-case["gust_interval"] / GUST_MEMORY_S)
    novelty = math.sqrt(1.0 - memory**2)
    samples = max(1, round(3600.0 / case["gust_interval"]))
    hours = []
    for hour, (_, speed, direction, moisture) in enumerate(wind):
        critical = threshold(case, grain, direction, moisture)
        total, moving = 0.0, 0
        for member in range(case["members"]):
            # A seed for each hour, so that the grain sizes are compared under the same gusts.
            gauss = random.Random(f"{case['seed']} {hour} {member}").gauss
            gust = gauss(0.0, 1.0)
            for _ in range(samples):
                u = to_friction * speed * (1.0 + case["turbulence"] * gust)
                if u > critical:
                    total += formula(u, critical, grain)
                    moving += 1
                gust = memory * gust + novelty * gauss(0.0, 1.0)
        count = samples * case["members"]
        hours.append((to_friction * speed, critical, moving / count, scale * total / count))
    return hours


def mass(hours):
    """Return the sand that passed one metre of width, in kg."""
    return 3600.0 * sum(q for _, _, _, q in hours)


def sensitivity(case, wind, grain):
    """Return the exponent n with which the mass grows with the grain size, as d^n."""
    smaller = mass(simulate(case, wind, grain / LARGER))
    larger = mass(simulate(case, wind, grain * LARGER))
    if not smaller or not larger:
        return math.nan
    return math.log(larger / smaller) / math.log(LARGER**2)


def run(path):
    """Run one case: write its table and return its summary."""
    case = read_case(path)
    wind = read_wind(path.parent / case["wind"])
    grain = case["grain_size_mm"] / 1000.0
    hours = simulate(case, wind, grain)
    with open(f"{path.stem}.csv", "w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["time", "u_star", "u_star_threshold", "moving", "q"])
        for (time, *_), values in zip(wind, hours, strict=True):
            table.writerow([time, *(f"{value:.6g}" for value in values)])
    busy = sum(1 for _, _, moving, _ in hours if moving > 0)
    return (
        f"{path.stem}: {case['formula']}, d = {case['grain_size_mm']:g} mm: "
        f"{mass(hours):.0f} kg/m in {len(wind)} hours, {busy} of them with transport; "
        f"grows with d^{sensitivity(case, wind, grain):.2f}"
    )


def main(arguments):
    """Run the case named on the command line; 2 where it cannot be used."""
    if len(arguments) != 1:
        print("usage: python3 saltation.py CASE.txt", file=sys.stderr)
        return 2
    try:
        print(run(Path(arguments[0])))
    except CaseError as error:
        print(f"saltation: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"saltation: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except UnicodeDecodeError as error:
        print(
            f"saltation: {arguments[0]}: the case or its wind is not text ({error})",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
