"""How the console shows how far work is: a live bar on a terminal, else a line now and then.

All of it goes to standard error. ``rich`` draws the bar, and is imported only for it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from adr.output import duration_text, say, size_text
from adr.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.progress import TaskID

__all__ = ["progress"]

_LINE_EVERY_S = 5.0


class _Meter:
    """Count one piece of work and put it in words, which another thread may do meanwhile."""

    def __init__(self, what: str, total: int, unit: str, done: int) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = self._before = done
        self.notes: dict[str, int] = {}
        self.began = time.monotonic()

    def __str__(self) -> str:
        seconds = max(time.monotonic() - self.began, 1e-9)
        in_bytes = self.unit == "bytes"
        if in_bytes:
            parts = [f"{size_text(self.done)} of {size_text(self.total)}"]
        else:
            parts = [f"{self.done:,} of {self.total:,} {self.unit}"]
        parts += [f"{number:,} {name}" for name, number in self.notes.items()]
        if self._before < self.done < self.total:
            rate = (self.done - self._before) / seconds
            parts.append(f"{size_text(rate)}/s" if in_bytes else _rate_text(rate))
            parts.append(f"{duration_text((self.total - self.done) / rate)} left")
        return ", ".join(parts)


def _rate_text(per_second: float) -> str:
    for unit, seconds in (("s", 1), ("min", 60)):
        if per_second * seconds >= 1:
            return f"{per_second * seconds:.1f}/{unit}"
    return f"{per_second * 3600:.1f}/h"


class _Lines:
    """Show progress as a line every few seconds, where no terminal can redraw one."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._lock = threading.Lock()
        self._meter: _Meter | None = None
        self._said = 0.0

    def start(self, what: str, total: int, unit: str, done: int = 0) -> None:
        with self._lock:
            self._meter = _Meter(what, total, unit, done)
            self._said = time.monotonic()

    def advance(self, amount: int = 1) -> None:
        with self._lock:
            if self._meter:
                self._meter.done += amount
                self._say_seldom(self._meter)

    def note(self, **counts: int) -> None:
        with self._lock:
            if self._meter:
                self._meter.notes = {**self._meter.notes, **counts}
                self._say_seldom(self._meter)

    def finish(self) -> None:
        with self._lock:
            self._meter = None

    def _say_seldom(self, meter: _Meter) -> None:
        now = time.monotonic()
        if now - self._said >= self._every_s:
            self._said = now
            with suppress(OSError):
                say(f"{meter.what}: {meter}")


class _Bar:
    """Show progress as a live bar on a terminal, gone when the work is done."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._lock = threading.Lock()
        self._meter: _Meter | None = None
        self._task: TaskID | None = None
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[meter]}", markup=False),
            console=Console(stderr=True),
            transient=True,
            refresh_per_second=5,
        )

    def start(self, what: str, total: int, unit: str, done: int = 0) -> None:
        self.finish()
        with self._lock:
            self._meter = _Meter(what, total, unit, done)
            self._task = self._bar.add_task(what, total=total, completed=done, meter=self._meter)
            self._bar.start()

    def advance(self, amount: int = 1) -> None:
        with self._lock:
            if self._meter and self._task is not None:
                self._meter.done += amount
                self._bar.update(self._task, completed=self._meter.done)

    def note(self, **counts: int) -> None:
        with self._lock:
            if self._meter:
                self._meter.notes = {**self._meter.notes, **counts}

    def finish(self) -> None:
        with self._lock:
            if self._task is not None:
                self._bar.stop()
                self._bar.remove_task(self._task)
                self._meter = self._task = None


@contextmanager
def progress(quiet: bool = False) -> Iterator[Progress]:
    """Give a `Progress` that fits standard error, and take it off the screen at the end.

    Parameters
    ----------
    quiet : bool, optional
        Show nothing.
    """
    shown: Progress = SILENT
    if not quiet:
        live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        shown = _Bar() if live else _Lines(_LINE_EVERY_S)
    try:
        yield shown
    finally:
        shown.finish()
