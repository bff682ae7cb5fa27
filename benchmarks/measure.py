"""Run contenders in processes of their own, by turns, and say what each has used."""

from __future__ import annotations

import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "Failed",
    "Missing",
    "Race",
    "Run",
    "Setting",
    "adr_command",
    "call",
    "run",
    "take_turns",
]

#: Folder from which ``python -m benchmarks`` is run.
HERE = Path(__file__).resolve().parent.parent
_MARK = "benchmark-result "


class Missing(Exception):
    """Tell that a contender is not installed here."""


class Failed(Exception):
    """Tell that a contender has failed."""


@dataclass(frozen=True)
class Setting:
    """Say how much to do, and where."""

    quick: bool
    #: Folder for everything that a benchmark writes; emptied after it.
    folder: Path
    #: How often contenders take turns; the median counts.
    rounds: int

    def size(self, full: int, quick: int) -> int:
        """Return how large a benchmark is to be."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Run:
    """Say what one run has used."""

    wall_s: float
    #: User and system time of the process and of all its descendants that were waited for.
    cpu_s: float
    #: Largest resident set of one of these processes.
    peak_bytes: int
    #: What a called function returned; of a command its standard output.
    result: Any = None


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: Path | None = None,
) -> Run:
    """Run a command to its end.

    Raises
    ------
    Missing
        If there is no such program.
    Failed
        If it ends otherwise than by exit code 0.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given = stdin.open("rb") if stdin else subprocess.DEVNULL
        began = time.perf_counter()
        try:
            process = subprocess.Popen(
                argv,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                stdin=given,
                stdout=out,
                stderr=err,
            )
        except FileNotFoundError as error:
            raise Missing(f"{argv[0]} is not installed") from error
        # Not `wait`, which does not tell what this one child has used.
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read().decode("utf-8", "replace")
        if process.returncode:
            err.seek(0)
            said = err.read().decode("utf-8", "replace")[-1500:] or text[-500:]
            if "ModuleNotFoundError" in said:
                raise Missing(said.strip().splitlines()[-1])
            raise Failed(f"{argv[0]} ended with {process.returncode}: {said}")
    return Run(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, text)


def adr_command(*words: str | os.PathLike[str]) -> list[str]:
    """Return a command line of adr, as it is installed beside this Python."""
    script = Path(sys.executable).with_name("adr")
    start = [str(script)] if script.exists() else [sys.executable, "-m", "adr"]
    return [*start, *map(os.fspath, words)]


def call(name: str, *args: Any, env: Mapping[str, str] | None = None) -> Run:
    """Call a function, named ``module:function``, in a process of its own.

    Times are those of the function alone, without the start of the process. Arguments and
    result are JSON.
    """
    argv = [sys.executable, "-m", "benchmarks.measure", name, *map(json.dumps, args)]
    done = run(argv, cwd=HERE, env=env)
    # The last: what it has started may have said something like it before.
    found = json.loads(done.result.rpartition(_MARK)[2])
    return Run(found["wall_s"], found["cpu_s"], done.peak_bytes, found["result"])


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _called(name: str, *args: str) -> None:
    module, _, function = name.partition(":")
    step = getattr(importlib.import_module(module), function)
    given = [json.loads(each) for each in args]
    cpu_s, began = _cpu_s(), time.perf_counter()
    result = step(*given)
    found = {
        "wall_s": time.perf_counter() - began,
        "cpu_s": _cpu_s() - cpu_s,
        "result": result,
    }
    print(f"\n{_MARK}{json.dumps(found)}", flush=True)


@dataclass
class Race:
    """Hold the runs of all contenders, in the order of the rounds."""

    runs: dict[str, list[Run]] = field(default_factory=dict)
    #: Why a contender is not among them.
    absent: dict[str, str] = field(default_factory=dict)

    def median(self, who: str, of: Callable[[Run], float]) -> float:
        """Return the median of something over the runs of a contender."""
        return statistics.median(map(of, self.runs[who]))

    def ratio(self, who: str, reference: str, of: Callable[[Run], float]) -> float | None:
        """Return the median of the ratios within each round; None where one is absent."""
        if who not in self.runs or reference not in self.runs:
            return None
        pairs = zip(self.runs[who], self.runs[reference], strict=True)
        return statistics.median(of(own) / of(other) for own, other in pairs)


def take_turns(contenders: Mapping[str, Callable[[], Run]], rounds: int) -> Race:
    """Let contenders run one after the other, in every second round backwards.

    What else the machine does then concerns all of them alike.
    """
    race = Race()
    for number in range(rounds):
        names = list(contenders)
        for who in reversed(names) if number % 2 else names:
            if who in race.absent:
                continue
            try:
                done = contenders[who]()
            except (Missing, Failed) as error:
                race.absent[who] = str(error).strip().replace("\n", " ")[-200:]
                race.runs.pop(who, None)
            else:
                race.runs.setdefault(who, []).append(done)
    # In the order they were given, whoever came first.
    race.runs = {who: race.runs[who] for who in contenders if who in race.runs}
    return race


if __name__ == "__main__":
    _called(*sys.argv[1:])
