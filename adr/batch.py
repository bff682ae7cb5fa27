"""From files to a batch: root, jobs and fingerprints.

`plan_batch` looks at everything and changes nothing, so that a plan can be shown, refused or
cut down before anything is stored. What goes into the bundle is chosen by `adr.members`, its
zip is written by `adr.bundle`, commands and labels come from `adr.templates`, and
`adr.manifest` writes down what was queued.
File contents are read only where fingerprints are asked for.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from adr.errors import UsageError
from adr.inputfiles import digests
from adr.joblimits import JobLimits
from adr.manifest import compact_json
from adr.members import Member, choose
from adr.models import SCHEMA, Job
from adr.progress import SILENT, Progress
from adr.templates import expand, labels

__all__ = [
    "BatchPlan",
    "find_root",
    "new_batch_id",
    "plan_batch",
]

FilePath = str | os.PathLike[str]

_LARGEST_BYTES = 1 << 30
_MOST_OTHER_FILES = 10_000
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def find_root(files: Sequence[FilePath]) -> str:
    """Return the common root of a collection of file paths.

    Parameters
    ----------
    files : list
        Paths of files; they need not exist, and links are not followed.

    Returns
    -------
    str
        Absolute path of the deepest folder that holds all of them.

    Raises
    ------
    UsageError
        If there are no files.
    """
    if not files:
        raise UsageError("no input files: name at least one")
    folders = {os.path.join(os.path.dirname(_absolute(path)), "") for path in files}
    # What these two have in common all have, and each path that is taken apart takes memory.
    return os.path.commonpath([min(folders), max(folders)])


@dataclass(frozen=True)
class BatchPlan:
    """Say what would be queued: the jobs, and the files that go with them."""

    root: Path
    #: Jobs in the order of their files; their batch is empty until `with_batch`.
    jobs: tuple[Job, ...]
    #: Files and links of the bundle.
    files: tuple[Member, ...]
    #: Folders of the bundle.
    folders: tuple[Member, ...] = ()
    #: Paths of the files that rules left out, and their size.
    left_out: tuple[str, ...] = ()
    left_out_bytes: int = 0
    #: Those of `left_out` that have the extension of an input.
    inputs_left_out: tuple[str, ...] = ()
    #: What cannot be bundled, as sentences.
    refused: tuple[str, ...] = ()
    #: How many files were named again and are queued once.
    duplicates: int = 0
    #: As in `adr.members.Choice`.
    linked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def members(self) -> tuple[Member, ...]:
        """Return everything that `adr.bundle.write_bundle` is to write."""
        return self.folders + self.files

    @property
    def size_bytes(self) -> int:
        """Return the size of all files of the bundle."""
        return sum(member.size_bytes for member in self.files)

    @property
    def other_files(self) -> int:
        """Return the number of files that are not queued inputs."""
        return len(self.files) - len(self._inputs())

    @property
    def too_large(self) -> str | None:
        """Say why this may not be the root that was meant; None where it seems to be."""
        if self.size_bytes > _LARGEST_BYTES:
            return f"the root {self.root} has {self.size_bytes / (1 << 30):.1f} GiB to bundle"
        if self.other_files > _MOST_OTHER_FILES:
            return f"the root {self.root} has {self.other_files:,} files beside the queued ones"
        return None

    def with_batch(self, batch: str) -> BatchPlan:
        """Return the plan with jobs of this batch."""
        return replace(self, jobs=tuple(replace(job, batch=batch) for job in self.jobs))

    def only(self, indices: Iterable[int]) -> BatchPlan:
        """Return the plan of some of its jobs, with their inputs and all shared files.

        Index, count and label of a job stay as they are.
        """
        wanted = set(indices)
        kept = replace(self, jobs=tuple(job for job in self.jobs if job.index in wanted))
        dropped = self._inputs() - kept._inputs()
        return replace(kept, files=tuple(each for each in self.files if each.name not in dropped))

    def with_fingerprints(self, progress: Progress = SILENT, batch: str = "") -> BatchPlan:
        """Return the plan with a fingerprint on every job; reads all files, each once.

        With `batch` they are jobs of that batch as well, as `with_batch` makes them.

        Jobs with equal fingerprints do the same: same expanded command, pre- and
        postprocessing, store patterns, environment, content of the input, and same path,
        content and executability of every bundled file that is not another job's input.

        Raises
        ------
        UsageError
            If a file cannot be read.
        AdrError
            If a file vanished or changed since the plan was made.
        """
        # Of inputs alone, of which there may be very many.
        contents = dict.fromkeys((name for job in self.jobs for name in self._own(job)), b"")
        shared = hashlib.sha256()
        for member, content in digests(self.root, self.files, progress):
            if member.name in contents:
                contents[member.name] = content
            else:
                said = content.hex() if stat.S_ISREG(member.mode) else member.target
                about = (member.name, stat.S_IFMT(member.mode), member.mode & 0o111 != 0, said)
                shared.update(compact_json(about) + b"\n")
        common = shared.hexdigest()
        return replace(
            self,
            jobs=tuple(
                replace(
                    job,
                    batch=batch or job.batch,
                    fingerprint=_fingerprint(job, contents[self._own(job)[-1]].hex(), common),
                )
                for job in self.jobs
            ),
        )

    def _own(self, job: Job) -> tuple[str, ...]:
        assert job.input is not None
        return self.linked.get(job.input, (job.input,))

    def _inputs(self) -> set[str]:
        return {name for job in self.jobs for name in self._own(job)}


def plan_batch(
    files: Iterable[FilePath],
    *,
    command: str | None,
    preprocessing: str | None = None,
    postprocessing: str | None = None,
    store_patterns: Iterable[str] = (),
    root: FilePath | None = None,
    exclude: Iterable[str] = (),
    env: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    limits: JobLimits | None = None,
    avoid: Iterable[FilePath] = (),
) -> BatchPlan:
    """Plan one job per file, after a look at all that could be wrong.

    Parameters
    ----------
    files : iterable of path
        Input files; one that is named again is queued once.
    command : str
        Command template, see `adr.templates.expand`.
    preprocessing, postprocessing : str, optional
        Shell text run before and after the command.
    store_patterns : iterable of str, optional
        Regular expressions that choose the results.
    root : path, optional
        Folder to bundle [default: the common root of the files].
    exclude : iterable of str, optional
        Patterns of what not to bundle, as in gitignore.
    env : mapping, optional
        Variables for the environment of the jobs.
    limits : JobLimits, optional
        How long and how often a job may run.
    avoid : iterable of path, optional
        Folders never bundled, wherever they lie.

    Raises
    ------
    UsageError
        If any of it cannot be used.
    """
    if command is None or not command.strip():
        raise UsageError("no command: say with --command what to run on each file")
    patterns = _checked_patterns(
        (store_patterns,) if isinstance(store_patterns, str) else store_patterns
    )
    variables = _checked_env(env)
    paths = _checked_files([files] if isinstance(files, str | os.PathLike) else list(files))
    unique = list(dict.fromkeys(paths))
    duplicates = len(paths) - len(unique)
    folder = _checked_root(root, unique)
    names = _relative(unique, folder)
    del paths, unique
    choice = choose(
        folder,
        names,
        exclude=[exclude] if isinstance(exclude, str) else list(exclude),
        avoid=[_absolute(each) for each in avoid],
    )
    jobs = tuple(
        Job(
            batch="",
            index=index,
            count=len(names),
            label=label,
            command=expand(command, name, index),
            input=name,
            preprocessing=preprocessing or None,
            postprocessing=postprocessing or None,
            store=patterns,
            env=variables,
            **(limits or JobLimits()).to_dict(),
        )
        for index, (name, label) in enumerate(zip(names, labels(names), strict=True), 1)
    )
    return BatchPlan(
        root=Path(folder),
        jobs=jobs,
        files=choice.files,
        folders=choice.folders,
        left_out=choice.left_out,
        left_out_bytes=choice.left_out_bytes,
        inputs_left_out=choice.inputs_left_out,
        refused=choice.refused,
        duplicates=duplicates,
        linked=choice.linked,
    )


def _absolute(path: FilePath) -> str:
    text = os.path.abspath(path)
    # POSIX lets a path begin with two slashes and mean something else; Linux does not.
    text = text[1:] if text.startswith("//") else text
    # Mostly it is the same, and need not be kept twice.
    return path if isinstance(path, str) and path == text else text


def _checked_files(files: Sequence[FilePath]) -> list[str]:
    if not files:
        raise UsageError("no input files: name at least one")
    for path in files:
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            raise UsageError(f"no such file: {os.fspath(path)}") from error
        except OSError as error:
            raise UsageError(f"cannot read {os.fspath(path)}: {error.strerror}") from error
        if stat.S_ISDIR(mode):
            raise UsageError(
                f"{os.fspath(path)} is a folder, not an input file: name the files in it"
            )
        if not stat.S_ISREG(mode):
            raise UsageError(f"{os.fspath(path)} is no regular file: it cannot be an input")
    return [_absolute(path) for path in files]


def _checked_root(root: FilePath | None, paths: Sequence[str]) -> str:
    if root is None:
        found = find_root(paths)
        if found == "/":
            raise UsageError(
                "the files have no folder in common but /, which would be bundled whole: "
                "queue them apart, or copy them into one folder"
            )
        return found
    if not os.path.isdir(root):
        raise UsageError(f"the root {os.fspath(root)} is no folder: name one that holds the files")
    return _absolute(root)


def _relative(paths: Sequence[str], root: str) -> list[str]:
    start = root.rstrip("/") + "/"
    for path in paths:
        if not path.startswith(start):
            raise UsageError(f"{path} lies outside the root {root}: choose a root that holds it")
    return [path[len(start) :] for path in paths]


def _checked_patterns(patterns: Iterable[str]) -> tuple[str, ...]:
    checked = tuple(patterns)
    for pattern in checked:
        _check_pattern(pattern)
    return checked


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"the store pattern {pattern!r} is no regular expression: {error}"
        ) from error


def _checked_env(
    env: Mapping[str, str] | Iterable[tuple[str, str]],
) -> tuple[tuple[str, str], ...]:
    variables = dict(env)
    for name, value in variables.items():
        if not _ENV_NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} cannot name an environment variable: use letters, digits and _"
            )
        if "\0" in value:
            raise UsageError(f"the environment variable {name} cannot hold a NUL character")
    return tuple(sorted(variables.items()))


def _fingerprint(job: Job, content: str, common: str) -> str:
    parts = (
        f"adr job {SCHEMA}",
        job.command,
        job.preprocessing,
        job.postprocessing,
        job.store,
        job.env,
        content,
        common,
    )
    return hashlib.sha256(compact_json(parts)).hexdigest()


def new_batch_id(root: FilePath, now: float | None = None) -> str:
    """Make the id of a new batch, such as ``20261120-0912-nickling1995-18165f``.

    Parameters
    ----------
    root : path
        Folder whose name it carries.
    now : float, optional
        Seconds since the epoch; it is written in UTC.
    """
    moment = time.strftime("%Y%m%d-%H%M", time.gmtime(now))
    name = re.sub(r"[^a-z0-9._-]+", "-", os.path.basename(_absolute(root)).lower())
    name = re.sub(r"\.{2,}", ".", name)[:40].strip("-.")
    return "-".join(filter(None, (moment, name, secrets.token_hex(3))))
