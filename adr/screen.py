"""How the console redraws: one frame after the other in the place of a terminal.

It uses the terminal's second screen, so that what was on it before comes back at the end, also
where the process is suspended or told to end. A frame is written in one go over the last one,
which does not flicker as clearing all of it first would.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from adr.output import clip

__all__ = ["Screen", "can_redraw"]

#: The second screen without a cursor, and back again (xterm's control sequences).
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[H\x1b[2J"
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _END_LINE, _END_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
_TICK_S = 0.1


def can_redraw() -> bool:
    """Tell whether standard output is a terminal on which frames can be drawn."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class Screen:
    """Take over the terminal within; for the main thread, which gets the signals."""

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self._is_new = True

    def __enter__(self) -> Screen:
        handlers = {signal.SIGTERM: _end, signal.SIGHUP: _end, signal.SIGTSTP: self._suspend}
        for number, handler in handlers.items():
            self._handlers[number] = signal.signal(number, handler)
        _write(_ENTER)
        return self

    def __exit__(self, *_: object) -> None:
        _write(_LEAVE)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height, which may change at any time."""
        size = os.get_terminal_size(sys.stdout.fileno())
        return size.columns, size.lines

    def show(self, lines: Sequence[str]) -> None:
        """Draw a frame, as much of it as there is room for."""
        width, height = self.size
        # The last column stays free: to clear the rest of a full line would clear its end.
        shown = [clip(line, width - 1) + _END_LINE for line in lines[:height]]
        self._is_new = False
        _write(_HOME + "\n".join(shown) + _END_SCREEN)

    def wait(self, seconds: float) -> bool:
        """Wait, but no longer than until the frame has to be drawn again; tell whether it has."""
        until, before = time.monotonic() + seconds, self.size
        while (left_s := until - time.monotonic()) > 0:
            if self._is_new or self.size != before:
                return True
            time.sleep(min(_TICK_S, left_s))
        return False

    def _suspend(self, number: int, _frame: FrameType | None) -> None:
        """Give the terminal back for as long as this process is stopped."""
        _write(_LEAVE)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, self._suspend)
        _write(_ENTER)
        self._is_new = True


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
