"""What a zip says it holds, taken for true only as far as it can be checked.

A bundle comes from a store that others may write to, so `adr.bundle` unpacks nothing that has
not passed here: no name, type, target or size is trusted. What adr itself never writes is
refused, which leaves little to go wrong: ciphers, rare methods of compression, parts that overlap.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["EXTRA", "EXTRA_HEAD", "MOST_ENTRIES", "Entry", "Source", "declared_bytes", "entries_of"]

#: Id of our extra field: time of change in nanoseconds, then the name where it is not UTF-8.
EXTRA = 0x6461
EXTRA_HEAD = struct.Struct("<HHq")
#: As many files, links and folders a bundle may hold; each takes about a kilobyte of memory.
MOST_ENTRIES = 1_000_000

#: The largest table of contents that is read, which is done in one piece.
_TABLE_BYTES = 256 << 20
_CHUNK_BYTES = 1 << 20
#: Deflate cannot shrink anything to less than a 1,032nd, so a larger ratio is a trap.
_LARGEST_RATIO = 1032
_LOCAL_HEADER = b"PK\3\4"
_LOCAL_HEADER_BYTES = 30
#: Limits of Linux: PATH_MAX, with its zero, and NAME_MAX.
_LONGEST_PATH_BYTES = 4095
_LONGEST_SEGMENT_BYTES = 255
#: Removing a tree takes a call of a function for each level, and Python bounds these.
_DEEPEST = 256
_SHOWN_LETTERS = 100
_IS_ENCRYPTED = 0x1
_IS_UTF8 = 0x800


class Source(io.BufferedReader):
    """Read a zip, but no piece of it that could fill the memory."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(io.FileIO(path))

    def __del__(self) -> None:
        # One that is remembered (`adr.bundle.restore_member`) is closed when it is forgotten. One
        # that could not be opened has nothing to close.
        with contextlib.suppress(ValueError):
            self.close()

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as usual, but refuse a table of contents that is too large."""
        if size is not None and size > _TABLE_BYTES:
            raise zipfile.BadZipFile(f"its table of contents is larger than {_TABLE_BYTES:,} bytes")
        return super().read(size)


@dataclass(frozen=True)
class Entry:
    """Read one entry of a zip; its constructor `of` refuses what is unsafe."""

    info: zipfile.ZipInfo
    name: str
    mode: int
    mtime_ns: int | None

    @classmethod
    def of(cls, info: zipfile.ZipInfo) -> Entry:
        """Take an entry of the table of contents.

        Raises
        ------
        zipfile.BadZipFile
            If it has a name or type that adr does not take, or cannot be what it says.
        """
        mtime_ns, raw = _our_extra(info.extra)
        name = os.fsdecode(raw or info.filename.encode())
        mode = info.external_attr >> 16
        if not stat.S_IFMT(mode):
            mode |= (stat.S_IFDIR | 0o755) if info.is_dir() else (stat.S_IFREG | 0o644)
        if stat.S_ISDIR(mode):
            name = name.rstrip("/")
        elif not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise zipfile.BadZipFile(f"it holds a device or socket, {_shown(name)}")
        # The module cuts a name at a zero byte, and leaves the whole here.
        if "\0" in name or "\0" in info.orig_filename or _is_unsafe(name.split("/")):
            raise zipfile.BadZipFile(f"it holds an unsafe name, {_shown(name)}")
        if _is_too_long(os.fsencode(name)):
            raise zipfile.BadZipFile(f"it holds a name that is too long or deep, {_shown(name)}")
        if info.flag_bits & _IS_ENCRYPTED:
            raise zipfile.BadZipFile(f"its {_shown(name)} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise zipfile.BadZipFile(
                f"its {_shown(name)} is compressed by method {info.compress_type}, "
                f"of which adr knows only 0 and 8"
            )
        if info.file_size > _LARGEST_RATIO * info.compress_size:
            raise zipfile.BadZipFile(
                f"its {_shown(name)} declares {info.file_size:,} bytes, more than "
                f"{info.compress_size:,} can hold"
            )
        return cls(info, name, mode, mtime_ns)

    @property
    def is_folder(self) -> bool:
        """Tell whether it is a folder."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        """Tell whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)

    def target(self, source: int) -> str:
        """Return what a link points to."""
        if not 0 < self.info.file_size <= _LONGEST_PATH_BYTES:
            raise zipfile.BadZipFile(f"its link {_shown(self.name)} has no target a link can have")
        target = os.fsdecode(b"".join(self._content(source)))
        if "\0" in target:
            raise zipfile.BadZipFile(f"its link {_shown(self.name)} has no target a link can have")
        return target

    def write(self, source: int, path: str) -> None:
        """Write a file, which must not exist, and never more of it than declared.

        Parameters
        ----------
        source : int
            The open zip; its position is neither used nor changed.
        """
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            for piece in self._content(source):
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(handle, rest) :]
            self._set_attributes(handle)
        finally:
            os.close(handle)

    def _content(self, source: int) -> Iterator[bytes]:
        """Read and check the content.

        Not through `zipfile`, which takes longer to open one entry than to write most.
        """
        info = self.info
        start, left = info.header_offset + _LOCAL_HEADER_BYTES, info.compress_size
        name = info.orig_filename.encode("utf-8" if info.flag_bits & _IS_UTF8 else "cp437")
        head = os.pread(source, _LOCAL_HEADER_BYTES + len(name), info.header_offset)
        if head[:4] != _LOCAL_HEADER or head[_LOCAL_HEADER_BYTES:] != name:
            raise zipfile.BadZipFile(f"where its {_shown(self.name)} is to be is something else")
        start += sum(struct.unpack_from("<HH", head, _LOCAL_HEADER_BYTES - 4))
        inflater = zlib.decompressobj(-15) if info.compress_type else None
        size, crc, pending = 0, 0, b""
        while left or pending:
            if not pending:
                pending = os.pread(source, min(left, _CHUNK_BYTES), start)
                if not pending:
                    raise EOFError
                start, left = start + len(pending), left - len(pending)
            if inflater:
                piece = inflater.decompress(pending, _CHUNK_BYTES)
                pending = inflater.unconsumed_tail
                if not left and not pending:
                    piece += inflater.flush()
            else:
                piece, pending = pending, b""
            size, crc = size + len(piece), zlib.crc32(piece, crc)
            if size > info.file_size:
                break
            yield piece
        if size != info.file_size:
            raise zipfile.BadZipFile(f"its {_shown(self.name)} has another size than it declares")
        if crc != info.CRC:
            raise zipfile.BadZipFile(f"its {_shown(self.name)} has another checksum")

    def set_attributes(self, path: str) -> None:
        """Set permissions and time of a folder, or the time of a link."""
        if not self.is_link:
            self._set_attributes(path)
        elif self.mtime_ns is not None:
            os.utime(path, ns=(self.mtime_ns, self.mtime_ns), follow_symlinks=False)

    def _set_attributes(self, path: str | int) -> None:
        os.chmod(path, self.mode & 0o777)
        if self.mtime_ns is not None:
            os.utime(path, ns=(self.mtime_ns, self.mtime_ns))


