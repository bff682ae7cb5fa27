"""The table of contents of a zip, read line by line.

Beside `zipfile`, which reads the whole and keeps a kilobyte for each entry: here a line is known
by its place, and read again whenever it is asked for. Nothing is trusted, and no more is
understood than what adr has ever written: nothing before the zip, and no remarks in it.
`adr.entries` says what of it is taken.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Line", "Place", "extra_fields", "line_at", "lines", "table_of"]

#: The largest table of contents that is read.
_TABLE_BYTES = 256 << 20
_CHUNK_BYTES = 256 << 10
_LINE = struct.Struct("<4s4xHH4x3L5H2L")
_LINE_MARK = b"PK\1\2"
_END = struct.Struct("<4s6xH2LH")
_END_MARK = b"PK\5\6"
_END_64 = struct.Struct("<4s28x3Q")
_END_64_MARK = b"PK\6\6"
_LOCATOR_64_BYTES = 20
_LOCATOR_64_MARK = b"PK\6\7"
_FIELD = struct.Struct("<HH")
#: Id of the extra field with what does not fit into 32 bits.
_LARGE = 1
_FULL_32 = 0xFFFFFFFF
_IS_UTF8 = 0x800


class Place(NamedTuple):
    """Say where the table of contents is."""

    start: int
    end: int
    #: How many entries there are, as the zip says.
    entries: int


class Line(NamedTuple):
    """Hold what the table of contents says of one entry."""

    #: Where the line stands in the file.
    place: int
    flags: int
    method: int
    checksum: int
    packed_bytes: int
    size_bytes: int
    #: Mode of Unix in the upper 16 bits.
    attributes: int
    #: Where the entry begins in the file.
    offset: int
    raw_name: bytes
    extra: bytes

    @property
    def name(self) -> str:
        """Return the name as text; a folder's ends with a slash.

        Raises
        ------
        UnicodeDecodeError
            If it is not what it says.
        """
        return self.raw_name.decode("utf-8" if self.flags & _IS_UTF8 else "cp437")


def table_of(source: int, size_bytes: int) -> Place:
    """Find the table of contents of an open zip of that size.

    Raises
    ------
    zipfile.BadZipFile
        If it is no zip, or one whose table is too large.
    """
    end = size_bytes - _END.size
    mark, entries, length, start, remarks = _END.unpack(_read(source, _END.size, end))
    if mark != _END_MARK or remarks:
        raise zipfile.BadZipFile("its end is not that of a zip")
    before = end - _LOCATOR_64_BYTES - _END_64.size
    if before >= 0:
        large = _read(source, end - before, before)
        if large.startswith(_END_64_MARK) and large[_END_64.size :].startswith(_LOCATOR_64_MARK):
            end = before
            _, entries, length, start = _END_64.unpack_from(large)
    if length > _TABLE_BYTES:
        raise zipfile.BadZipFile(f"its table of contents is larger than {_TABLE_BYTES:,} bytes")
    if start + length != end:
        raise zipfile.BadZipFile("its table of contents is not where it is to be")
    return Place(start, end, entries)


def lines(source: int, table: Place) -> Iterator[Line]:
    """Read the lines in their order.

    Raises
    ------
    zipfile.BadZipFile
        If something else is among them.
    """
    place, read, at = table.start, b"", 0
    while place < table.end:
        line, size = _parsed(read, at, place)
        if line is None:
            # Most of it was read before, and not all of it is here.
            wanted = max(size, min(_CHUNK_BYTES, table.end - place))
            if place + wanted > table.end:
                raise zipfile.BadZipFile("its table of contents ends early")
            read, at = _read(source, wanted, place), 0
            continue
        yield line
        place, at = place + size, at + size


def line_at(source: int, place: int) -> Line:
    """Read one line again."""
    line, size = _parsed(b"", 0, place)
    while line is None:
        line, size = _parsed(_read(source, size, place), 0, place)
    return line


def extra_fields(extra: bytes) -> list[tuple[int, bytes]]:
    """Return the ids of the extra fields of an entry, and what is in them.

    Raises
    ------
    zipfile.BadZipFile
        If one says that it is longer than what is there.
    """
    fields = []
    while len(extra) >= _FIELD.size:
        kind, size = _FIELD.unpack_from(extra)
        content, extra = extra[_FIELD.size : _FIELD.size + size], extra[_FIELD.size + size :]
        if len(content) < size:
            raise zipfile.BadZipFile("one of its extra fields ends early")
        fields.append((kind, content))
    return fields


def _parsed(read: bytes, at: int, place: int) -> tuple[Line | None, int]:
    """Return the line that begins there, None where there is less of it; and how long it is."""
    if len(read) - at < _LINE.size:
        return None, _LINE.size
    mark, *numbers, name_bytes, extra_bytes, remark_bytes, _, _, attributes, offset = (
        _LINE.unpack_from(read, at)
    )
    if mark != _LINE_MARK:
        raise zipfile.BadZipFile("its table of contents is interrupted by something else")
    size = _LINE.size + name_bytes + extra_bytes + remark_bytes
    if len(read) - at < size:
        return None, size
    name = read[at + _LINE.size : at + _LINE.size + name_bytes]
    start = at + _LINE.size + name_bytes
    extra = read[start : start + extra_bytes]
    flags, method, checksum, packed_bytes, size_bytes = numbers
    if _FULL_32 in (size_bytes, packed_bytes, offset):
        size_bytes, packed_bytes, offset = _large(extra, size_bytes, packed_bytes, offset)
    line = Line(
        *(place, flags, method, checksum, packed_bytes, size_bytes, attributes, offset, name, extra)
    )
    return line, size


def _large(extra: bytes, *numbers: int) -> list[int]:
    """Return the numbers, those that are full as the extra field has them."""
    for kind, content in extra_fields(extra):
        if kind == _LARGE:
            large = iter(struct.unpack_from(f"<{numbers.count(_FULL_32)}Q", content))
            return [next(large) if number == _FULL_32 else number for number in numbers]
    return list(numbers)


def _read(source: int, size_bytes: int, place: int) -> bytes:
    found = os.pread(source, size_bytes, place) if place >= 0 else b""
    if len(found) < size_bytes:
        raise zipfile.BadZipFile("it ends early, or is no zip")
    return found
