"""Many hosts over SSH at once: connections, their host keys, and one sentence per host that fails.

Below it is Fabric, which reads ``~/.ssh/config``; above it `adr.fleets.sshhost` (what adr does
on a host), `adr.fleets.ssh` and `adr.fabfile`. Fabric accepts any host key; here a new key is
accepted once and noted, and a changed one is refused. Importing this imports Fabric and
Paramiko, which takes a noticeable time.

Two things end a connection that has gone silent: the kernel gives up what a vanished host does
not acknowledge, and every host has a time after which whatever it still does is given up.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shlex
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from types import TracebackType
from typing import Generic, TypeVar

import paramiko
from fabric import Config, Connection
from invoke.exceptions import Failure as InvokeFailure
from invoke.exceptions import ThreadException

from adr.errors import AdrError, ServiceError, Unavailable, UsageError
from adr.hostkeys import KnownHosts
from adr.logins import Login, no_connection, read_key, said
from adr.progress import SILENT, Progress

__all__ = ["CommandFailed", "Finished", "Login", "Remote", "Results", "connect", "on_hosts"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

#: Hosts that are dealt with at the same time.
_MOST_AT_ONCE = 32
_CONNECT_WITHIN_S = 15
#: Slow name services make a server think long before it answers a login.
_LOG_IN_WITHIN_S = 30
_KEEPALIVE_S = 5
#: A host that has acknowledged nothing for so long has vanished.
_SILENT_FOR_S = 15
#: By default sshd drops connections at random once ten have not logged in yet.
_JUMPS = threading.BoundedSemaphore(5)
_TOLD_LINES = 5
_HOST_FORMS = (
    "give [user@]host[:port], or a name of ~/.ssh/config; IPv6 with a port is [address]:port"
)


@dataclass(frozen=True)
class Finished:
    """Tell how a command on a host has ended."""

    status: int
    out: str
    err: str


class CommandFailed(ServiceError):
    """Report a command that a host has run without success; `finished` tells how it ended."""

    def __init__(self, message: str, finished: Finished) -> None:
        super().__init__(message)
        self.finished = finished


@dataclass
class Results(Generic[T]):
    """Tell what came of the work on many hosts, by their names."""

    done: dict[str, T] = field(default_factory=dict)
    failed: dict[str, AdrError] = field(default_factory=dict)


class Remote:
    """Reach one host over SSH; a context manager that is connected within.

    Not thread-safe, except for `close`. All methods raise `ServiceError`, or `Unavailable` where
    the host cannot be reached, with a sentence that does not name the host.

    Parameters
    ----------
    name : str
        What the host is called.
    connection : fabric.Connection
        Not yet open.
    known_hosts : KnownHosts
        Which host keys are accepted.
    timeout_s : float
        Time for all that is done with this host.
    """

    def __init__(
        self, name: str, connection: Connection, known_hosts: KnownHosts, timeout_s: float
    ) -> None:
        self.name = name
        self._connection = connection
        self._known_hosts = known_hosts
        self._timeout_s = timeout_s
        self._is_late = False
        self._timer: threading.Timer | None = None
        self._sftp: paramiko.SFTPClient | None = None

    @property
    def user(self) -> str:
        """Return the name of the user there."""
        return str(self._connection.user)

    def __enter__(self) -> Remote:
        if not math.isinf(self._timeout_s):
            self._timer = threading.Timer(self._timeout_s, self._give_up)
            self._timer.daemon = True
            self._timer.start()
        try:
            self._open(self._connection)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, also under what another thread does with it; idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        for each in _chain(self._connection):
            # What is closed may be half open or broken, and nothing hangs on it any more.
            with suppress(Exception):
                each.client.close()

    def _give_up(self) -> None:
        # Not the time-out of Fabric's run(), which can race with the end of the command.
        self._is_late = True
        self.close()

    def run(self, command: Sequence[str], what: str, *, show: bool = False) -> Finished:
        """Run a command in the home directory, without input, and wait for its end.

        Parameters
        ----------
        what : str
            What it does, for messages: completes "cannot …".
        show : bool, optional
            Copy what it says to the terminal at once.

        Raises
        ------
        CommandFailed
            If its exit status is not 0.
        """
        with self._translated(what):
            done = self._connection.run(
                shlex.join(command), hide=not show, warn=True, pty=False, in_stream=False
            )
            # What Fabric says where the connection ended first.
            if done.exited < 0:
                raise EOFError(done.stderr.strip())
        finished = Finished(done.exited, done.stdout, done.stderr)
        if done.exited:
            raise CommandFailed(_failed(what, finished), finished)
        return finished

    def write(self, path: PurePosixPath, body: bytes, mode: int = 0o600) -> None:
        """Write a file, whole or not at all, readable for nobody else at any moment.

        Parameters
        ----------
        path : PurePosixPath
            Relative to the home directory; folders that are missing are made.
        """
        with self._translated(f"write ~/{path}"):
            sftp = self._files()
            for folder in reversed(path.parents[:-1]):
                # That it is there already and that it cannot be made look alike.
                with suppress(OSError):
                    sftp.mkdir(str(folder), 0o700)
            new = f"{path}.new-{os.urandom(4).hex()}"
            with sftp.open(new, "wb") as file:
                file.chmod(mode)
                file.write(body)
            sftp.posix_rename(new, str(path))

    def exists(self, path: PurePosixPath) -> bool:
        """Tell whether there is a file; `path` is relative to the home directory."""
        with self._translated(f"look at ~/{path}"):
            try:
                self._files().stat(str(path))
            except FileNotFoundError:
                return False
            return True

    def _files(self) -> paramiko.SFTPClient:
        if self._sftp is None:
            self._sftp = self._connection.client.open_sftp()
            channel = self._sftp.get_channel()
            if channel is not None:
                channel.settimeout(_LOG_IN_WITHIN_S)
        return self._sftp

    def _open(self, connection: Connection) -> None:
        """Connect, first to the host through which the way leads, if there is one."""
        if isinstance(connection.gateway, Connection):
            try:
                with _JUMPS:
                    self._open(connection.gateway)
            except ServiceError as error:
                # Nobody has asked for that host, so it has to be named.
                where = connection.gateway.original_host
                raise type(error)(f"the way leads over {where}: {error}") from error
        _fill_in(connection)
        self._known_hosts.guard(connection.client)
        with self._translated("connect", connection):
            connection.open()
        transport = connection.transport
        transport.set_keepalive(_KEEPALIVE_S)
        if hasattr(socket, "TCP_USER_TIMEOUT") and isinstance(transport.sock, socket.socket):
            transport.sock.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENT_FOR_S * 1000
            )

    @contextmanager
    def _translated(self, what: str, connection: Connection | None = None) -> Iterator[None]:
        """Turn what Fabric and its parts raise into one sentence."""
        try:
            yield
        except _TROUBLE as error:
            if self._is_late:
                why = f"it was not done {self._timeout_s:g} s after the beginning"
                if isinstance(error, EOFError) and str(error):
                    why += f"; the last it said: {str(error).splitlines()[-1]}"
                raise Unavailable(f"cannot {what}: {why}") from error
            if connection is not None:
                raise no_connection(error, connection, self._known_hosts) from error
            if isinstance(error, TimeoutError):
                why = "the host does not answer any more"
                raise Unavailable(f"cannot {what}: {why}") from error
            if not self._connection.is_connected or isinstance(error, (EOFError, ConnectionError)):
                raise Unavailable(f"cannot {what}: the connection was lost") from error
            raise ServiceError(f"cannot {what}: {said(error)}") from error


#: What is raised beneath; a transport that breaks under a reader comes as a ThreadException.
_TROUBLE = (OSError, EOFError, paramiko.SSHException, InvokeFailure, ThreadException)


def connect(host: str, login: Login, known_hosts: KnownHosts, timeout_s: float) -> Remote:
    """Make a connection that is opened where it is entered.

    Parameters
    ----------
    host : str
        ``[user@]host[:port]``, as in ``~/.ssh/config`` or as the network knows it.

    Raises
    ------
    UsageError
        If the host cannot be one, or the key cannot be used.
    """
    options: dict[str, object] = {}
    if login.password is not None:
        options["password"] = login.password
    if login.key_filename is not None:
        options["pkey"] = read_key(login)
    user, name, port = _parts(host)
    try:
        connection = Connection(
            name, user or login.user, port, config=Config(), connect_kwargs=options
        )
    except (ValueError, OSError, paramiko.SSHException) as error:
        raise UsageError(f"cannot use {host!r} as a host: {said(error)}; {_HOST_FORMS}") from error
    return Remote(host, connection, known_hosts, timeout_s)


def _parts(host: str) -> tuple[str | None, str, int | None]:
    """Take ``[user@]host[:port]`` apart; an address of IPv6 stands in brackets before a port."""
    user, at, rest = host.rpartition("@")
    bracketed = re.fullmatch(r"\[([^][]+)\](:.*)?", rest)
    if bracketed:
        name, colon, port = bracketed[1], (bracketed[2] or "")[:1], (bracketed[2] or "")[1:]
    elif rest.count(":") > 1:
        name, colon, port = rest, "", ""
    else:
        name, colon, port = rest.partition(":")
    if not name or re.search(r"[][\s]", name) or (at and not user):
        raise UsageError(f"cannot use {host!r} as a host: {_HOST_FORMS}")
    if colon and not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536):
        raise UsageError(
            f"cannot use {host!r} as a host: its port is no number from 1 to 65535; {_HOST_FORMS}"
        )
    return user or None, name, int(port) if colon else None


def on_hosts(
    hosts: Iterable[str],
    reach: Callable[[str], Remote],
    work: Callable[[Remote], T],
    what: str,
    progress: Progress = SILENT,
) -> Results[T]:
    """Do the same with many hosts at once; a host that fails stops no other.

    Parameters
    ----------
    hosts : iterable of str
        Their names.
    reach : callable
        Makes the connection to one of them, which is opened and closed here.
    work : callable
        What to do with each, in a thread of its own.
    what : str
        What that is, for the progress.
    """
    names = list(dict.fromkeys(hosts))
    results: Results[T] = Results()
    if not names:
        return results
    remotes: list[Remote] = []

    def visit(name: str) -> T:
        remote = reach(name)
        remotes.append(remote)
        with remote:
            return work(remote)

    # Else a broken connection would put its traceback on the terminal.
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    progress.start(what, len(names), "hosts")
    pool = ThreadPoolExecutor(min(_MOST_AT_ONCE, len(names)))
    try:
        futures = {name: pool.submit(visit, name) for name in names}
        for _ in as_completed(futures.values()):
            progress.advance()
    except BaseException:
        # Told to stop: whoever waits for an answer is let go.
        pool.shutdown(wait=False, cancel_futures=True)
        for remote in remotes:
            remote.close()
        raise
    finally:
        pool.shutdown()
        progress.finish()
    for name, future in futures.items():
        try:
            results.done[name] = future.result()
        except AdrError as error:
            results.failed[name] = error
        except Exception as error:
            _log.debug("%s failed unexpectedly", name, exc_info=True)
            results.failed[name] = AdrError(f"{type(error).__name__}: {said(error)}")
    return results


def _chain(connection: Connection) -> Iterator[Connection]:
    """Yield a connection and those through which it goes."""
    each: object = connection
    while isinstance(each, Connection):
        yield each
        each = each.gateway


def _fill_in(connection: Connection) -> None:
    """Give time-outs to a connection, and leave out keys that are not there, as ssh does."""
    connection.connect_timeout = connection.connect_timeout or _CONNECT_WITHIN_S
    given = dict(connection.connect_kwargs)
    given.setdefault("banner_timeout", _CONNECT_WITHIN_S)
    given.setdefault("auth_timeout", _LOG_IN_WITHIN_S)
    given.setdefault("channel_timeout", _LOG_IN_WITHIN_S)
    keys = given.get("key_filename") or []
    keys = [keys] if isinstance(keys, str) else keys
    given["key_filename"] = [key for key in keys if os.path.isfile(os.path.expanduser(key))]
    connection.connect_kwargs = given


def _failed(what: str, finished: Finished) -> str:
    """Say that a command failed, with the end of what it said."""
    lines = [line.strip() for line in (finished.out + finished.err).splitlines() if line.strip()]
    end = " / ".join(lines[-_TOLD_LINES:]) or f"exit status {finished.status}"
    return f"cannot {what}: {end}"
