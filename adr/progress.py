"""How long work reports how far it is, without knowing who shows it.

The core calls a `Progress`; the console passes one that draws a bar, everybody else gets
`SILENT`. Calls come from several threads.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["SILENT", "Progress"]


class Progress(Protocol):
    """Receive the advance of one piece of work at a time.

    All methods may be called from any thread and never raise or block.
    """

    def start(self, what: str, total: int, unit: str, done: int = 0) -> None:
        """Begin a piece of work called `what`, of `total` units (``"bytes"``, ``"jobs"`` …).

        Of these `done` had been done before, which tells nothing of how fast it goes.
        """

    def advance(self, amount: int = 1) -> None:
        """Add `amount` units of the piece of work."""

    def note(self, **counts: int) -> None:
        """Show named counts beside the bar, such as ``failed=2, running=8``."""

    def finish(self) -> None:
        """End the piece of work."""


class _Silent:
    def start(self, what: str, total: int, unit: str, done: int = 0) -> None:
        pass

    def advance(self, amount: int = 1) -> None:
        pass

    def note(self, **counts: int) -> None:
        pass

    def finish(self) -> None:
        pass


#: The progress that nobody watches.
SILENT: Progress = _Silent()
