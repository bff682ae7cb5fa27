"""Fabric tasks: what adr does on a host of your own, one step at a time.

    fab -r DIRECTORY_OF_ADR -H lab1,lab2 install
    fab -r DIRECTORY_OF_ADR -H lab1,lab2 start --runner-id RUNNER

or import them into a fabfile of your own. ``adr prepare`` does the same for many hosts at once;
both rest on `adr.fleets.sshhost`.
"""

from __future__ import annotations

import sys
from pathlib import Path

# ``fab -r`` puts this folder first on the path, where adr.py would be taken for adr itself.
sys.path[:] = [each for each in sys.path if Path(each).resolve() != Path(__file__).parent.resolve()]

import math  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import shlex  # noqa: E402
import time  # noqa: E402
from collections.abc import Iterator, Sequence  # noqa: E402
from contextlib import contextmanager  # noqa: E402

from fabric import Connection, task  # noqa: E402
from invoke.exceptions import Exit  # noqa: E402

from adr.errors import AdrError  # noqa: E402
from adr.fleets.base import process_words  # noqa: E402
from adr.fleets.pipoptions import refuse_login  # noqa: E402
from adr.fleets.specs import SshSpec, WorkerOptions  # noqa: E402
from adr.fleets.sshhost import SshHost, endpoints  # noqa: E402
from adr.hostkeys import KnownHosts  # noqa: E402
from adr.remote import CommandFailed, Remote  # noqa: E402

__all__ = ["install", "runv", "start", "stop"]

_SPEC = SshSpec(hosts=())


@task(  # type: ignore[untyped-decorator]
    iterable=["required_packages"],
    help={"required_packages": "Further Python package; may be given several times"},
)
def install(c: Connection, required_packages: Sequence[str] | None = None) -> None:
    """Prepare node for processing queued ADR jobs.

    Installs Python, dtach and adr where they are missing, adr in the virtual environment
    ``~/.envs/adr`` and the very one that runs here.

    Parameters
    ----------
    required_packages : list, optional
        Additional Python packages to install
    """
    from adr.wheel import pack_wheel

    # Fabric 1 took lists as one text.
    packages = [name for text in required_packages or () for name in text.replace(",", " ").split()]
    with _reached(c) as remote:
        # The user of an address for SSH is no secret.
        refuse_login(re.sub(r"ssh://\w+@", "ssh://", " ".join(packages)), "--required-packages")
        SshHost(remote).install(pack_wheel(), packages, packages=bool(packages))


@task(help={"runner_id": "Runner whose jobs are to be processed"})  # type: ignore[untyped-decorator]
def start(c: Connection, runner_id: str) -> None:
    """Start ADR instance on specific runner.

    ADR instance is started detached in virtual environment ``~/.envs/adr``, with credentials
    for this runner alone that are good for 12 hours. It stays until it is stopped. Nothing
    happens where it runs already.

    Parameters
    ----------
    runner_id : str
        Runner ID
    """
    from adr.access import lend
    from adr.aws import Connection as AwsConnection

    with _reached(c) as remote:
        aws = AwsConnection(runner_id)
        lent = lend(aws, _SPEC.credential_hours)
        host = SshHost(remote, runner_id)
        words = process_words(runner_id, WorkerOptions(keep=True), host=remote.name)
        with host.withdrawing():
            host.hand_over(lent, aws.region)
            host.start(words, endpoints(os.environ))
        if lent.ends_at is not None:
            end = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(lent.ends_at))
            print(f"{remote.name}: started; start it again before {end}, when its credentials end")


@task(help={"runner_id": "Runner whose worker ends; without, those of all"})  # type: ignore[untyped-decorator]
def stop(c: Connection, runner_id: str | None = None) -> None:
    """Stop all ADR instances.

    They end their jobs and give them back. No other process is touched.

    Parameters
    ----------
    runner_id : str, optional
        Stop only the instance on this runner
    """
    with _reached(c) as remote:
        SshHost(remote, runner_id).stop()


@task(  # type: ignore[untyped-decorator]
    help={
        "cmd": "Shell command",
        "env": "Path to virtual environment",
        "socket": "Name of socket for running command detached",
    }
)
def runv(
    c: Connection, cmd: str, env: str = "~/.envs/adr", socket: str | None = None
) -> str | None:
    """Run command in virtual environment.

    Parameters
    ----------
    cmd : str
        Shell command
    env : str, optional
        Path to virtual environent
    socket : str, optional
        Name of socket for running command detached: ``dtach -a ~/.adr/NAME.socket`` attaches

    Returns
    -------
    str
        Command return value (if not detached)

    Notes
    -----
    Detaching the process is done with the `dtach` command, which should be available at the
    node.
    """
    words = ["sh", "-c", f". {_in_home(env)}/bin/activate && {cmd}"]
    if socket is not None:
        # A socket that was left would keep the new one from being made.
        inner = shlex.join(words)
        place = f'"$HOME"/.adr/{shlex.quote(socket)}.socket'
        words = ["sh", "-c", f"mkdir -p ~/.adr && rm -f {place} && dtach -n {place} {inner}"]
    with _reached(c, math.inf) as remote:
        try:
            done = remote.run(words, "run the command", show=True)
        except CommandFailed as error:
            status = error.finished.status
            raise Exit(f"{remote.name}: the command ended with status {status}", status) from error
    return done.out if socket is None else None


@contextmanager
def _reached(c: Connection, timeout_s: float = _SPEC.timeout_s) -> Iterator[Remote]:
    """Connect to the host of a task, and say in one sentence what fails with it."""
    if not isinstance(c, Connection):
        raise Exit("no host was given: fab -H HOST …", 2)
    remote = Remote(c.original_host, c, KnownHosts("fab"), timeout_s)
    try:
        with remote:
            yield remote
    except AdrError as error:
        raise Exit(f"{remote.name}: {error}", error.exit_code) from error


def _in_home(path: str) -> str:
    """Quote a path for a shell, but let it find the home directory."""
    if path.startswith("~/"):
        return f'"$HOME"/{shlex.quote(path[2:])}'
    return shlex.quote(path)
