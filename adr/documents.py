"""Reading what others may have written: JSON in the store, in messages, in the database.

Nothing of it is believed before its shape was checked here, so that what is broken or foreign is
one sentence to whoever reads it, never a surprise further on.
"""

from __future__ import annotations

import types
import typing
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import fields
from functools import cache
from typing import Any

from adr.errors import AdrError

__all__ = ["known_fields", "reading"]

_SAID_LETTERS = 200
_BROKEN = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
    OverflowError,
    # Brackets within brackets, by the thousand.
    RecursionError,
    zlib.error,
)


def reading(what: str) -> AbstractContextManager[None]:
    """Turn what broken data raises within into one sentence that says of `what`.

    Raises
    ------
    AdrError
        Instead of the errors of parsers, and of code that found another shape than expected.
    """
    return _Reading(what)


class _Reading:
    """A class, since a generator takes as long as reading a job does."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        what = self._what
        # What stands in something else is named with it.
        if type(error) is AdrError and not str(error).startswith(what):
            raise AdrError(f"{what}: {error}") from error
        if isinstance(error, _BROKEN):
            said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise AdrError(f"{what} is broken: {said[:_SAID_LETTERS]}") from error


def known_fields(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return those items of `data` that are fields of a dataclass, each of the type it has there.

    Tuples stand for JSON lists, and have to be made before. Text has to be such that it can name
    a file, since much of it does.

    Raises
    ------
    TypeError, ValueError
        If one has another type.
    """
    values = {}
    for name, fits in _checks(kind):
        if name in data:
            value = data[name]
            if not fits(value):
                raise TypeError(f"its {name} is {value!r:.50}")
            values[name] = value
    return values


_Check = Callable[[Any], bool]


@cache
def _checks(kind: type) -> tuple[tuple[str, _Check], ...]:
    hints = typing.get_type_hints(kind)
    return tuple((spec.name, _check(hints[spec.name])) for spec in fields(kind))


def _check(hint: Any) -> _Check:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        kind, none = parts
        assert none is type(None), f"{hint} is not one type or None"
        optional = _check(kind)
        return lambda value: value is None or optional(value)
    if origin is tuple:
        check = _check(parts[0])
        return lambda value: isinstance(value, tuple) and all(map(check, value))
    if hint is str:
        return _is_text
    kinds = (int, float) if hint is float else hint
    return lambda value: isinstance(value, kinds)


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    if not value.isascii():
        value.encode("utf-8", "surrogateescape")
    return True
