"""Tables of text: what was measured, and whether it is what was aimed at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.measure import Race, Run

__all__ = ["Goal", "Table", "race_table"]


@dataclass
class Goal:
    """Compare a figure with what adr is to reach."""

    what: str
    #: None where it could not be measured.
    found: float | None
    most: float | None = None
    least: float | None = None

    @property
    def text(self) -> str:
        """Say it in one line."""
        bound = f"≤ {self.most:g}" if self.most is not None else f"≥ {self.least:g}"
        if self.found is None:
            return f"  ?      {self.what}: {bound}, not measured"
        is_low = self.most is None or self.found <= self.most
        is_high = self.least is None or self.found >= self.least
        word = "ok    " if is_low and is_high else "MISSED"
        return f"  {word} {self.what}: {bound}, measured {_number(self.found)}"


@dataclass
class Table:
    """Hold one table."""

    title: str
    columns: list[str]
    rows: list[list[Any]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    #: Sentences below.
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [self.columns, *([_cell(each) for each in row] for row in self.rows)]
        widths = [max(len(row[at]) for row in rows) for at in range(len(self.columns))]
        lines = [self.title, ""]
        for number, row in enumerate(rows):
            first = row[0].ljust(widths[0])
            others = (each.rjust(width) for each, width in zip(row[1:], widths[1:], strict=True))
            lines.append("  " + "  ".join((first, *others)).rstrip())
            if not number:
                lines.append("  " + "  ".join("-" * width for width in widths))
        lines += ["", *(goal.text for goal in self.goals), *(f"  {note}" for note in self.notes)]
        return "\n".join(lines).rstrip() + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return _number(value) if isinstance(value, int | float) else str(value)


def _number(value: float) -> str:
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def race_table(
    title: str,
    race: Race,
    counts: Mapping[str, int] | int,
    reference: str,
    *,
    unit: str = "jobs",
    wall_s: Callable[[Run], float] = lambda run: run.wall_s,
    calls: Mapping[str, int] | None = None,
) -> Table:
    """Tell rate, ratio to a reference and CPU time of all contenders, and calls where counted.

    Parameters
    ----------
    counts : mapping or int
        How much each contender does in one run.
    wall_s : callable, optional
        What counts as the time of a run.
    calls : mapping, optional
        How many calls to AWS each contender makes in one run.
    """

    def count(who: str) -> int:
        return counts if isinstance(counts, int) else counts[who]

    one = unit.removesuffix("s")
    columns = ["", f"{unit}/s", f"x {reference}", f"CPU ms/{one}", "peak MB"]
    table = Table(title, [*columns, f"calls/{one}"] if calls is not None else columns)
    for who in race.runs:
        speed = race.ratio(who, reference, lambda run: 1 / wall_s(run))
        if speed is not None:
            # Contenders that take long for each do fewer.
            speed *= count(who) / count(reference)
        row = [
            who,
            count(who) / race.median(who, wall_s),
            speed,
            1000 * race.median(who, lambda run: run.cpu_s) / count(who),
            race.median(who, lambda run: run.peak_bytes) / 1e6,
        ]
        if calls is not None:
            row.append(calls[who] / count(who) if who in calls else None)
        table.rows.append(row)
    table.notes += [f"{who}: not measured: {why}" for who, why in race.absent.items()]
    return table
