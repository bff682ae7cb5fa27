"""Which hosts a runner has: what fleets know, what heartbeats tell, and what is registered.

A fleet knows machines or processes, a heartbeat tells of a worker; `hosts` joins them by the
name of the host. Registered under ``_workers/`` are the addresses of hosts that run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from adr.errors import AdrError, Denied, NotFound, RunnerGone, UsageError
from adr.fleets.base import Host, HostState, Remembering, Telling
from adr.keys import INSTALL, LAUNCHES, SETUP, WORKERS, setup_key
from adr.orders import read_orders
from adr.runner import Runner
from adr.stores.base import ObjectStore
from adr.times import time_text
from adr.workerinfo import WorkerInfo

__all__ = [
    "HostView",
    "Hosts",
    "addresses",
    "choose",
    "deregister",
    "hosts",
    "may_have_others",
    "output_of",
    "register",
]

_log = logging.getLogger(__name__)

#: In which state a host without a worker waits to be started again, by the kind of its fleet.
#: A host over SSH is only remembered: it has run when it was last spoken to. An instance that
#: runs may still be setting itself up.
_WITHOUT_WORKER = {"local": HostState.ENDED, "ssh": HostState.RUNNING}


@dataclass(frozen=True)
class HostView:
    """Show one host: what its fleet knows of it, and what its workers say."""

    host: Host
    workers: tuple[WorkerInfo, ...] = ()
    #: Whether it wrote why it could not be set up, and has no worker.
    setup_failed: bool = False

    @property
    def name(self) -> str:
        """Return what lists and ``--hosts`` call it."""
        return self.host.name

    @property
    def slots(self) -> int:
        """Return how many jobs its workers run at once."""
        return sum(worker.slots for worker in self.workers)

    @property
    def busy(self) -> int:
        """Return how many jobs its workers run now."""
        return sum(len(worker.running) for worker in self.workers)

    @property
    def done(self) -> int:
        """Return how many jobs its workers have settled."""
        return sum(worker.done for worker in self.workers)

    @property
    def lacks_worker(self) -> bool:
        """Tell whether nothing works there although nobody has stopped it."""
        return not self.workers and _WITHOUT_WORKER.get(self.host.fleet) is self.host.state

    @property
    def note(self) -> str:
        """Return what somebody should know of it, in words."""
        failed = f"setup failed: adr logs --worker={self.name}" if self.setup_failed else ""
        silent = self.lacks_worker and self.host.state is HostState.RUNNING
        idle = f"no worker: adr start --hosts={self.name}" if silent else ""
        notes = [failed, idle, self.host.note, *(worker.note for worker in self.workers)]
        return "; ".join(dict.fromkeys(note for note in notes if note))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object; times as text."""
        data = asdict(self.host)
        del data["login"]
        return {
            **data,
            "state": self.host.state.value,
            "started_at": time_text(self.host.started_at),
            "slots": self.slots,
            "busy": self.busy,
            "done": self.done,
            "note": self.note,
            "setup_failed": self.setup_failed,
            "workers": [worker.to_dict() for worker in self.workers],
        }


class Hosts(list[HostView]):
    """List hosts, and say what it does not tell."""

    def __init__(
        self, views: Iterable[HostView] = (), not_known: Mapping[str, AdrError] | None = None
    ) -> None:
        super().__init__(views)
        #: Why hosts are left out, by the kind of their fleet.
        self.not_known = dict(not_known or {})
        #: Whether there are none since the runner has been destroyed.
        self.destroyed = False


def hosts(runner: Runner, strict: bool = False) -> Hosts:
    """Return all hosts of a runner: those of its fleets, and those that joined by themselves.

    Parameters
    ----------
    runner : Runner
        Whose hosts.
    strict : bool, optional
        Raise where a fleet cannot be asked; without, it is left out, with a warning in the log,
        and among those that are `Hosts.not_known`.
    """
    found: list[Host] = []
    ended: list[Host] = []
    trouble: dict[str, AdrError] = {}
    for kind in runner.fleets:
        try:
            fleet = runner.fleets[kind]()
            found += fleet.hosts()
            if isinstance(fleet, Remembering):
                ended += fleet.ended()
        except RunnerGone:
            raise
        except AdrError as error:
            trouble[kind] = error
    not_known: dict[str, AdrError] = {}
    for kind, why in trouble.items():
        # Whoever may not even look has launched nothing.
        expected = isinstance(why, Denied) and not may_have_others(runner.store, found)
        if strict and not expected:
            raise why
        if not expected:
            not_known[kind] = why
        level = logging.DEBUG if expected else logging.WARNING
        _log.log(level, "the hosts of the fleet %s are not known: %s", kind, why)
    views = _joined(runner, found)
    views += _unheard(runner, ended, {view.name for view in views})
    listed = Hosts(views, not_known)
    listed.destroyed = not views and read_orders(runner.store).destroyed
    return listed


