"""adr, the Amazon Distributed Runner: from a folder of inputs to a folder of results.

The functions of `adr.adr` are to be had from here: ``adr.create()``, ``adr.queue(…)``. They
are imported when one of them is first asked for, so that ``adr --help`` stays instant.

A module of this package must not be named like one of them, or it would take its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adr import adr
from adr.version import __version__

if TYPE_CHECKING:
    from adr.adr import *  # noqa: F403

__all__ = ["__version__"]
__all__ += adr.__all__


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(adr, name)
    raise AttributeError(f"module 'adr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
