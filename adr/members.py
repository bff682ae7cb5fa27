"""Which files of a root go into a bundle, and which are left out and said.

The rules, strongest first: a queued input is always taken; the folders of version control,
``__pycache__``, the folders to avoid and what is adr's own (output folders of ``adr run``, local
runners, the directories of workers) never are; then ``--exclude``, the ``.adrignore`` nearest to
the file and those above it; then `DEFAULT_EXCLUDES`. Patterns are gitignore's, so
``!*.nc`` takes back what a weaker rule left out, and nothing is taken back from within a
folder that was left out whole.

Links are kept as links where they stay inside the root, and left out where they lead out of
it: following them would copy a home or a data archive unasked. Only an input behind such a
link is bundled as the file that it is. `adr.bundle` writes what is chosen here.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adr.errors import UsageError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

__all__ = ["DEFAULT_EXCLUDES", "IGNORE_FILE", "Choice", "Member", "choose", "unreadable"]

#: Endings of the files that are left out unless a rule takes them back.
DEFAULT_EXCLUDES = (".log", ".nc", ".pyc")
#: Name of the files with rules, in any folder of the root.
IGNORE_FILE = ".adrignore"

#: Where an output folder of ``adr run`` keeps its runner.
_STATE = ".adr"
_NEVER = frozenset({".git", ".hg", ".svn", ".bzr", "CVS", "__pycache__", _STATE})
#: What a local runner keeps in its folder; the first two tell one.
_OF_RUNNERS = (
    "runner.json",
    "ledger.db",
    "ledger.db-wal",
    "ledger.db-shm",
    "objects",
    "tmp",
    "workers",
)
_WORKER = re.compile(r"adr-worker-[0-9a-f]{16}")
_EFFECTIVE = os.access in os.supports_effective_ids

#: Rules with the folder they are relative to, strongest first.
_Rules = tuple[tuple[str, "GitIgnoreSpec"], ...]


@dataclass(frozen=True, slots=True)
class Member:
    """Describe a file, a link or a folder of a bundle, as it was when it was chosen."""

    #: Path relative to the root, as `os.fsdecode` gives it.
    name: str
    #: Type and permission bits, as in `os.stat_result.st_mode`.
    mode: int
    mtime_ns: int
    #: Size of the content of a file; 0 for links and folders.
    size_bytes: int = 0
    #: Where a link points to, relative to its folder; empty for files and folders.
    target: str = ""


@dataclass(frozen=True)
class Choice:
    """Tell what of a root is bundled and what is not."""

    #: Files and links, by name.
    files: tuple[Member, ...]
    #: Folders, by name, the root itself not among them.
    folders: tuple[Member, ...]
    #: For each input that is reached through a link: the members that are this input alone
    #: (a link and what it points to), the last of which has its content.
    linked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: Paths of the files that rules left out.
    left_out: tuple[str, ...] = ()
    left_out_bytes: int = 0
    #: Those of `left_out` that have the extension of an input; likely left out unawares.
    inputs_left_out: tuple[str, ...] = ()
    #: What cannot be bundled, as sentences: links that lead out of the root, devices, sockets.
    refused: tuple[str, ...] = ()


def choose(
    root: str, inputs: Sequence[str], *, exclude: Sequence[str] = (), avoid: Iterable[str] = ()
) -> Choice:
    """Walk a root and choose what is bundled.

    Parameters
    ----------
    root : str
        Absolute path of the folder.
    inputs : sequence of str
        Paths of the queued inputs relative to the root; all are taken.
    exclude : sequence of str, optional
        Patterns in the syntax of gitignore, relative to the root.
    avoid : iterable of str, optional
        Folders that are neither walked nor counted; they may lie anywhere or not exist.

    Raises
    ------
    UsageError
        If a pattern is broken, something cannot be read, or the root lies in a folder to avoid.
    """
    chooser = _Chooser(root, inputs, avoid)
    chooser.walk((("", _spec(exclude, "the exclude patterns")),) if exclude else ())
    return chooser.choice()


def _spec(lines: Iterable[str], where: str) -> GitIgnoreSpec:
    from pathspec import GitIgnoreSpec

    try:
        return GitIgnoreSpec.from_lines(lines)
    except ValueError as error:
        raise UsageError(f"{where} are broken, they follow the rules of gitignore: {error}") from (
            error
        )


class _Chooser:
    def __init__(self, root: str, inputs: Sequence[str], avoid: Iterable[str]) -> None:
        self.root = root
        self.real_root = os.path.realpath(root)
        self.avoid = self._identify(avoid)
        self.kinds = {os.path.splitext(name)[1] for name in inputs}
        self.files: list[Member] = []
        #: The few numbers that modes are, each as the one object that stands for it.
        self.modes: dict[int, int] = {}
        self.folders: dict[str, Member] = {}
        self.left_out: list[str] = []
        self.left_out_bytes = 0
        self.inputs_left_out: list[str] = []
        self.refused: list[str] = []
        #: What is taken whatever the rules say, and whether it is a link to be kept as one.
        self.forced: dict[str, bool] = {}
        self.real_folders = {"": ""}
        self.linked: dict[str, tuple[str, ...]] = {}
        for name in inputs:
            own = self._force(name)
            if own != (name,):
                self.linked[name] = own

    def choice(self) -> Choice:
        return Choice(
            files=tuple(sorted(self.files, key=_by_name)),
            folders=tuple(sorted(self.folders.values(), key=_by_name)),
            linked=self.linked,
            left_out=tuple(sorted(self.left_out)),
            left_out_bytes=self.left_out_bytes,
            inputs_left_out=tuple(sorted(self.inputs_left_out)),
            refused=tuple(sorted(self.refused)),
        )

    def walk(self, exclude: _Rules) -> None:
        pending: list[tuple[str, _Rules]] = [("", ())]
        while pending:
            folder, outer = pending.pop()
            nested = outer
            if os.path.isfile(self._path(os.path.join(folder, IGNORE_FILE))):
                nested = (self._ignore_file(folder), *outer)
            rules = (*exclude, *nested)
            prefix = folder + "/" if folder else ""
            for entry in self._entries(folder):
                name = prefix + entry.name
                if name in self.forced:
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if self._take(name, entry.name, status, rules):
                    pending.append((name, nested))
        for name, is_link in self.forced.items():
            self._take_forced(name, is_link)

    def _entries(self, folder: str) -> Iterator[os.DirEntry[str]]:
        """Yield what is in a folder, which may be very much."""
        try:
            with os.scandir(self._path(folder)) as found:
                yield from found
        except OSError as error:
            raise unreadable(self._path(folder), error) from error

    def _take(self, name: str, base: str, status: os.stat_result, rules: _Rules) -> bool:
        """Take or leave out one entry, and tell whether it is a folder to be walked."""
        is_folder = stat.S_ISDIR(status.st_mode)
        if is_folder and (status.st_dev, status.st_ino) in self.avoid:
            return False
        never = base in _NEVER and (is_folder or base == ".git")
        never = never or (is_folder and self._is_of_adr(name)) or self._is_part_of_runner(name)
        if never or _excluded(name, is_folder, rules):
            self._leave_out(name, status, tell=not never)
            return False
        if is_folder:
            self.folders[name] = Member(name, status.st_mode, status.st_mtime_ns)
            return True
        if stat.S_ISREG(status.st_mode):
            self._add_file(name, status)
        elif stat.S_ISLNK(status.st_mode):
            self._add_link(name, status)
        else:
            self.refused.append(f"{name} is neither a file nor a folder")
        return False

    def _is_of_adr(self, name: str) -> bool:
        """Tell whether a folder is adr's own, and none in which an input lies."""
        path = self._path(name)
        own = (
            _is_runner(path)
            or os.path.isfile(os.path.join(path, _STATE, _OF_RUNNERS[0]))
            or (
                _WORKER.fullmatch(os.path.basename(name)) is not None
                and os.path.isfile(os.path.join(path, "lock"))
            )
        )
        return own and not any(each.startswith(name + "/") for each in self.forced)

    def _is_part_of_runner(self, name: str) -> bool:
        """Tell whether something is of a runner in whose folder there are inputs as well."""
        folder, base = os.path.split(name)
        return base in _OF_RUNNERS and _is_runner(self._path(folder))

    def _take_forced(self, name: str, is_link: bool) -> None:
        try:
            status = os.stat(self._path(name), follow_symlinks=not is_link)
            folder = os.path.dirname(name)
            while folder and folder not in self.folders:
                about = os.stat(self._path(folder))
                self.folders[folder] = Member(folder, about.st_mode, about.st_mtime_ns)
                folder = os.path.dirname(folder)
        except OSError as error:
            raise unreadable(self._path(name), error) from error
        if is_link:
            self._add_link(name, status)
        else:
            self._add_file(name, status)

    def _add_file(self, name: str, status: os.stat_result) -> None:
        if not os.access(self._path(name), os.R_OK, effective_ids=_EFFECTIVE):
            raise unreadable(self._path(name), PermissionError(0, "permission denied"))
        mode = self.modes.setdefault(status.st_mode, status.st_mode)
        self.files.append(Member(name, mode, status.st_mtime_ns, status.st_size))

    def _add_link(self, name: str, status: os.stat_result) -> None:
        target = self._link_target(name)
        if target is None:
            self.refused.append(f"{name} is a link that leads out of the root")
        else:
            self.files.append(Member(name, status.st_mode, status.st_mtime_ns, target=target))

    def _link_target(self, name: str) -> str | None:
        text = os.readlink(self._path(name))
        folder = os.path.dirname(name)
        inside = self._inside(os.path.realpath(self._path(name)))
        if inside is None:
            return None
        lexical = os.path.normpath(os.path.join(folder, text))
        plain = not os.path.isabs(text) and lexical.split("/")[0] != ".."
        if plain and name not in self.forced:
            return text
        # The way of a forced link may lead over links that a rule leaves out.
        return os.path.relpath("/" + inside, "/" + folder)

    def _force(self, name: str) -> tuple[str, ...]:
        """Have an input taken, and return the members that are this input alone."""
        folder, base = os.path.split(name)
        real = self._real_folder(folder)
        if real != folder:
            name = os.path.join(real, base)
        own = [name]
        is_link = os.path.islink(self._path(name))
        target = self._inside(os.path.realpath(self._path(name))) if is_link else None
        if target is not None:
            own.append(target)
            self.forced[name] = True
        self.forced[own[-1]] = False
        return tuple(own)

    def _real_folder(self, folder: str) -> str:
        """Follow the links in the path of a folder that stay inside the root."""
        if folder not in self.real_folders:
            above, base = os.path.split(folder)
            real = os.path.join(self._real_folder(above), base)
            if os.path.islink(self._path(real)):
                target = self._inside(os.path.realpath(self._path(real)))
                if target is not None:
                    self.forced[real] = True
                    real = target
            self.real_folders[folder] = real
        return self.real_folders[folder]

    def _inside(self, real: str) -> str | None:
        """Return a resolved path relative to the root, or None where it lies outside."""
        if real == self.real_root:
            return ""
        start = self.real_root.rstrip("/") + "/"
        return real[len(start) :] if real.startswith(start) else None

    def _leave_out(self, name: str, status: os.stat_result, *, tell: bool) -> None:
        if not stat.S_ISDIR(status.st_mode):
            self._count_left_out(name, status.st_size, tell=tell)
            return
        for folder, _, names in os.walk(self._path(name)):
            within = os.path.relpath(folder, self.root)
            for base in names:
                path = os.path.join(within, base)
                if path not in self.forced:
                    try:
                        size = os.lstat(self._path(path)).st_size
                    except FileNotFoundError:
                        continue
                    self._count_left_out(path, size, tell=tell)

    def _count_left_out(self, name: str, size_bytes: int, *, tell: bool) -> None:
        self.left_out.append(name)
        self.left_out_bytes += size_bytes
        if tell and os.path.splitext(name)[1] in self.kinds:
            self.inputs_left_out.append(name)

    def _ignore_file(self, folder: str) -> tuple[str, GitIgnoreSpec]:
        path = os.path.join(self._path(folder), IGNORE_FILE)
        try:
            with open(path, "rb") as file:
                lines = [line.rstrip("\r") for line in os.fsdecode(file.read()).split("\n")]
        except OSError as error:
            raise unreadable(path, error) from error
        return (folder + "/" if folder else "", _spec(lines, f"the patterns in {path}"))

    def _identify(self, avoid: Iterable[str]) -> set[tuple[int, int]]:
        """Know folders by device and inode, so that no link or mount hides one."""
        known = {}
        for folder in avoid:
            try:
                status = os.stat(folder)
            except OSError:
                continue
            known[status.st_dev, status.st_ino] = folder
        above = self.real_root
        while True:
            status = os.stat(above)
            if (status.st_dev, status.st_ino) in known:
                raise UsageError(
                    f"the files lie in {known[status.st_dev, status.st_ino]}, which adr itself "
                    f"writes to and never bundles: choose another folder for either"
                )
            if above == os.path.dirname(above):
                return set(known)
            above = os.path.dirname(above)

    def _path(self, name: str) -> str:
        return os.path.join(self.root, name)


def _by_name(member: Member) -> str:
    return member.name


def _is_runner(path: str) -> bool:
    return all(os.path.isfile(os.path.join(path, each)) for each in _OF_RUNNERS[:2])


def _excluded(name: str, is_folder: bool, rules: _Rules) -> bool:
    path = name + "/" if is_folder else name
    for base, spec in rules:
        verdict = spec.check_file(path[len(base) :]).include
        if verdict is not None:
            return verdict
    return not is_folder and name.endswith(DEFAULT_EXCLUDES)


def unreadable(path: str, error: OSError) -> UsageError:
    """Return what to raise where a file or folder cannot be read."""
    return UsageError(
        f"cannot read {path}: {error.strerror}; make it readable or leave it out with --exclude"
    )
