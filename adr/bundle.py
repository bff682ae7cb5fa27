"""The input bundle: a zip of the root, streamed both ways.

A plain zip, so that anyone can look into it; what zip cannot say (times to the nanosecond,
names that are not UTF-8) stands in an extra field of ours that other programs skip. It is
written in one pass without seeking back (`adr.zipwriter`).
`adr.members` chooses what goes in; workers unpack it and put single originals back.

A bundle comes from a store that others may write to: `adr.entries` says what of it is refused.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from adr.entries import EXTRA, EXTRA_HEAD, MOST_ENTRIES, Entries, Entry
from adr.errors import AdrError, NotFound, UsageError
from adr.inputfiles import are_small, read_member
from adr.members import Member
from adr.models import new_id
from adr.progress import SILENT, Progress
from adr.zipwriter import ZipWriter

__all__ = [
    "Written",
    "forget_bundle",
    "has_small_files",
    "restore_member",
    "stream_bundle",
    "unpack_bundle",
    "unpacked_bytes",
    "write_bundle",
]

#: So much is told of what another module says about a bundle.
_SAID_LETTERS = 300
_BUFFER_BYTES = 256 << 10


@dataclass(frozen=True)
class Written:
    """Describe a bundle that was written."""

    size_bytes: int


def write_bundle(
    root: str | os.PathLike[str],
    members: Sequence[Member],
    target_path: str | os.PathLike[str],
    *,
    compress: bool,
    progress: Progress = SILENT,
) -> Written:
    """Write members of a root to a zip; on an error no file is left.

    The same members with the same content make the same bytes, on the same installation.

    Parameters
    ----------
    members : sequence of Member
        Each folder before what is in it.
    compress : bool
        Deflate what shrinks by it; without, everything is stored.
    progress : Progress, optional
        Told of the bytes that were read.

    Raises
    ------
    UsageError
        If a file cannot be read, or there are more than a bundle may hold.
    AdrError
        If a file vanished or changed since it was chosen, or the zip cannot be written.
    """
    try:
        with open(target_path, "wb", buffering=_BUFFER_BYTES) as file:
            return stream_bundle(root, members, file.write, compress=compress, progress=progress)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(target_path)
        if isinstance(error, OSError):
            raise AdrError(
                f"cannot write the bundle {os.fspath(target_path)}: {error.strerror}"
            ) from error
        raise


def stream_bundle(
    root: str | os.PathLike[str],
    members: Sequence[Member],
    write: Callable[[bytes], object],
    *,
    compress: bool,
    progress: Progress = SILENT,
) -> Written:
    """Write members of a root as a zip, from its beginning to its end; see `write_bundle`.

    Parameters
    ----------
    write : callable
        Takes the bytes of the zip in their order.
    """
    if len(members) > MOST_ENTRIES:
        raise UsageError(
            f"there are {len(members):,} files and folders in {os.fspath(root)}, and a bundle may "
            f"hold {MOST_ENTRIES:,}: leave some out with --exclude, or choose a smaller --root"
        )
    progress.start("bundling", sum(member.size_bytes for member in members), "bytes")
    try:
        with ZipWriter(write, compress=compress) as archive:
            for member in members:
                _add(archive, root, member, progress)
        return Written(archive.size_bytes)
    finally:
        progress.finish()


def _add(
    archive: ZipWriter, root: str | os.PathLike[str], member: Member, progress: Progress
) -> None:
    raw = os.fsencode(member.name)
    name = raw.decode("utf-8", "backslashreplace")
    is_folder = stat.S_ISDIR(member.mode)
    odd = b"" if name.encode() == raw else raw
    pieces: Iterable[bytes]
    if stat.S_ISREG(member.mode):
        pieces, size_bytes = _told(read_member(root, member), progress), member.size_bytes
    else:
        target = os.fsencode(member.target)
        pieces, size_bytes = [target], len(target)
    archive.add(
        name + "/" if is_folder else name,
        pieces,
        size_bytes,
        mtime_s=member.mtime_ns // 10**9,
        attributes=member.mode << 16 | (0x10 if is_folder else 0),
        extra=EXTRA_HEAD.pack(EXTRA, 8 + len(odd), member.mtime_ns) + odd,
    )


def _told(chunks: Iterable[bytes], progress: Progress) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        progress.advance(len(chunk))


def unpacked_bytes(zip_path: str | os.PathLike[str]) -> int:
    """Return the size of all content of a bundle, as its directory declares it.

    Raises
    ------
    AdrError
        If it is no zip or declares more than its size can hold.
    """
    with _errors(zip_path, "read"):
        return _opened(zip_path).declared_bytes


def has_small_files(zip_path: str | os.PathLike[str]) -> bool:
    """Tell whether it takes longer to make the files of a bundle than to fill them.

    Raises
    ------
    AdrError
        As `unpacked_bytes`.
    """
    with _errors(zip_path, "read"):
        entries = _opened(zip_path)
        return are_small(len(entries), entries.declared_bytes)


def unpack_bundle(zip_path: str | os.PathLike[str], target_dir: str | os.PathLike[str]) -> None:
    """Unpack a bundle into a folder that is empty or does not exist.

    It is unpacked beside and renamed: `target_dir` holds all of it or, on an error, nothing.

    Raises
    ------
    AdrError
        If the folder has content or cannot be written to, or the bundle is broken or unsafe:
        names or links that leave the folder, devices, content of another size than declared.
    """
    target = os.path.realpath(target_dir)
    beside = f"{target}.{new_id()}.part"
    with _errors(zip_path, "unpacked"):
        exists = os.path.exists(target)
        if exists and os.listdir(target):
            raise AdrError(f"cannot unpack a bundle into {target}: it is not empty")
        os.mkdir(beside)
        try:
            if exists:
                shutil.copymode(target, beside)
            _unpack(_opened(zip_path), beside)
            os.rename(beside, target)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise


def restore_member(
    zip_path: str | os.PathLike[str], name: str, target_dir: str | os.PathLike[str]
) -> None:
    """Put one original file, link or folder back in place of whatever is there now.

    The content of a folder is left alone. Thread-safe; the directory of the bundle last used
    is remembered, so that restoring a file costs what that file costs.

    Raises
    ------
    NotFound
        If the bundle has no such member.
    AdrError
        If the bundle is broken or the member cannot be written.
    """
    with _errors(zip_path, "restored from"):
        entries = _opened(zip_path)
        entry = entries.get(name)
        if entry is None:
            raise NotFound(f"the bundle {os.fspath(zip_path)} has no {name}")
        folder = _real_folder(os.path.abspath(target_dir), os.path.dirname(name))
        path = os.path.join(folder, os.path.basename(name))
        with _writable(folder):
            is_folder = os.path.isdir(path) and not os.path.islink(path)
            if is_folder and not entry.is_folder:
                shutil.rmtree(path)
            elif os.path.lexists(path) and not is_folder:
                os.unlink(path)
            if entry.is_folder:
                os.makedirs(path, exist_ok=True)
            elif entry.is_link:
                os.symlink(entry.target(entries.source), path)
            else:
                entry.write(entries.source, path)
                return
            entry.set_attributes(path)


def forget_bundle() -> None:
    """Close the bundle last used, so that one that was removed takes no room any more."""
    with _one_at_a_time:
        _read.cache_clear()


#: Slots begin with the same bundle at the same time, and its table is to be read once.
_one_at_a_time = threading.Lock()


def _opened(path: str | os.PathLike[str]) -> Entries:
    """Open a bundle for as long as it is the last one used; the stat makes a new file new."""
    with _one_at_a_time:
        status = os.stat(path)
        return _read(os.fspath(path), status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1)
def _read(path: str, inode: int, size_bytes: int, mtime_ns: int) -> Entries:
    return Entries(path)


def _unpack(entries: Entries, target: str) -> None:
    made = {""}
    links: list[Entry] = []
    folders: list[Entry] = []
    for entry in entries:
        folder = entry.name if entry.is_folder else entry.name.rpartition("/")[0]
        if folder not in made:
            os.makedirs(os.path.join(target, folder), exist_ok=True)
            made.add(folder)
        if entry.is_folder:
            folders.append(entry)
        elif entry.is_link:
            links.append(entry)
        else:
            entry.write(entries.source, os.path.join(target, entry.name))
    for entry in links:
        os.symlink(entry.target(entries.source), os.path.join(target, entry.name))
    # Only now does a chain of links show where it leads.
    real_target = os.path.realpath(target) + "/"
    for entry in links:
        path = os.path.join(target, entry.name)
        real = os.path.realpath(path)
        if os.path.isabs(os.readlink(path)) or not f"{real}/".startswith(real_target):
            raise zipfile.BadZipFile(f"its link {entry.name!r} leads out of it")
        entry.set_attributes(path)
    for entry in sorted(folders, key=lambda entry: entry.name, reverse=True):
        entry.set_attributes(os.path.join(target, entry.name))


def _real_folder(target: str, name: str) -> str:
    """Make sure that a path within `target` consists of folders, not of links to elsewhere."""
    path = target
    for part in name.split("/") if name else ():
        above, path = path, os.path.join(path, part)
        if os.path.islink(path) or not os.path.isdir(path):
            with _writable(above):
                if os.path.lexists(path):
                    os.unlink(path)
                os.mkdir(path)
    return path


@contextlib.contextmanager
def _writable(folder: str) -> Iterator[None]:
    """Lift the write protection of a folder for a moment."""
    status = os.stat(folder)
    if status.st_mode & 0o300 == 0o300:
        yield
        return
    os.chmod(folder, status.st_mode | 0o300)
    try:
        yield
    finally:
        os.chmod(folder, stat.S_IMODE(status.st_mode))


@contextlib.contextmanager
def _errors(zip_path: str | os.PathLike[str], verb: str) -> Iterator[None]:
    try:
        yield
    except RecursionError as error:
        raise AdrError(
            f"the bundle {os.fspath(zip_path)} is broken: a chain of its links is too long"
        ) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, ValueError) as error:
        said = str(error)[:_SAID_LETTERS] or "it ends early"
        raise AdrError(f"the bundle {os.fspath(zip_path)} is broken: {said}") from error
    except (NotImplementedError, RuntimeError, OverflowError) as error:
        said = str(error)[:_SAID_LETTERS]
        raise AdrError(f"the bundle {os.fspath(zip_path)} cannot be {verb}: {said}") from error
    except OSError as error:
        where = f" ({_printable(error.filename)})" if error.filename else ""
        raise AdrError(
            f"the bundle {os.fspath(zip_path)} cannot be {verb}: {error.strerror}{where}"
        ) from error


def _printable(path: str | bytes) -> str:
    """Return a path whose names were chosen by whoever wrote the bundle."""
    text = os.fsdecode(path)
    return text if text.isprintable() else repr(text)
