"""What adr does on one host over SSH: install, hand over credentials, start, stop, remove.

The steps themselves are a shell script that runs on the host (``machine/sshhost.sh``), so
that a step is one round trip and needs nothing there but a shell. Used by
`adr.fleets.ssh` for many hosts and by `adr.fabfile` for those of ``fab -H``.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath

from adr.access import Lent, config_text, process_json
from adr.errors import AdrError, ServiceError, Unavailable
from adr.remote import CommandFailed, Finished, Remote
from adr.wheel import CONSTRAINTS, Wheel, pack_wheel

__all__ = ["SshHost", "endpoints", "runner_key"]

_TOP = PurePosixPath(".adr")
_NEEDS_PIP = 10


def runner_key(runner_id: str) -> str:
    """Return the name that a runner has in folders: a UUID as it is, a path as its digest."""
    if re.fullmatch("[0-9a-f-]+", runner_id):
        return runner_id
    return hashlib.sha256(os.fsencode(runner_id)).hexdigest()[:32]


def endpoints(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that tell where AWS is, for a worker that is to find the same one."""
    return {name: value for name, value in environ.items() if name.startswith("AWS_ENDPOINT_URL")}


@dataclass(frozen=True)
class _Look:
    """What a host tells of itself."""

    home: str
    node: str
    #: SHA-256 of the wheel that is installed; empty where none is.
    installed: str
    #: File that the worker writes after each heartbeat.
    alive: str
    #: Whether the worker runs.
    running: str = ""


class SshHost:
    """Set up one host and its worker, over a connection that is open.

    All methods are idempotent, block until the host is done, and raise as those of `Remote`.

    Parameters
    ----------
    remote : Remote
        The open connection.
    runner_id : str, optional
        Whose worker it is about; without, only `install` and `stop` work.
    """

    def __init__(self, remote: Remote, runner_id: str | None = None) -> None:
        self._remote = remote
        self._runner_id = runner_id
        self._script: PurePosixPath | None = None
        self._seen: _Look | None = None

    def install(self, wheel: Wheel, words: Sequence[str] = (), packages: bool = False) -> None:
        """Install Python, dtach and adr where they are missing.

        Parameters
        ----------
        wheel : Wheel
            The adr to install; nothing is done where it is installed already.
        words : sequence of str
            For pip: options, and further packages.
        packages : bool
            Whether there are further packages, for which pip is asked in any case.
        """
        if self._look().installed == wheel.sha256 and not packages:
            return
        folder = _TOP / "install" / wheel.sha256
        path, constraints = folder / wheel.name, folder / CONSTRAINTS
        if not self._remote.exists(path):
            self._remote.write(path, wheel.body)
        self._remote.write(constraints, wheel.constraints.encode())
        command = ["install", wheel.sha256, self._there(path), self._there(constraints)]
        try:
            self._run([*command, "", *words], "install adr")
        except CommandFailed as error:
            if error.finished.status != _NEEDS_PIP:
                raise
            pip = pack_wheel("pip")
            self._remote.write(folder / pip.name, pip.body)
            self._run([*command, self._there(folder / pip.name), *words], "install adr")
        self._seen = None

    def hand_over(self, lent: Lent, region: str) -> None:
        """Give the worker new credentials; one that runs takes them up by itself."""
        path = self._folder / "credentials.json"
        self._remote.write(path, process_json(lent).encode())
        config = config_text(shlex.join(["cat", self._there(path)]), region)
        self._remote.write(self._folder / "aws.conf", config.encode())

    @contextmanager
    def withdrawing(self) -> Iterator[None]:
        """Take the credentials back where what is done within fails and no worker has them."""
        try:
            yield
        except Unavailable:
            raise
        except AdrError:
            # What went wrong first is more important to hear.
            with suppress(AdrError):
                self._run(["withdraw", self._key], "take the credentials back")
            raise

    def set_up(self, script: bytes) -> None:
        """Run the user's script, unless that very script has been run."""
        self._remote.write(self._folder / "setup", script, mode=0o700)
        digest = hashlib.sha256(script).hexdigest()
        self._run(["setup", self._key, digest], "run the setup script")

    def start(self, words: Sequence[str] | None, environ: Mapping[str, str]) -> bool:
        """Start the worker unless it runs, and wait until it has reached the runner.

        Parameters
        ----------
        words : sequence of str or None
            What stands after ``adr``; None: what it was started with before.
        environ : mapping
            Further variables for the worker.

        Returns
        -------
        bool
            Whether it has been started just now.
        """
        seen = self._look()
        if words is not None and not seen.running:
            script = _worker_script(seen, self._key, words, environ)
            self._remote.write(self._folder / seen.node / "worker.sh", script.encode(), mode=0o700)
        said = self._run(["start", self._key, seen.alive], "start the worker")
        return said.get("worker") != "running"

    def stop(self) -> None:
        """End the worker in good order; without a runner, those of all runners."""
        self._run(["stop", *([self._key] if self._runner_id else [])], "stop the worker")

    def log(self) -> bytes:
        """Return the end of what the worker has said since it was started."""
        return self._do(["log", self._key], "read what the worker said").out.encode()

    def remove(self) -> None:
        """End the worker and remove all that the runner has on the host, credentials included."""
        self._run(["remove", self._key], "remove the worker")

    @property
    def _key(self) -> str:
        if self._runner_id is None:
            raise ValueError("no runner was named")
        return runner_key(self._runner_id)

    @property
    def _folder(self) -> PurePosixPath:
        return _TOP / self._key

    def _there(self, path: PurePosixPath) -> str:
        return f"{self._look().home}/{path}"

    def _look(self) -> _Look:
        if self._seen is None:
            key = self._key if self._runner_id else "install"
            said = self._run(["look", key], "look around")
            try:
                self._seen = _Look(**said)
            except TypeError as error:
                raise ServiceError("cannot look around: its shell does not run scripts") from error
        return self._seen

    def _run(self, command: Sequence[str], what: str) -> dict[str, str]:
        """Run a step on the host and return what it says to adr."""
        said = self._do(command, what).out.splitlines()
        pairs = (line[4:].partition("=") for line in said if line.startswith("adr:"))
        return {name: value for name, _, value in pairs}

    def _do(self, command: Sequence[str], what: str) -> Finished:
        if self._script is None:
            script = _host_script()
            path = _TOP / f"host-{hashlib.sha256(script).hexdigest()[:12]}.sh"
            if not self._remote.exists(path):
                self._remote.write(path, script)
            self._script = path
        return self._remote.run(["sh", str(self._script), *command], what)


