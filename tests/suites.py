"""Run the suites of tests in processes of their own, some of them side by side.

    python -m tests.suites [PATHS AND OPTIONS OF PYTEST]

Without arguments all suites are run. They share one environment, since to install it costs as
much as a suite; most of what they do is to wait, so there are more of them than cores.

They import adr from the sources; the processes that they start elsewhere have the one that is
installed, and so has the suite that brings it to hosts.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]

#: The longest first. What tests share for a session, such as emulators, a suite starts once.
SUITES = {
    # What is brought to hosts is the adr that is installed.
    "hosts": ["--import-mode=append", "tests/fleets/test_ssh_hosts.py"],
    "faults": ["tests/faults"],
    "machines": ["tests/machines"],
    "crash": ["tests/crash"],
    "units": ["tests/unit"],
    "e2e": ["tests/e2e"],
    "fleets": ["tests/fleets", "--ignore=tests/fleets/test_ssh_hosts.py"],
    "contract": ["tests/contract"],
}
#: Needs what the others do not, and has an environment of its own.
_ELSEWHERE = {"tests/epanet"}
_SIDE_BY_SIDE = 5


def _left_out() -> list[str]:
    """Return the folders with tests that are in no suite."""
    files = _ROOT.glob("tests/*/test_*.py")
    folders = {path.parent.relative_to(_ROOT).as_posix() for path in files}
    return sorted(folders - _ELSEWHERE - {word for words in SUITES.values() for word in words})


def _pytest(words: Sequence[str]) -> list[str]:
    if "--import-mode=append" in words:
        # As a module it would have the folder of the sources first.
        return [str(Path(sys.executable).with_name("pytest")), *words]
    return [sys.executable, "-m", "pytest", *words]


def main(words: Sequence[str]) -> int:
    """Run what was asked for, else all; return the exit status."""
    if words:
        return subprocess.run(_pytest(words), cwd=_ROOT).returncode
    if folders := _left_out():
        print(f"no suite has {', '.join(folders)}: add it to {Path(__file__).name}")
        return 2
    running: set[subprocess.Popen[str]] = set()
    ending = threading.Event()
    said = threading.Lock()

    def run(name: str) -> bool:
        if ending.is_set():
            return False
        process = subprocess.Popen(
            _pytest(SUITES[name]),
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        running.add(process)
        out, _ = process.communicate()
        with said:
            print(f"===== {name}: {' '.join(SUITES[name])} =====\n{out}", flush=True)
        return process.returncode == 0

    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        try:
            done = dict(zip(SUITES, pool.map(run, SUITES), strict=True))
        except BaseException:
            ending.set()
            for process in running:
                process.terminate()
            raise
    failed = [name for name, passed in done.items() if not passed]
    print(f"failed: {', '.join(failed)}" if failed else "all suites passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
