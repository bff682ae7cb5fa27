"""What a zip says it holds, taken for true only as far as it can be checked.

A bundle comes from a store that others may write to, so `adr.bundle` unpacks nothing that has
not passed here: no name, type, target or size is trusted. What adr itself never writes is
refused, which leaves little to go wrong: ciphers, rare methods of compression, parts that overlap.

Of each entry nothing is kept but where it stands (`adr.ziptable`), since there may be very many.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

from adr.ziptable import Line, extra_fields, line_at, lines, table_of

__all__ = ["EXTRA", "EXTRA_HEAD", "MOST_ENTRIES", "Entries", "Entry"]

#: Id of our extra field: time of change in nanoseconds, then the name where it is not UTF-8.
EXTRA = 0x6461
EXTRA_HEAD = struct.Struct("<HHq")
_TIME = struct.Struct("<q")
#: As many files, links and folders a bundle may hold.
MOST_ENTRIES = 1_000_000

_CHUNK_BYTES = 1 << 20
#: Deflate cannot shrink anything to less than a 1,032nd, so a larger ratio is a trap.
_LARGEST_RATIO = 1032
_STORED, _DEFLATED = 0, 8
_LOCAL_HEADER = b"PK\3\4"
_LOCAL_HEADER_BYTES = 30
#: Limits of Linux: PATH_MAX, with its zero, and NAME_MAX.
_LONGEST_PATH_BYTES = 4095
_LONGEST_SEGMENT_BYTES = 255
#: Removing a tree takes a call of a function for each level, and Python bounds these.
_DEEPEST = 256
_SHOWN_LETTERS = 100
_IS_ENCRYPTED = 0x1


@dataclass(frozen=True, slots=True)
class Entry:
    """Read one entry of a zip; its constructor `of` refuses what is unsafe."""

    line: Line
    name: str
    mode: int
    mtime_ns: int | None

    @classmethod
    def of(cls, line: Line) -> Entry:
        """Take an entry of the table of contents.

        Raises
        ------
        zipfile.BadZipFile
            If it has a name or type that adr does not take, or cannot be what it says.
        """
        mtime_ns, raw = _our_extra(line.extra)
        name = os.fsdecode(raw) if raw else line.name
        mode = line.attributes >> 16
        if not stat.S_IFMT(mode):
            mode |= (stat.S_IFDIR | 0o755) if line.name.endswith("/") else (stat.S_IFREG | 0o644)
        if stat.S_ISDIR(mode):
            name = name.rstrip("/")
        elif not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise zipfile.BadZipFile(f"it holds a device or socket, {_shown(name)}")
        if "\0" in name or _is_unsafe(name.split("/")):
            raise zipfile.BadZipFile(f"it holds an unsafe name, {_shown(name)}")
        if _is_too_long(os.fsencode(name)):
            raise zipfile.BadZipFile(f"it holds a name that is too long or deep, {_shown(name)}")
        if line.flags & _IS_ENCRYPTED:
            raise zipfile.BadZipFile(f"its {_shown(name)} is encrypted")
        if line.method not in (_STORED, _DEFLATED):
            raise zipfile.BadZipFile(
                f"its {_shown(name)} is compressed by method {line.method}, "
                f"of which adr knows only 0 and 8"
            )
        if line.size_bytes > _LARGEST_RATIO * line.packed_bytes:
            raise zipfile.BadZipFile(
                f"its {_shown(name)} declares {line.size_bytes:,} bytes, more than "
                f"{line.packed_bytes:,} can hold"
            )
        return cls(line, name, mode, mtime_ns)

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
        if not 0 < self.line.size_bytes <= _LONGEST_PATH_BYTES:
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
        line = self.line
        start, left = line.offset + _LOCAL_HEADER_BYTES, line.packed_bytes
        head = os.pread(source, _LOCAL_HEADER_BYTES + len(line.raw_name), line.offset)
        if head[:4] != _LOCAL_HEADER or head[_LOCAL_HEADER_BYTES:] != line.raw_name:
            raise zipfile.BadZipFile(f"where its {_shown(self.name)} is to be is something else")
        start += sum(struct.unpack_from("<HH", head, _LOCAL_HEADER_BYTES - 4))
        inflater = zlib.decompressobj(-15) if line.method == _DEFLATED else None
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
            if size > line.size_bytes:
                break
            yield piece
        if size != line.size_bytes:
            raise zipfile.BadZipFile(f"its {_shown(self.name)} has another size than it declares")
        if crc != line.checksum:
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


class Entries:
    """Know the entries of a zip, each of which is read again when it is asked for.

    Parameters
    ----------
    path : path
        The zip, which is open for as long as this object lives.

    Raises
    ------
    zipfile.BadZipFile
        If it is no zip or one of its entries is unsafe, two do not go together, or they declare
        more than its size can hold.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        #: The open zip; its position is neither used nor changed.
        self.source = -1
        self.source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        size_bytes = os.fstat(self.source).st_size
        self._table = table_of(self.source, size_bytes)
        if self._table.entries > MOST_ENTRIES:
            raise zipfile.BadZipFile(
                f"it holds {self._table.entries:,} files and folders, and may hold {MOST_ENTRIES:,}"
            )
        #: Size of all content as the table of contents declares it.
        self.declared_bytes = 0
        #: In the order of the hashes of their names, which take no memory.
        self._hashes = array("q")
        self._places = array("q")
        folders = self._read_all()
        if self.declared_bytes > _LARGEST_RATIO * size_bytes:
            raise zipfile.BadZipFile(
                f"it declares {self.declared_bytes:,} bytes, more than a file of its size can hold"
            )
        self._check_above(folders)

    def __del__(self) -> None:
        # One that is remembered (`adr.bundle.restore_member`) is closed when it is forgotten.
        if self.source >= 0:
            os.close(self.source)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._hashes)

    def __iter__(self) -> Iterator[Entry]:
        """Read the entries in the order of the zip."""
        return map(Entry.of, lines(self.source, self._table))

    def get(self, name: str) -> Entry | None:
        """Read an entry again, None where there is none of that name."""
        number = bisect_left(self._hashes, hash(name))
        while number < len(self._hashes) and self._hashes[number] == hash(name):
            entry = self._at(number)
            if entry.name == name:
                return entry
            number += 1
        return None

    def _read_all(self) -> set[str]:
        """Read the table of contents, and return the names of the folders that it tells of."""
        hashes, places, folders = array("q"), array("q"), set()
        end = 0
        for entry in self:
            line = entry.line
            # Whoever writes a zip writes the entries in the order of the table.
            if line.offset < end:
                raise zipfile.BadZipFile("some of its files share the same bytes")
            end = line.offset + _LOCAL_HEADER_BYTES + len(line.raw_name) + line.packed_bytes
            self.declared_bytes += line.size_bytes
            hashes.append(hash(entry.name))
            places.append(line.place)
            folders.add(os.path.dirname(entry.name))
            if len(hashes) > self._table.entries:
                break
        if len(hashes) != self._table.entries:
            raise zipfile.BadZipFile("it holds another number of files and folders than it says")
        if end > self._table.start:
            raise zipfile.BadZipFile("some of its files share the same bytes")
        order = sorted(range(len(hashes)), key=hashes.__getitem__)
        self._hashes.extend(map(hashes.__getitem__, order))
        self._places.extend(map(places.__getitem__, order))
        self._check_different()
        return folders

    def _check_different(self) -> None:
        """Make sure that no two have the same name; other names hardly have the same hash."""
        for number in range(1, len(self._hashes)):
            if self._hashes[number] == self._hashes[number - 1]:
                entry = self._at(number)
                if self.get(entry.name) != entry:
                    raise zipfile.BadZipFile(f"it holds {_shown(entry.name)} twice")

    def _check_above(self, folders: set[str]) -> None:
        """Make sure that no entry lies under another that is no folder."""
        for folder in folders:
            above = folder
            while above:
                entry = self.get(above)
                if entry and not entry.is_folder:
                    below = next(each.name for each in self if each.name.startswith(above + "/"))
                    raise zipfile.BadZipFile(
                        f"its {_shown(below)} lies under something that is no folder"
                    )
                above = os.path.dirname(above)
                if above in folders:
                    break

    def _at(self, number: int) -> Entry:
        return Entry.of(line_at(self.source, self._places[number]))


def _our_extra(extra: bytes) -> tuple[int | None, bytes]:
    for kind, content in extra_fields(extra):
        if kind == EXTRA and len(content) >= _TIME.size:
            return _TIME.unpack_from(content)[0], content[_TIME.size :]
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