def entries_of(archive: zipfile.ZipFile) -> dict[str, Entry]:
    """Return the entries by name, none of which lies under another that is no folder.

    Raises
    ------
    zipfile.BadZipFile
        If one is unsafe, or two do not go together.
    """
    entries: dict[str, Entry] = {}
    for info in archive.infolist():
        entry = Entry.of(info)
        if entry.name in entries:
            raise zipfile.BadZipFile(f"it holds {_shown(entry.name)} twice")
        entries[entry.name] = entry
    for name in entries:
        above = os.path.dirname(name)
        while above:
            if above in entries and not entries[above].is_folder:
                raise zipfile.BadZipFile(
                    f"its {_shown(name)} lies under something that is no folder"
                )
            above = os.path.dirname(above)
    return entries


def declared_bytes(archive: zipfile.ZipFile, zip_bytes: int) -> int:
    """Return the size of all content as the table of contents declares it.

    Raises
    ------
    zipfile.BadZipFile
        If that is more than a file of `zip_bytes` can hold, or there are too many entries, or
        some of them share their bytes.
    """
    infos = archive.infolist()
    if len(infos) > MOST_ENTRIES:
        raise zipfile.BadZipFile(
            f"it holds {len(infos):,} files and folders, and may hold {MOST_ENTRIES:,}"
        )
    declared = sum(info.file_size for info in infos)
    if declared > _LARGEST_RATIO * zip_bytes:
        raise zipfile.BadZipFile(
            f"it declares {declared:,} bytes, more than a file of its size can hold"
        )
    spans = sorted((info.header_offset, info.compress_size) for info in infos)
    for (start, size), (following, _) in pairwise(spans):
        if start + _LOCAL_HEADER_BYTES + size > following:
            raise zipfile.BadZipFile("some of its files share the same bytes")
    return declared


def _our_extra(extra: bytes) -> tuple[int | None, bytes]:
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        if kind == EXTRA and 8 <= size <= len(extra) - 4:
            _, _, mtime_ns = EXTRA_HEAD.unpack_from(extra)
            return mtime_ns, extra[EXTRA_HEAD.size : 4 + size]
        extra = extra[4 + size :]
    return None, b""


def _is_unsafe(segments: list[str]) -> bool:
    return not {"", ".", ".."}.isdisjoint(segments)


def _is_too_long(name: bytes) -> bool:
    segments = name.split(b"/")
    longest = max(map(len, segments))
    return (
        len(name) > _LONGEST_PATH_BYTES
        or longest > _LONGEST_SEGMENT_BYTES
        or len(segments) > _DEEPEST
    )


def _shown(name: str) -> str:
    cut = name[:_SHOWN_LETTERS]
    return repr(cut) if cut == name else f"{cut!r} and so on"
