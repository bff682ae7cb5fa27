"""How the console shows what modules log: as sentences on standard error."""

from __future__ import annotations

import logging

from adr import output

__all__ = ["Handler", "log_from"]


class Handler(logging.Handler):
    """Write to what is standard error at the moment: a live bar puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            output.say(output.plain(self.format(record), keep="\n\t"))
        except Exception:
            self.handleError(record)


def log_from(level: int) -> None:
    """Show what is logged from this level on, from now."""
    logger = logging.getLogger("adr")
    logger.setLevel(level)
    if not any(isinstance(each, Handler) for each in logger.handlers):
        handler = Handler()
        handler.setFormatter(logging.Formatter("adr: %(levelname)s: %(message)s"))
        logger.addHandler(handler)
