"""Which host keys are accepted: new ones once, changed ones never.

Every runner has a file of its own in the user's data directory, in the format of OpenSSH; the
user's ``~/.ssh/known_hosts`` counts as well but is never written. Used by `adr.remote` alone.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import paramiko
from paramiko.hostkeys import HostKeyEntry

from adr.errors import ServiceError

__all__ = ["KnownHosts", "changed_key"]

_log = logging.getLogger(__name__)


class KnownHosts(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    """Accept and note host keys that are new; thread-safe, also between processes.

    Parameters
    ----------
    name : str
        Name of the file: the id of the runner.
    """

    def __init__(self, name: str) -> None:
        from platformdirs import user_data_path

        #: Where new keys are noted.
        self.path = user_data_path("adr") / "known_hosts" / name
        self._lock = threading.Lock()

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the files with keys that count."""
        return (self.path, Path("~/.ssh/known_hosts").expanduser())

    def guard(self, client: paramiko.SSHClient) -> None:
        """Let a client accept only keys that are noted or new."""
        keys = client.get_host_keys()
        revoked = self._revoked()
        for path in self.files:
            for _, entry in _entries(path):
                # What is revoked is taken for new, and refused as such.
                if entry.key not in revoked:
                    for name in entry.hostnames or ():
                        keys.add(name, entry.key.get_name(), entry.key)
        client.set_missing_host_key_policy(self)

    def missing_host_key(
        self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey
    ) -> None:
        """Note the key of a host that had none; called by Paramiko.

        Raises
        ------
        paramiko.BadHostKeyException
            If another connection has noted another key meanwhile.
        ServiceError
            If the key is revoked.
        """
        revoked = self._revoked()
        if key in revoked:
            raise ServiceError(
                f"the host key of {hostname} is revoked ({key.fingerprint}, {revoked[key]}): "
                f"somebody else may be answering in its place; give the host a new key"
            )
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with self._lock, os.fdopen(handle, "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            for _, entry in _entries(self.path):
                if hostname in (entry.hostnames or ()):
                    if entry.key == key:
                        return
                    raise paramiko.BadHostKeyException(hostname, key, entry.key)
            file.write(f"{hostname} {key.get_name()} {key.get_base64()}\n")
        _log.info("%s is new; its key %s is in %s now", hostname, key.fingerprint, self.path)

    def _revoked(self) -> dict[paramiko.PKey, str]:
        """Return the keys that are revoked, for whatever hosts, and where that is said."""
        return {
            entry.key: f"line {number} of {path}"
            for path in self.files
            for number, entry in _entries(path, "@revoked")
        }

    def forget(self) -> None:
        """Remove the file of this runner; idempotent."""
        self.path.unlink(missing_ok=True)


def changed_key(
    error: paramiko.BadHostKeyException, port: int, known_hosts: KnownHosts
) -> ServiceError:
    """Say which key is not the one that was noted, where, and what to think of it."""
    host = error.hostname
    names = {host, f"[{host}]:{port}"}
    place = str(known_hosts.path)
    for path in known_hosts.files:
        for number, entry in _entries(path):
            if entry.key == error.expected_key and any(
                name in names or (name.startswith("|1|") and _hashed(names, name))
                for name in entry.hostnames or ()
            ):
                place = f"line {number} of {path}"
    return ServiceError(
        f"the host key of {host} has changed ({error.key.fingerprint} instead of "
        f"{error.expected_key.fingerprint}): somebody else may be answering in its place; only if "
        f"you know that the host was set up anew, remove {place} and try again"
    )


def _hashed(names: set[str], salted: str) -> bool:
    return salted in {paramiko.HostKeys.hash_host(name, salted) for name in names}


def _entries(path: Path, marker: str = "") -> Iterator[tuple[int, HostKeyEntry]]:
    """Yield the keys with that marker and the numbers of their lines; others are left out."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return
    for number, line in enumerate(lines, 1):
        # Paramiko does not understand markers (@cert-authority, @revoked).
        words = line.split()
        first = words.pop(0) if words and words[0].startswith("@") else ""
        if first != marker or not words or words[0].startswith("#"):
            continue
        try:
            entry = HostKeyEntry.from_line(" ".join(words), number)
        except Exception:  # a line that is no key is raised in many ways
            continue
        if entry is not None:
            yield number, entry
