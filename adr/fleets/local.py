"""Worker processes on this machine, each in a session of its own.

They outlive the shell that launched them. What is known of each lies in the directory of the
runner and not in any process, so that whoever comes later finds them again::

    <runner>/fleet/local-<n>.json    which process it is, and how to start it again
    <runner>/fleet/local-<n>.log     what it says
    <runner>/fleet/local-<n>.alive   written with each heartbeat
    <runner>/fleet/work/             where its jobs run

Which process that is, is told by `adr.fleets.processes`.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from adr.cores import cores
from adr.errors import PartialFailure, RunnerGone, ServiceError, UsageError
from adr.fleets.base import Demand, Host, HostState, LaunchPlan, LaunchReport, process_words
from adr.fleets.processes import OneProcess, inherited
from adr.fleets.specs import LocalSpec, WorkerOptions
from adr.models import SCHEMA, check_schema
from adr.progress import Progress

__all__ = ["LocalFleet"]

_TICK_S = 0.05
#: How long a worker is waited for that was asked to end; its jobs get a part of that.
_STOP_S = 60.0
_KILL_S = 10.0
_BEGIN_S = 60.0
_TAIL_BYTES = 4096

#: The process waits for a word before it becomes the worker, so that none ever runs that is
#: not on file: where its launcher is killed in between, it reads an end and leaves.
_GATE = 'cd "$1" && read -r go && shift && exec "$@" </dev/null'

#: Names of the descriptors 0, 1 and 2.
_STDIN, _STDOUT, _STDERR = range(3)


@dataclass(frozen=True)
class _Entry:
    """What is on file about one worker."""

    number: int
    process: OneProcess
    #: Words after ``adr``.
    words: tuple[str, ...]
    started_at: float
    #: Whether it was told to stop.
    stopped: bool = False
    #: Where in its log the words of this process begin.
    log_from: int = 0

    @property
    def name(self) -> str:
        return f"{LocalFleet.kind}-{self.number}"


class LocalFleet:
    """Run workers of a local runner as processes of this machine.

    Parameters
    ----------
    directory : Path
        The directory of the runner.
    """

    kind = "local"

    def __init__(self, directory: Path) -> None:
        self._runner = directory
        self._path = directory / "fleet"

    def plan(self, spec: LocalSpec, demand: Demand) -> LaunchPlan:
        """Say how many workers would be started, with how many slots each.

        Without a number of slots the workers share the cores. Without a number of workers
        they are as few as can use all cores: one, unless slots were given.
        """
        usable, slots = cores(), spec.worker.slots
        n = spec.n if spec.n is not None else -(-usable // slots) if slots else 1
        shares = [slots or max(1, usable // n + (index < usable % n)) for index in range(n)]
        each = ", ".join(map(str, shares)) if len(set(shares)) > 1 else f"{shares[0]} each"
        lines = [("workers", f"{n} on this machine"), ("slots", each)]
        if spec.worker.keep:
            lines.append(("end", "when stopped"))
        else:
            lines.append(("end", f"after {spec.worker.idle_min:g} min with nothing to do"))
            if spec.worker.max_hours is not None:
                lines.append(("limit", f"{spec.worker.max_hours:g} h"))
        options = [replace(spec.worker, slots=share) for share in shares]
        data = {"fleet": self.kind, "workers": [asdict(each) for each in options]}
        return LaunchPlan(n, tuple(lines), data, tuple(options))

    def launch(self, plan: LaunchPlan, progress: Progress) -> LaunchReport:
        """Start worker processes, and wait until each has written a heartbeat or has ended."""
        begun = []
        with self._alone():
            self._forget(entry for entry in self._entries() if not entry.process.runs)
            taken = {entry.number for entry in self._entries()}
            free = (number for number in range(1, len(taken) + plan.n + 1) if number not in taken)
            for options, number in zip(plan.request, free, strict=False):
                begun.append(self._begin(number, self._words(number, options)))
        return self._begun(begun, plan.n, progress)

    def hosts(self) -> list[Host]:
        """Return the workers that run, and those that have ended since the last launch."""
        return [self._host(entry) for entry in self._entries()]

    def stop(self, hosts: Sequence[Host], progress: Progress) -> list[Host]:
        """End the workers in good order: they give their jobs back.

        Raises
        ------
        PartialFailure
            If some have not ended after a minute; they end as soon as they can, and a second
            call makes them leave without waiting for anything.
        """
        chosen = [self._put(replace(entry, stopped=True)) for entry in self._chosen(hosts)]
        late = self._ended(chosen, progress)
        if late:
            raise PartialFailure(
                f"{_named(late)} had not ended after {_STOP_S:.0f} s: adr list shows when, "
                f"and adr stop again makes them leave at once",
                succeeded=[entry.name for entry in chosen if entry not in late],
                failed=[entry.name for entry in late],
            )
        return [self._host(entry) for entry in chosen]

    def start(self, hosts: Sequence[Host], progress: Progress) -> list[Host]:
        """Start workers again that were stopped or have ended, with the options they had."""
        begun, running = [], []
        with self._alone():
            for entry in self._chosen(hosts):
                if entry.process.runs:
                    running.append(self._host(entry))
                else:
                    begun.append(self._begin(entry.number, entry.words))
        report = self._begun(begun, len(begun), progress)
        if report.failed:
            said = "; ".join(f"{name}: {why}" for name, why in report.failed.items())
            raise PartialFailure(
                f"cannot start {len(report.failed)} of {len(begun)} workers ({said})",
                succeeded=[host.name for host in report.hosts],
                failed=list(report.failed),
            )
        return [*running, *report.hosts]

    def terminate(self, hosts: Sequence[Host], progress: Progress) -> None:
        """End the workers, killing those that do not end in good order, and forget them."""
        chosen = self._chosen(hosts)
        late = self._ended(chosen, progress)
        for entry in late:
            entry.process.send(signal.SIGKILL)
        left = _outlived(late, _KILL_S)
        self._forget(entry for entry in chosen if entry not in left)
        if left:
            raise PartialFailure(
                f"{_named(left)} cannot be killed: try again",
                succeeded=[entry.name for entry in chosen if entry not in left],
                failed=[entry.name for entry in left],
            )

    def dissolve(self, progress: Progress) -> None:
        """Remove what workers have left on disk; refused while one runs."""
        running = [entry for entry in self._entries() if entry.process.runs]
        if running:
            raise ServiceError(f"{_named(running)} still run: end them with adr destroy")
        with suppress(FileNotFoundError), _naming("remove", self._path):
            shutil.rmtree(self._path)

    def output(self, host: Host) -> bytes | None:
        """Return what a worker has said so far; None where it is not of this fleet."""
        with suppress(FileNotFoundError), _naming("read", self._file(host.name, "log")):
            return self._file(host.name, "log").read_bytes()
        return None

    def _words(self, number: int, options: WorkerOptions) -> tuple[str, ...]:
        name = f"{self.kind}-{number}"
        return tuple(
            process_words(
                str(self._runner),
                options,
                host=name,
                workingdir=str(self._path / "work"),
                alive=str(self._file(name, "alive")),
            )
        )

    def _begin(self, number: int, words: tuple[str, ...]) -> _Entry:
        """Start a worker and put it on file; the caller holds the lock."""
        name = f"{self.kind}-{number}"
        self._file(name, "alive").unlink(missing_ok=True)
        # In its own folder, since a module named adr in that of the user would be taken for ours.
        command = ["/bin/sh", "-c", _GATE, "adr", str(self._path), sys.executable, "-m", "adr"]
        ours, theirs = os.pipe()
        log = os.open(self._file(name, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        before = os.fstat(log).st_size
        try:
            # Unlike a Popen, a pid that nobody waits for is nothing to complain of at the exit.
            pid = os.posix_spawn(
                command[0],
                [*command, *words],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, ours, _STDIN),
                    (os.POSIX_SPAWN_DUP2, log, _STDOUT),
                    (os.POSIX_SPAWN_DUP2, log, _STDERR),
                    *((os.POSIX_SPAWN_CLOSE, each) for each in inherited() if each > _STDERR),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP],
            )
            entry = _Entry(number, OneProcess.of(pid), words, time.time(), log_from=before)
            self._put(entry)
            os.write(theirs, b"go\n")
        finally:
            for each in (ours, theirs, log):
                os.close(each)
        return entry

    def _begun(self, entries: list[_Entry], wanted: int, progress: Progress) -> LaunchReport:
        """Wait for the first heartbeats."""
        report = LaunchReport(wanted)
        progress.start("starting workers", len(entries), "workers")
        waiting, deadline = list(entries), time.monotonic() + _BEGIN_S
        while waiting:
            for entry in list(waiting):
                if not self._file(entry.name, "alive").exists():
                    if not entry.process.runs:
                        said = self._last_words(entry).removeprefix("adr: ")
                        why = f"it ended at once: {said or 'it said nothing'}"
                    elif time.monotonic() > deadline:
                        why = (
                            f"it runs, but reached nothing within {_BEGIN_S:.0f} s: "
                            f"adr logs --worker={entry.name} shows what it says"
                        )
                    else:
                        continue
                    report.failed[entry.name] = why
                waiting.remove(entry)
                progress.advance()
            if waiting:
                time.sleep(_TICK_S)
        progress.finish()
        report.hosts = [self._host(each) for each in entries if each.name not in report.failed]
        return report

    def _ended(self, entries: Sequence[_Entry], progress: Progress) -> list[_Entry]:
        """Ask workers to end, wait for that, and return those that still run."""
        progress.start("stopping workers", len(entries), "workers")
        for entry in entries:
            entry.process.send(signal.SIGTERM)
        late = _outlived(entries, _STOP_S, progress.advance)
        progress.finish()
        return late

    def _host(self, entry: _Entry) -> Host:
        note = ""
        if entry.process.runs:
            state = HostState.STOPPING if entry.stopped else HostState.RUNNING
        elif entry.stopped:
            state = HostState.STOPPED
        else:
            state, said = HostState.ENDED, self._last_words(entry)
            note = f"ended by itself: {said.removeprefix('adr: ')}"
            # Whoever can still speak says how it went, after all that it has logged.
            if not said or re.match(r"adr: [A-Z]+: ", said):
                note = "was killed, or the machine was restarted"
        return Host(
            name=entry.name,
            fleet=self.kind,
            state=state,
            started_at=entry.started_at,
            note=note,
        )

    def _last_words(self, entry: _Entry) -> str:
        try:
            with self._file(entry.name, "log").open("rb") as log:
                log.seek(max(entry.log_from, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
                lines = log.read().decode("utf-8", "replace").split("\n")
        except OSError:
            lines = []
        said = [line.strip() for line in lines if line.strip()]
        return said[-1] if said else ""

    def _chosen(self, hosts: Sequence[Host]) -> list[_Entry]:
        names = {host.name for host in hosts}
        return [entry for entry in self._entries() if entry.name in names]

    def _entries(self) -> list[_Entry]:
        found = []
        for path in self._path.glob(f"{self.kind}-*.json"):
            if re.fullmatch(rf"{self.kind}-\d+", path.stem):
                # Another command may have forgotten it since.
                with suppress(FileNotFoundError), _naming("read", path):
                    found.append(_entry(json.loads(path.read_bytes())))
        return sorted(found, key=lambda entry: entry.number)

    def _put(self, entry: _Entry) -> _Entry:
        path = self._file(entry.name, "json")
        with _naming("write", path):
            new = path.with_suffix(".new")
            new.write_text(json.dumps({"schema": SCHEMA, **asdict(entry)}), "utf-8")
            new.replace(path)
        return entry

    def _forget(self, entries: Iterable[_Entry]) -> None:
        for entry in entries:
            for kind in ("json", "alive", "log"):
                self._file(entry.name, kind).unlink(missing_ok=True)
        if not self._entries():
            # What a killed worker has left there.
            shutil.rmtree(self._path / "work", ignore_errors=True)

    def _file(self, name: str, kind: str) -> Path:
        return self._path / f"{name}.{kind}"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other commands from starting workers meanwhile."""
        try:
            with _naming("use", self._path):
                # Not with its parents: what was destroyed must not come back.
                self._path.mkdir(mode=0o700, exist_ok=True)
                handle = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError as error:
            raise RunnerGone(
                f"there is no runner at {self._runner}: adr list shows those there are"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _entry(data: Mapping[str, Any]) -> _Entry:
    check_schema(data, "what is known of a worker process")
    return _Entry(
        number=data["number"],
        process=OneProcess(**data["process"]),
        words=tuple(data["words"]),
        started_at=data["started_at"],
        stopped=data["stopped"],
        log_from=data.get("log_from", 0),
    )


def _outlived(
    entries: Sequence[_Entry], seconds: float, ended: Callable[[], None] = lambda: None
) -> list[_Entry]:
    """Wait for processes to end, and return those that still run after that time."""
    left, deadline = list(entries), time.monotonic() + seconds
    while left:
        for entry in list(left):
            if not entry.process.runs:
                left.remove(entry)
                ended()
        if not left or time.monotonic() > deadline:
            break
        time.sleep(_TICK_S)
    return left


def _named(entries: Sequence[_Entry]) -> str:
    return ", ".join(entry.name for entry in entries)


@contextmanager
def _naming(operation: str, path: Path) -> Iterator[None]:
    """Turn an error of the system into a sentence; a missing file stays what it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(f"cannot {operation} {path}: {error.strerror}") from error
    except ValueError as error:
        raise ServiceError(f"{path} is broken ({error}): remove it") from error
