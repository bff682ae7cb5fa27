"""Hosts of one's own, reached over SSH, as a fleet of a runner on AWS.

`adr.fleets.sshhost` knows what is done on one host; here it is done on many at once, with
credentials that are lent to them, and each host that works is remembered as a small object in
the store. So lists need no connection to any host, and any machine that reaches the runner can
stop them. What is remembered holds no secret.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import TypeVar
from urllib.parse import quote

from adr.access import Lent, lend, own_keys
from adr.aws import Connection
from adr.errors import AdrError, NotFound, PartialFailure, Unavailable, UsageError
from adr.fleets.base import Demand, Host, HostState, LaunchPlan, LaunchReport, process_words
from adr.fleets.pipoptions import pip_words
from adr.fleets.specs import SshSpec
from adr.fleets.sshhost import SshHost, endpoints, runner_key
from adr.hostkeys import KnownHosts
from adr.keys import SSH_HOSTS
from adr.models import SCHEMA, check_schema
from adr.orders import read_orders
from adr.progress import SILENT, Progress
from adr.remote import Login, Remote, Results, connect, on_hosts
from adr.stores.base import ObjectStore
from adr.wheel import pack_wheel

__all__ = ["SshFleet"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_READERS = 16
_TIMEOUT_S = SshSpec(hosts=()).timeout_s
#: What is otherwise with hosts of another fleet, which end themselves.
_ABOUT_INSTANCES = (
    "an instance that was prepared ends once its worker has left, and an hour after its worker "
    "could reach the runner for the last time, as when its credentials have ended, unless it was "
    "launched with --keep: outcomes that it has not handed over by then are lost, and those jobs "
    "run again"
)


@dataclass(frozen=True)
class _Entry:
    """What is remembered of a host."""

    host: str
    user: str
    #: Path of the key on the machine from which it was set up.
    key_filename: str | None
    since: float
    #: Hours for which credentials are lent to it; None: it has the caller's own.
    hours: float | None
    #: None: they have no end.
    credentials_end: float | None
    stopped: bool = False

    @property
    def key(self) -> str:
        return f"{SSH_HOSTS}{quote(self.host, safe='')}.json"

    @property
    def has_ended(self) -> bool:
        """Tell whether its credentials are good for nothing any more."""
        return self.credentials_end is not None and self.credentials_end <= time.time()

    def as_host(self) -> Host:
        note = ""
        if self.credentials_end is not None:
            verb = "ended" if self.has_ended else "end"
            note = f"credentials {verb} at {_clock(self.credentials_end)}"
        return Host(
            name=self.host,
            fleet=SshFleet.kind,
            state=HostState.STOPPED if self.stopped else HostState.RUNNING,
            address=self.host,
            started_at=self.since,
            note=note,
        )


class SshFleet:
    """Run workers on hosts that are reached over SSH.

    Parameters
    ----------
    connection : Connection
        To the runner.
    store : ObjectStore
        Where the hosts are remembered.
    """

    kind = "ssh"

    def __init__(self, connection: Connection, store: ObjectStore) -> None:
        self._connection = connection
        self._store = store
        self._known_hosts = KnownHosts(connection.runner_id)
        #: How to log in where the caller knows better than what is remembered.
        self.login = Login()

    def plan(self, spec: SshSpec, demand: Demand) -> LaunchPlan:
        """Say which hosts would be set up, and how; connects to none."""
        hosts = tuple(dict.fromkeys(spec.hosts))
        if not hosts:
            raise UsageError("no hosts were given: name them, as in --hosts=lab1,lab2")
        login = _login(spec)
        for host in hosts:
            connect(host, login, self._known_hosts, spec.timeout_s)
        pip_words(spec.pip_options)
        if spec.setup is not None and not os.access(spec.setup, os.R_OK):
            raise UsageError(f"cannot read the setup script {spec.setup}: check its name")
        lines = [("hosts", ", ".join(hosts))]
        if spec.copy_credentials:
            lines.append(("credentials", "your own keys, copied"))
        else:
            lines.append(("credentials", f"lent for {spec.credential_hours:g} h"))
        if spec.setup is not None and not spec.renew:
            lines.append(("setup", str(spec.setup)))
        data = {
            "fleet": self.kind,
            "hosts": list(hosts),
            "credentials": "copied" if spec.copy_credentials else "lent",
            "setup": str(spec.setup) if spec.setup is not None else None,
            "renew": spec.renew,
        }
        slots = len(hosts) * (spec.worker.slots or 1)
        return LaunchPlan(len(hosts), tuple(lines), data, replace(spec, hosts=hosts), slots=slots)

    def launch(self, plan: LaunchPlan, progress: Progress) -> LaunchReport:
        """Set up the hosts and start their workers, or renew their credentials only."""
        spec: SshSpec = plan.request
        hours = None if spec.copy_credentials else spec.credential_hours
        lent = self._lent(hours)
        wheel = None if spec.renew else pack_wheel()
        words = pip_words(spec.pip_options)
        script = spec.setup.read_bytes() if spec.setup is not None else None
        known = {entry.host: entry for entry in self._entries()}
        started: dict[str, bool] = {}

        def work(remote: Remote) -> Host:
            host = self._host(remote)
            if wheel is not None:
                host.install(wheel, words)
            login = self._login_of(remote.name, _login(spec), known)
            before = known.get(remote.name)
            entry = _Entry(
                remote.name,
                remote.user,
                login.key_filename or (before.key_filename if before is not None else None),
                before.since if before is not None else time.time(),
                hours,
                lent.ends_at,
                stopped=before is None or before.stopped,
            )
            if spec.remember:
                # First, so that whatever is handed over is cleared with the host.
                self._remember(entry)
            with host.withdrawing():
                host.hand_over(lent, self._connection.region)
                if wheel is None:
                    return entry.as_host()
                if script is not None:
                    host.set_up(script)
                command = process_words(self._connection.runner_id, spec.worker, host=remote.name)
                started[remote.name] = host.start(command, endpoints(os.environ))
            since = time.time() if started[remote.name] else entry.since
            entry = replace(entry, since=since, stopped=False)
            return self._remember(entry) if spec.remember else entry.as_host()

        def reach(name: str) -> Remote:
            login = self._login_of(name, _login(spec), known)
            return connect(name, login, self._known_hosts, spec.timeout_s)

        what = "renewing credentials" if spec.renew else "setting up"
        results = on_hosts(spec.hosts, reach, work, what, progress)
        report = LaunchReport(plan.n, hosts=list(results.done.values()))
        report.failed = {name: str(error) for name, error in results.failed.items()}
        report.notes += [
            f"the worker on {name} runs already, the way it was started"
            for name, now in started.items()
            if not now
        ]
        if report.hosts:
            report.notes.append(_about(lent, spec.copy_credentials))
            if not spec.remember:
                report.notes.append(_ABOUT_INSTANCES)
        return report

    def hosts(self) -> list[Host]:
        """Return the hosts that are remembered; connects to none."""
        return [entry.as_host() for entry in self._entries()]

    def stop(self, hosts: Sequence[Host], progress: Progress) -> list[Host]:
        """End the workers in good order; an unreachable host is named in `PartialFailure`."""

        def work(remote: Remote, entry: _Entry) -> Host:
            self._host(remote).stop()
            return self._remember(replace(entry, stopped=True))

        return self._on(hosts, work, "stop", "stopping", progress)

    def start(self, hosts: Sequence[Host], progress: Progress) -> list[Host]:
        """Hand over new credentials and start the workers again, the way they were started."""
        entries = self._known(hosts)
        lent = {hours: self._lent(hours) for hours in {entry.hours for entry in entries}}

        def work(remote: Remote, entry: _Entry) -> Host:
            host = self._host(remote)
            host.hand_over(lent[entry.hours], self._connection.region)
            since = time.time() if host.start(None, {}) else entry.since
            end = lent[entry.hours].ends_at
            return self._remember(replace(entry, stopped=False, since=since, credentials_end=end))

        return self._on(hosts, work, "start", "starting", progress)

    def terminate(self, hosts: Sequence[Host], progress: Progress) -> None:
        """End the workers, remove what the runner has on the hosts, and forget the hosts.

        One that is out of reach is forgotten as well, with a warning, where nothing that it has
        is of use any more: its credentials have ended, or the runner is being destroyed.
        """

        def work(remote: Remote, entry: _Entry) -> Host:
            self._host(remote).remove()
            self._store.delete([entry.key])
            return entry.as_host()

        entries = {entry.host: entry for entry in self._known(hosts)}
        results = self._visit(entries, work, "clearing", progress)
        is_destroyed = bool(results.failed) and read_orders(self._store).destroyed
        for name, error in list(results.failed.items()):
            if not isinstance(error, Unavailable):
                continue
            entry = entries[name]
            if is_destroyed or entry.has_ended:
                self._store.delete([entry.key])
                del results.failed[name]
                _log.warning("%s", self._about_left(entry, error))
            else:
                results.failed[name] = Unavailable(f"{error}; {_when_forgotten(entry)}")
        _refuse_failed(results, "clear")

    def output(self, host: Host) -> bytes:
        """Return the end of what the worker on a host has said."""
        said = self._on([host], lambda remote, _: self._host(remote).log(), "ask", "asking", SILENT)
        return said[0] if said else b""

    def dissolve(self, progress: Progress) -> None:
        """Forget all hosts, also those that could not be reached, and their keys."""
        self._store.delete([entry.key for entry in self._store.list(SSH_HOSTS)])
        self._known_hosts.forget()

    def _about_left(self, entry: _Entry, error: AdrError) -> str:
        """Say what is left on a host that is forgotten, and why."""
        folder = f"~/.adr/{runner_key(self._connection.runner_id)}"
        own = ", with your own keys in it" if entry.hours is None else ""
        return (
            f"{entry.host} is forgotten although it is out of reach ({error}): {folder} is left "
            f"there{own}, and its worker, if it runs, can work for this runner no more"
        )

    def _host(self, remote: Remote) -> SshHost:
        return SshHost(remote, self._connection.runner_id)

    def _lent(self, hours: float | None) -> Lent:
        return own_keys(self._connection) if hours is None else lend(self._connection, hours)

    def _on(
        self,
        hosts: Sequence[Host],
        work: Callable[[Remote, _Entry], T],
        verb: str,
        what: str,
        progress: Progress,
    ) -> list[T]:
        """Do something with hosts that are remembered, all at once, and name those that fail."""
        entries = {entry.host: entry for entry in self._known(hosts)}
        results = self._visit(entries, work, what, progress)
        _refuse_failed(results, verb)
        return list(results.done.values())

    def _visit(
        self,
        entries: Mapping[str, _Entry],
        work: Callable[[Remote, _Entry], T],
        what: str,
        progress: Progress,
    ) -> Results[T]:
        def reach(name: str) -> Remote:
            login = self._login_of(name, self.login, entries)
            return connect(name, login, self._known_hosts, _TIMEOUT_S)

        return on_hosts(
            entries, reach, lambda remote: work(remote, entries[remote.name]), what, progress
        )

    def _login_of(self, name: str, login: Login, entries: Mapping[str, _Entry]) -> Login:
        """Complete a login by what is remembered of a host."""
        if name not in entries:
            return login
        user, key = login.user or entries[name].user, entries[name].key_filename
        if key is not None and not os.path.isfile(os.path.expanduser(key)):
            # It was set up from another machine; here the agent and usual keys may do.
            key = None
        return Login(user, login.password, login.key_filename or key)

    def _known(self, hosts: Sequence[Host]) -> list[_Entry]:
        names = {host.name for host in hosts}
        return [entry for entry in self._entries() if entry.host in names]

    def _entries(self) -> list[_Entry]:
        """Read what is remembered, side by side; in the order of the launches."""

        def read(key: str) -> _Entry | None:
            try:
                return _entry(json.loads(self._store.read(key).body))
            except NotFound:
                return None

        keys = [found.key for found in self._store.list(SSH_HOSTS)]
        with ThreadPoolExecutor(_READERS) as pool:
            entries = [entry for entry in pool.map(read, keys) if entry is not None]
        return sorted(entries, key=lambda entry: (entry.since, entry.host))

    def _remember(self, entry: _Entry) -> Host:
        body = json.dumps({"schema": SCHEMA, **asdict(entry)})
        self._store.write(entry.key, body.encode())
        return entry.as_host()


def _refuse_failed(results: Results[T], verb: str) -> None:
    """Raise `PartialFailure` where hosts failed, with a sentence about each."""
    if results.failed:
        n = len(results.failed) + len(results.done)
        said = "; ".join(f"{name}: {error}" for name, error in results.failed.items())
        raise PartialFailure(
            f"cannot {verb} {len(results.failed)} of {n} hosts ({said})",
            succeeded=tuple(results.done),
            failed=tuple(results.failed),
        )


def _when_forgotten(entry: _Entry) -> str:
    """Say how a host gets out of the list that stays out of reach."""
    if entry.credentials_end is None:
        return (
            "your own keys, which it has, have no end: adr destroy of the whole runner forgets it"
        )
    end = _clock(entry.credentials_end)
    return f"its credentials are good until {end}: adr destroy after that forgets it"


def _entry(data: Mapping[str, object]) -> _Entry:
    check_schema(data, "what is known of a host")
    return _Entry(**{name: value for name, value in data.items() if name != "schema"})  # type: ignore[arg-type]


def _login(spec: SshSpec) -> Login:
    return Login(spec.user, spec.password, spec.key_filename)


def _about(lent: Lent, is_copied: bool) -> str:
    """Say which keys the hosts have now, and until when they are good."""
    until = "" if lent.ends_at is None else f", until {_clock(lent.ends_at)}"
    if is_copied:
        return (
            f"your own keys lie on these hosts now: who can read them there may do all that you "
            f"may{until}; adr destroy removes them"
        )
    return (
        f"these hosts may use the queue and the bucket of this runner{until}: "
        f"adr prepare --renew hands over new credentials"
    )


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
