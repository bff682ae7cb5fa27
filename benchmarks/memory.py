"""Memory of queueing and of a worker: how much, and whether it grows with the jobs."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import closing
from pathlib import Path

from benchmarks.inputs import emptied, input_files
from benchmarks.measure import Failed, Setting, adr_command, call
from benchmarks.table import Goal, Table

__all__ = ["tables"]

_SLOTS = 2
_LIMIT_MB = 150
_LOOK_S = 0.2


def tables(setting: Setting) -> list[Table]:
    """Measure."""
    number = setting.size(100_000, 2000)
    folder = setting.folder
    runner = folder / "runner"
    columns = ["", "MB at a tenth", "MB at the end", "CPU s"]
    table = Table(f"memory over {number:,} jobs, local", columns)
    peaks = []
    for part in (number // 10, number):
        input_files(folder / "inputs", part)
        # A command line has no room for so many names.
        done = call("benchmarks.queueing:adr", str(folder / "inputs"), str(emptied(runner)))
        peaks.append(done.peak_bytes / 1e6)
    table.rows.append(["queueing", *peaks, done.cpu_s])
    tenth, end, cpu_s = _worker(runner, emptied(folder / "work"), number)
    table.rows.append(["a worker", tenth, end, cpu_s])
    table.goals += [
        Goal("MB of queueing", peaks[-1], most=_LIMIT_MB),
        Goal("MB of a worker", end, most=_LIMIT_MB),
        Goal("a worker at the end against at a tenth", end / tenth, most=1.1),
    ]
    table.notes.append("of the worker's own process; a launcher for each slot takes 9 MB more")
    return [table]


def _worker(runner: Path, folder: Path, number: int) -> tuple[float, float, float]:
    """Return the memory of a worker in MB after a tenth of the jobs and after all; and its CPU."""
    options = ["--quiet", "--stop-on-empty", f"--slots={_SLOTS}", f"--workingdir={folder}"]
    process = subprocess.Popen(adr_command("process", *options, str(runner)))
    tenth = end = 0.0
    while not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        used = _resident_mb(process.pid)
        end = used or end
        if not tenth and _done(runner) >= number // 10:
            tenth = end
        time.sleep(_LOOK_S)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Failed(f"adr process ended with {process.returncode}")
    return tenth or end, end, usage.ru_utime + usage.ru_stime


def _resident_mb(pid: int) -> float:
    """Return the resident set of a process, 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS")), 0.0)


def _done(runner: Path) -> int:
    """Return how many jobs of a local runner are decided."""
    import sqlite3

    with closing(sqlite3.connect(f"file:{runner}/ledger.db?mode=ro", uri=True)) as db:
        return int(db.execute("SELECT count(*) FROM records").fetchone()[0])
