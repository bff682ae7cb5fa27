"""The benchmarks know parts of the engine that nobody promises: they still fit it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_benchmarks_measure_and_simulate_what_there_is(tmp_path: Path) -> None:
    found = tmp_path / "tables.json"
    words = ["simulation", "tail", "queue", "--quick", f"--json={found}"]

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words], cwd=ROOT, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout + done.stderr
    tables = {table["title"]: table for table in json.loads(found.read_text())}
    assert "not measured: adr" not in done.stdout
    for start in ("a million jobs", "makespan of jobs", "queueing 2,000 jobs"):
        assert [table["rows"] for title, table in tables.items() if title.startswith(start)]
