"""A zip that is written in one pass, by as many threads as there are cores.

Beside `zipfile`, which compresses in one thread and keeps a kilobyte for each entry: here pieces
of a mebibyte are compressed on their own and put together in their order, which deflate allows,
and an entry is no more than its line in the table of contents. What cannot shrink is stored.

`isal` (PyPI) compresses three times as fast as zlib does, and is used where it is installed.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from types import TracebackType
from typing import Any

from adr.cores import cores

__all__ = ["PIECE_BYTES", "ZipWriter"]

_deflate: Any
try:
    _deflate, _LEVEL = import_module("isal.isal_zlib"), 2
except ImportError:
    _deflate, _LEVEL = zlib, 1

#: Content comes in pieces of at most this size.
PIECE_BYTES = 1 << 20
#: Less is compressed at once, since handing it to a thread would take as long.
_ALONE_BYTES = 64 << 10
#: As much of the packed table of contents is unpacked at a time.
_SLICE_BYTES = 32 << 10
#: So much of the beginning of a large file tells whether it shrinks, and to which part it has to.
_SAMPLE_BYTES = 64 << 10
_SHRUNK = 0.95
_MOST_THREADS = 8

_LOCAL = struct.Struct("<4s5H3L2H")
_TABLE = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_STORED, _DEFLATED = 0, 8
#: Sizes follow the content; the name is UTF-8.
_FLAGS_LATER, _FLAGS_UTF8 = 0x8, 0x800
_VERSION, _VERSION_64, _UNIX = 20, 45, 3
_FULL_16, _FULL_32 = 0xFFFF, 0xFFFFFFFF
#: The end of deflated content: an empty block that is the last one.
_LAST_BLOCK = b"\x03\x00"


@dataclass
class _Entry:
    name: bytes
    moment: tuple[int, int]
    attributes: int
    extra: bytes
    size_bytes: int
    method: int = _STORED
    checksum: int = 0
    packed_bytes: int = 0
    offset: int = 0


@dataclass
class _Step:
    """One piece on its way: what to write once it is compressed."""

    entry: _Entry
    #: The method and the bytes; of a piece among several, the method is that of the entry.
    packed: tuple[int, bytes] | Future[tuple[int, bytes]]
    is_first: bool
    is_last: bool


class ZipWriter:
    """Write entries one after the other; `close` writes the table of contents.

    As a context manager it closes unless there was an error.

    Parameters
    ----------
    write : callable
        Takes the bytes of the zip in their order.
    compress : bool
        Deflate what shrinks by it; without, everything is stored.
    """

    def __init__(self, write: Callable[[bytes], object], *, compress: bool) -> None:
        self._write = write
        self._compress = compress
        self._threads = min(_MOST_THREADS, cores())
        self._pool = ThreadPoolExecutor(self._threads, "deflate")
        self._steps: deque[_Step] = deque()
        # The table of contents, which is written last, waits as a third of what it is.
        self._packer = zlib.compressobj(1)
        self._table = bytearray()
        self._table_bytes = 0
        self._entries = 0
        #: How much was written.
        self.size_bytes = 0

    def __enter__(self) -> ZipWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.close()
        finally:
            self._pool.shutdown(cancel_futures=True)

    def add(
        self,
        name: str,
        pieces: Iterable[bytes],
        size_bytes: int,
        *,
        mtime_s: int,
        attributes: int,
        extra: bytes,
    ) -> None:
        """Add an entry.

        Parameters
        ----------
        name : str
            Ends with a slash where it is that of a folder.
        pieces : iterable of bytes
            The content, each but the last of `PIECE_BYTES`.
        size_bytes : int
            How long it is in all.
        mtime_s : int
            Time of change; zip knows every second one of the years 1980 to 2107.
        attributes : int
            Mode of Unix in the upper 16 bits, as zip has it.
        extra : bytes
            Extra fields of the entry.
        """
        entry = _Entry(name.encode(), _zip_time(mtime_s), attributes, extra, size_bytes)
        if size_bytes <= PIECE_BYTES:
            piece = b"".join(pieces)
            entry.checksum = _deflate.crc32(piece)
            self._put(_Step(entry, self._packed(_pack_alone, piece), True, True))
            return
        is_first, left = True, size_bytes
        for piece in pieces:
            if is_first and self._compress and _shrinks(piece):
                entry.method = _DEFLATED
            entry.checksum = _deflate.crc32(piece, entry.checksum)
            left -= len(piece)
            if entry.method == _DEFLATED:
                packed = self._packed(_pack_among, piece)
            else:
                packed = _STORED, piece
            self._put(_Step(entry, packed, is_first, left <= 0))
            is_first = False

    def close(self) -> None:
        """Write what waits, and the table of contents."""
        while self._steps:
            self._write_step()
        start, size = self.size_bytes, self._table_bytes
        self._table += self._packer.flush()
        unpacker, packed = zlib.decompressobj(), memoryview(self._table)
        for first in range(0, len(packed), _SLICE_BYTES):
            self._out(unpacker.decompress(packed[first : first + _SLICE_BYTES]))
        if self._entries >= _FULL_16 or size >= _FULL_32 or start >= _FULL_32:
            end = self.size_bytes
            self._out(
                _END_64.pack(
                    *(b"PK\6\6", _END_64.size - 12, _VERSION_64, _VERSION_64, 0, 0),
                    *(self._entries, self._entries, size, start),
                )
            )
            self._out(_LOCATOR_64.pack(b"PK\6\7", 0, end, 1))
        entries = min(self._entries, _FULL_16)
        self._out(
            _END.pack(
                *(b"PK\5\6", 0, 0, entries, entries),
                *(min(size, _FULL_32), min(start, _FULL_32), 0),
            )
        )

    def _packed(
        self, pack: Callable[[bytes], tuple[int, bytes]], piece: bytes
    ) -> tuple[int, bytes] | Future[tuple[int, bytes]]:
        if not self._compress:
            return _STORED, piece
        return pack(piece) if len(piece) < _ALONE_BYTES else self._pool.submit(pack, piece)

    def _put(self, step: _Step) -> None:
        self._steps.append(step)
        # Enough for the threads to have work while the oldest is written, and no more.
        while len(self._steps) > 2 * self._threads:
            self._write_step()
        while self._steps and not isinstance(self._steps[0].packed, Future):
            self._write_step()

    def _write_step(self) -> None:
        step = self._steps.popleft()
        entry = step.entry
        method, data = step.packed.result() if isinstance(step.packed, Future) else step.packed
        is_whole = step.is_first and step.is_last
        entry.packed_bytes += len(data)
        if step.is_first:
            entry.offset = self.size_bytes
            if is_whole:
                entry.method = method
            self._out(_local_header(entry, is_whole))
        self._out(data)
        if not step.is_last:
            return
        if not is_whole:
            if entry.method == _DEFLATED:
                self._out(_LAST_BLOCK)
                entry.packed_bytes += len(_LAST_BLOCK)
            sizes = "<4sLQQ" if _is_large(entry) else "<4s3L"
            parts = (b"PK\7\10", entry.checksum, entry.packed_bytes, entry.size_bytes)
            self._out(struct.pack(sizes, *parts))
        line = _table_line(entry, is_whole)
        self._table += self._packer.compress(line)
        self._table_bytes += len(line)
        self._entries += 1

    def _out(self, data: bytes) -> None:
        self.size_bytes += len(data)
        self._write(data)


def _is_large(entry: _Entry) -> bool:
    """Tell whether the sizes of an entry take 64 bits; what hardly shrinks may grow a little."""
    return entry.size_bytes > 0.9 * _FULL_32


def _flags(entry: _Entry, is_whole: bool) -> int:
    return (0 if is_whole else _FLAGS_LATER) | (0 if entry.name.isascii() else _FLAGS_UTF8)


def _local_header(entry: _Entry, is_whole: bool) -> bytes:
    sizes = (entry.checksum, entry.packed_bytes, entry.size_bytes) if is_whole else (0, 0, 0)
    version, extra = _VERSION, entry.extra
    if _is_large(entry):
        version, sizes = _VERSION_64, (0, _FULL_32, _FULL_32)
        extra = struct.pack("<2H2Q", 1, 16, 0, 0) + extra
    return b"".join(
        (
            _LOCAL.pack(
                *(b"PK\3\4", version, _flags(entry, is_whole), entry.method, *entry.moment),
                *(*sizes, len(entry.name), len(extra)),
            ),
            entry.name,
            extra,
        )
    )


def _table_line(entry: _Entry, is_whole: bool) -> bytes:
    numbers = [entry.size_bytes, entry.packed_bytes, entry.offset]
    # The order in which they stand in the extra field, which is not that of the line.
    large = [number for number in numbers if number >= _FULL_32]
    size_bytes, packed_bytes, offset = (min(number, _FULL_32) for number in numbers)
    extra = entry.extra
    if large:
        extra = struct.pack(f"<2H{len(large)}Q", 1, 8 * len(large), *large) + extra
    version = _VERSION_64 if large or _is_large(entry) else _VERSION
    line = _TABLE.pack(
        *(b"PK\1\2", _UNIX << 8 | version, version, _flags(entry, is_whole), entry.method),
        *(*entry.moment, entry.checksum, packed_bytes, size_bytes),
        *(len(entry.name), len(extra), 0, 0, 0, entry.attributes, offset),
    )
    return line + entry.name + extra


def _pack_alone(piece: bytes) -> tuple[int, bytes]:
    """Deflate all content of an entry, unless it does not shrink."""
    if len(piece) > _SAMPLE_BYTES and not _shrinks(piece):
        return _STORED, piece
    packer = _deflate.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(piece) + packer.flush()
    return (_DEFLATED, packed) if len(packed) < len(piece) else (_STORED, piece)


def _pack_among(piece: bytes) -> tuple[int, bytes]:
    """Deflate a piece so that another can follow."""
    packer = _deflate.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return _DEFLATED, packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH)


def _shrinks(piece: bytes) -> bool:
    sample = piece[:_SAMPLE_BYTES]
    return len(_deflate.compress(sample, _LEVEL)) < _SHRUNK * len(sample)


def _zip_time(mtime_s: int) -> tuple[int, int]:
    """Return the nearest time and date that zip can say."""
    earliest, latest = 315_532_800, 4_354_819_198
    year, month, day, hour, minute, second = time.gmtime(min(max(mtime_s, earliest), latest))[:6]
    return hour << 11 | minute << 5 | second // 2, (year - 1980) << 9 | month << 5 | day
