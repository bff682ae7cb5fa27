"""Putting a workspace back after a job that wrote one file, against a scan of all of it."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

from benchmarks.measure import Setting, call
from benchmarks.table import Goal, Table

__all__ = ["tables"]


def tables(setting: Setting) -> list[Table]:
    """Measure."""
    columns = ["files", "ms", "scan ms", "scan/restore"]
    table = Table("restoring a workspace after a job that wrote one file", columns)
    for number in (2000, setting.size(100_000, 10_000)):
        found = call(
            "benchmarks.restoring:restore", str(setting.folder), number, setting.size(200, 50)
        ).result
        restore_ms, scan_ms = found
        table.rows.append([f"{number:,}", restore_ms, scan_ms, scan_ms / restore_ms])
        table.goals.append(Goal(f"ms with {number:,} files", restore_ms, most=0.3))
    return [table]


def restore(folder: str, number: int, times: int) -> tuple[float, float]:
    """Return the median time in ms of looking and restoring, and of a scan."""
    from adr.worker.workspace import Workspace

    top = Path(folder, f"workspace-{number}")
    for at in range(number):
        path = top / f"d{at // 200:04d}" / f"f{at:06d}.txt"
        if not at % 200:
            path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    workspace = Workspace(top, lambda name: None)
    workspace.snapshot()
    took_s, scanned_s = [], []
    for at in range(times):
        (top / f"result-{at}.csv").write_bytes(b"0.5\n")
        began = time.perf_counter()
        workspace.restore(workspace.changes())
        took_s.append(time.perf_counter() - began)
        if at < 5:
            began = time.perf_counter()
            _scan(str(top))
            scanned_s.append(time.perf_counter() - began)
    if (top / "result-0.csv").exists():
        raise RuntimeError("nothing was restored")
    return 1000 * statistics.median(took_s), 1000 * statistics.median(scanned_s)


def _scan(top: str) -> None:
    folders = [top]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