@cache
def _host_script() -> bytes:
    return (files("adr.fleets") / "machine" / "sshhost.sh").read_bytes()


def _worker_script(seen: _Look, key: str, words: Sequence[str], environ: Mapping[str, str]) -> str:
    """Return the script that runs the worker and notes how it ended."""
    folder = f"{seen.home}/{_TOP / key}"
    variables = {
        "AWS_CONFIG_FILE": f"{folder}/aws.conf",
        # Whatever else the user of the host has would come before that.
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "VIRTUAL_ENV": f"{seen.home}/.envs/adr",
        **environ,
    }
    exports = "\n".join(f"export {name}={shlex.quote(text)}" for name, text in variables.items())
    options = [f"--alive={seen.alive}", f"--workingdir={folder}/{seen.node}/work"]
    command = shlex.join(["adr", words[0], *options, *words[1:]])
    left = str(PurePosixPath(seen.alive).with_name("left"))
    return f"""#!/bin/sh
# Written by adr when the worker was set up. A hangup is for the one who was logged in.
trap '' HUP
cd {shlex.quote(f"{folder}/{seen.node}")} || exit 1
unset AWS_PROFILE AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_REGION \\
    AWS_DEFAULT_REGION
{exports}
export PATH="$VIRTUAL_ENV/bin:$PATH"
{command} </dev/null >>worker.log 2>&1 &
echo $! >worker.pid.new && mv worker.pid.new worker.pid
wait $!
status=$?
if [ "$(cat worker.pid)" = $! ]; then echo $status >worker.exit; fi
# An instance, whose worker writes signs of life there, ends where its worker has left by itself.
if [ $status = 0 ]; then : >{shlex.quote(left)}; fi
"""