def choose(views: Sequence[HostView], names: Sequence[str]) -> list[HostView]:
    """Return the hosts that are named, by their names or addresses, in the order of the list.

    Raises
    ------
    UsageError
        If there is no such host.
    """
    known = {each for view in views for each in (view.name, view.host.address)}
    for name in names:
        if name not in known or not name:
            there = ", ".join(view.name for view in views) or "none"
            raise UsageError(f"the runner has no host {name!r}: it has {there}")
    return [view for view in views if view.name in names or view.host.address in names]


def output_of(runner: Runner, name: str) -> bytes:
    """Return what a host has said: why it could not be set up, or else what its fleet has.

    Raises
    ------
    UsageError
        If there is no such host.
    AdrError
        If nothing is known of it.
    """
    views = hosts(runner)
    is_there = any(name in (view.name, view.host.address) for view in views)
    host = None if is_there else _former(runner, name)
    if host is None and not is_there:
        # It may well be one of those.
        for why in views.not_known.values():
            raise why
    if host is None:
        host = choose(views, [name])[0].host
    try:
        return runner.store.read(setup_key(host.name)).body
    except NotFound:
        pass
    if host.fleet:
        fleet = runner.fleets[host.fleet]()
        if isinstance(fleet, Telling):
            said = fleet.output(host)
            if said:
                return said
            if said is not None:
                raise AdrError(f"{host.name} has said nothing yet")
    raise AdrError(f"nothing of what {host.name} says is kept here: look at its log on that host")


def register(store: ObjectStore, workers: Iterable[str], prefix: str = WORKERS) -> None:
    """Note the addresses of workers as empty objects; idempotent."""
    for worker in workers:
        store.write(prefix + worker, b"")


def deregister(store: ObjectStore, workers: Iterable[str], prefix: str = WORKERS) -> None:
    """Remove the notes of `register`; idempotent."""
    store.delete(prefix + worker for worker in workers)


def addresses(store: ObjectStore, prefix: str = WORKERS) -> list[str]:
    """Return what is registered."""
    # What adr keeps in folders below the prefix is no address.
    return [entry.key.removeprefix(prefix) for entry in store.list(prefix, flat=True)]


def may_have_others(store: ObjectStore, known: Iterable[Host]) -> bool:
    """Tell whether hosts may have been launched that are not among those known."""
    left = set(addresses(store)) - {host.address for host in known}
    return bool(left) or any(True for each in (INSTALL, LAUNCHES, SETUP) for _ in store.list(each))


def _former(runner: Runner, name: str) -> Host | None:
    """Return a host that has ended, where a fleet still knows it."""
    for kind in runner.fleets:
        fleet = runner.fleets[kind]()
        if isinstance(fleet, Remembering) and (host := fleet.former(name)):
            return host
    return None


def _unheard(runner: Runner, ended: Sequence[Host], known: set[str]) -> list[HostView]:
    """Return hosts that ended and left no word of a worker or of their setup."""
    silent = [host for host in ended if host.name not in known and not host.login]
    # What is destroyed has no words of anybody.
    if not silent or read_orders(runner.store).destroyed:
        return []
    heard = runner.roster.heard_of()
    advice = "ended before its worker was heard of: adr logs --worker={}"
    return [
        HostView(replace(host, note="; ".join(filter(None, (host.note, advice.format(host.name))))))
        for host in silent
        if host.name not in heard
    ]


def _joined(runner: Runner, found: Sequence[Host]) -> list[HostView]:
    """Put hosts, heartbeats and notes of failed setups together."""
    workers: dict[str, list[WorkerInfo]] = {}
    for info in runner.roster.alive():
        workers.setdefault(info.host, []).append(info)
    failed = {
        entry.key.removeprefix(SETUP).removesuffix(".log") for entry in runner.store.list(SETUP)
    }
    views = []
    for host in found:
        # Over SSH an instance is known by its address.
        infos = [
            info for name in {host.name, host.address} for info in workers.pop(name, ()) if name
        ]
        views.append(HostView(host, tuple(infos), not infos and host.name in failed))
    known = {view.name for view in views}
    for name in sorted(failed - known - workers.keys()):
        gone = Host(name, next(iter(runner.fleets), ""), HostState.ENDED)
        views.append(HostView(gone, setup_failed=True))
    for name, own in workers.items():
        began = min(info.started_at for info in own)
        host = Host(name, "", HostState.RUNNING, started_at=began)
        views.append(HostView(host, tuple(own)))
    return views
