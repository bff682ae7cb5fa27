"""Starting commands that do little, against starting Python."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from benchmarks.measure import Setting, adr_command, call, run, take_turns
from benchmarks.table import Goal, Table

__all__ = ["tables"]

_PYTHON = "python -c pass"


def tables(setting: Setting) -> list[Table]:
    """Measure."""
    folder = str(setting.folder / "runner")
    call("benchmarks.status:prepare", folder, 10)
    rounds = max(setting.rounds, setting.size(20, 7))
    race = take_turns(
        {
            _PYTHON: lambda: run([sys.executable, "-c", "pass"]),
            "adr --help": lambda: run(adr_command("--help")),
            "adr status": lambda: run(adr_command("status", f"--runner={folder}")),
        },
        rounds,
    )
    table = Table("starting a command", ["", "ms", f"x {_PYTHON}", "CPU ms", "x its CPU"])
    for who in race.runs:
        table.rows.append(
            [
                who,
                1000 * race.median(who, lambda run: run.wall_s),
                race.ratio(who, _PYTHON, lambda run: run.wall_s),
                1000 * race.median(who, lambda run: run.cpu_s),
                race.ratio(who, _PYTHON, lambda run: run.cpu_s),
            ]
        )
    table.goals += [
        Goal("adr --help", race.ratio("adr --help", _PYTHON, lambda run: run.wall_s), most=6),
        Goal("adr status", race.ratio("adr status", _PYTHON, lambda run: run.wall_s), most=15),
    ]
    for path in Path(sysconfig.get_path("purelib")).glob("*.pth"):
        if "import " in path.read_text("utf-8", "replace"):
            table.notes.append(
                f"{path.name} runs code whenever Python starts here, which flatters the ratios: "
                f"install adr without --editable"
            )
    return [table]
