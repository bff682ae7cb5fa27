"""The shipped examples, and the documentation around them, do what they say."""

import csv
import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from adr import console

ROOT = Path(__file__).parents[2]
SALTATION = ROOT / "examples" / "saltation"
CASES = sorted(SALTATION.glob("*.txt"))


@pytest.fixture(scope="module")
def saltation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("saltation", SALTATION / "saltation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def case(saltation, tmp_path) -> dict:
    path = tmp_path / "case.txt"
    path.write_text("wind = wind.csv\nformula = kawamura\ngrain_size_mm = 0.25\nmembers = 1\n")
    return saltation.read_case(path)


def run(script: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(script), *arguments], cwd=cwd, capture_output=True, text=True
    )


def test_a_case_writes_one_row_per_hour_of_wind_and_prints_a_summary(tmp_path):
    # given a short wind and a case that reads it
    lines = (SALTATION / "wind.csv").read_text().splitlines(keepends=True)
    (tmp_path / "wind.csv").write_text("".join(lines[:51]))
    (tmp_path / "case.txt").write_text((SALTATION / "case_kawamura_moist.txt").read_text())

    # when it is run
    done = run(SALTATION / "saltation.py", "case.txt", cwd=tmp_path)

    # then its table has the hours of the wind, and transport only above the threshold
    assert (done.returncode, done.stderr) == (0, "")
    assert "48 hours" in done.stdout
    with (tmp_path / "case.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["time"] for row in rows] == [line.split(",")[0] for line in lines[3:51]]
    assert {float(row["q"]) > 0 for row in rows} == {True, False}
    assert all((float(row["q"]) > 0) == (float(row["moving"]) > 0) for row in rows)


def test_the_same_case_gives_the_same_result(saltation, case):
    wind = saltation.read_wind(SALTATION / "wind.csv")[:5]

    assert saltation.simulate(case, wind, 0.25e-3) == saltation.simulate(case, wind, 0.25e-3)


def test_the_dozen_cases_are_valid_and_really_differ(saltation):
    wind = saltation.read_wind(SALTATION / "wind.csv")[::10]

    masses = {}
    for path in CASES:
        case = saltation.read_case(path) | {"members": 1, "gust_interval": 60.0}
        hours = saltation.simulate(case, wind, case["grain_size_mm"] / 1000)
        masses[path.stem] = round(saltation.mass(hours), 2)

    assert len(masses) == 12
    assert min(masses.values()) > 0
    assert len(set(masses.values())) == 12


def test_a_steady_wind_moves_what_the_formulas_give_by_hand(saltation, case):
    # given 10 m/s at 10 m over a roughness of 1 mm: u* = 0.4 x 10 / ln(10^4) = 0.4343 m/s
    steady = case | {"turbulence": 0.0, "roughness": 0.001, "gust_interval": 1800.0}
    wind = [("noon", 10.0, 240.0, 0.0)]
    # and u*t = 0.1 sqrt(2648.775 / 1.225 x 9.81 x 0.00025) = 0.2303 m/s
    expected = {
        "bagnold": 1.8 * 1.225 / 9.81 * 0.08191,
        "kawamura": 2.78 * 1.225 / 9.81 * 0.2040 * 0.4417,
        "lettau": 6.7 * 1.225 / 9.81 * 0.18861 * 0.2040,
    }

    for formula, transport in expected.items():
        [(u, critical, moving, q)] = saltation.simulate(
            steady | {"formula": formula}, wind, 0.25e-3
        )

        assert u == pytest.approx(0.4343, abs=1e-4)
        assert critical == pytest.approx(0.2303, abs=1e-4)
        assert moving == 1
        assert q == pytest.approx(transport, rel=2e-3)


def test_water_and_an_upward_slope_raise_the_threshold(saltation, case):
    flat = saltation.threshold(case, 0.25e-3, 240, 1.0)
    wet = saltation.threshold(case | {"moisture": "series"}, 0.25e-3, 240, 1.0)
    hardly_wet = saltation.threshold(case | {"moisture": "series"}, 0.25e-3, 240, 0.01)
    slope = case | {"slope_degrees": 20.0, "slope_rises_towards": 60.0}
    up = saltation.threshold(slope, 0.25e-3, 240, 0)
    across = saltation.threshold(slope, 0.25e-3, 330, 0)
    down = saltation.threshold(slope, 0.25e-3, 60, 0)

    # 1.8 + 0.6 log10(1 %), and never below dry sand
    assert wet == pytest.approx(1.8 * flat)
    assert hardly_wet == flat
    assert down < across < up
    assert across == pytest.approx(flat)
    ratio = math.cos(math.radians(20)) + math.sin(math.radians(20)) / math.tan(math.radians(33))
    assert up / flat == pytest.approx(math.sqrt(ratio))


def test_gusts_move_more_sand_than_the_same_mean_wind(saltation, case):
    wind = [("noon", 9.0, 240.0, 0.0)]

    gusty = saltation.mass(saltation.simulate(case | {"turbulence": 0.3}, wind, 0.25e-3))
    steady = saltation.mass(saltation.simulate(case | {"turbulence": 0.0}, wind, 0.25e-3))

    assert gusty > 1.1 * steady


GOOD = "wind = wind.csv\nformula = kawamura\ngrain_size_mm = 0.25\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (GOOD + "formula = x\n", "formula = x is neither bagnold nor kawamura nor lettau"),
        (GOOD + "members = 0\n", "members = 0 is less than 1"),
        (GOOD + "grain_size_mm = fine\n", "line 4: grain_size_mm must be a number, got 'fine'"),
        (GOOD + "height = -1\n", "height must be positive, got -1.0"),
        (GOOD + "turbulence = nan\n", "turbulence = nan is not from 0 to below 1"),
        (GOOD + "colour = red\n", "line 4: expected a known KEY = VALUE, got 'colour = red'"),
        (GOOD + "wind = gone.csv\n", "gone.csv: No such file or directory"),
        (GOOD + "wind = case.txt\n", "case.txt: expected a table of time, speed, direction"),
        (GOOD + "wind = empty.csv\n", "empty.csv: there is not one hour of wind in it"),
        ("formula = kawamura\n", "wind is missing"),
    ],
)
def test_a_bad_case_exits_2_with_one_sentence(tmp_path, text, sentence):
    (tmp_path / "case.txt").write_text(text)
    (tmp_path / "empty.csv").write_text("time,speed,direction,moisture\n")
    (tmp_path / "wind.csv").write_text((SALTATION / "wind.csv").read_text())

    done = run(SALTATION / "saltation.py", "case.txt", cwd=tmp_path)

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert sentence in done.stderr
    assert not (tmp_path / "case.csv").exists()


@pytest.mark.parametrize("script", ["saltation/saltation.py", "epanet/pressures.py"])
def test_an_example_without_an_input_says_how_it_is_used(tmp_path, script):
    done = run(ROOT / "examples" / script, cwd=tmp_path)

    assert done.returncode == 2
    assert done.stderr.startswith("usage: python3 ")


def test_ci_runs_the_second_command_of_the_readme():
    # given the commands of the README, in order, as indented or fenced blocks
    readme = (ROOT / "README.md").read_text("utf-8")
    blocks = readme.split("```")[1::2]
    second = blocks[1].partition("\n")[2].strip()

    assert "tox" in second
    assert f"\n{second}\n" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_every_command_has_a_page_with_its_help():
    commands = {name.removeprefix("adr_") for name in console.__all__ if name.startswith("adr_")}
    commands.remove("console")
    pages = {path.stem: path for path in (ROOT / "docs" / "commands").glob("*.rst")}
    index = pages.pop("index").read_text("utf-8")

    assert set(pages) == commands
    for command, page in pages.items():
        assert f".. adr-help:: {command}\n" in page.read_text("utf-8")
        assert f"<{command}>`" in index
