"""User data for EC2: the script with which an instance installs and ends itself.

What runs there are the files in ``machine``, as they are. `user_data` puts them into one shell
script, along with a file of values that all of them read, so that no value of a user is ever
pasted into a command or a unit. cloud-init runs the script as root at the first boot:

::

    user data ─▶ adr-deadman.timer     ends a silent machine, whatever else happens
              └▶ adr-setup.service     once: users, volumes, Python, adr, the user's script
                 └▶ adr-worker.service  at each boot: adr process

Anybody who may describe the instance can read its user data: there is no secret in it.
"""

from __future__ import annotations

import gzip
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from adr.errors import UsageError
from adr.fleets.base import process_words
from adr.fleets.pipoptions import pip_words, refuse_login
from adr.fleets.specs import WorkerOptions
from adr.keys import setup_key
from adr.version import __version__

__all__ = ["LARGEST_BYTES", "Machine", "user_data"]

#: What EC2 accepts, before it is encoded for the call.
LARGEST_BYTES = 16_384

_LIB = "/usr/local/lib/adr"
_UNITS = "/etc/systemd/system"
_WATCH = ("deadman.sh", "adr-deadman.service", "adr-deadman.timer")
_WORK = (
    *("store.py", "setup.sh", "setup-ended.sh"),
    *("worker-before.sh", "worker.sh", "worker-ended.sh", "worker-failed.sh", "guard.sh"),
    *("adr-setup.service", "adr-worker.service", "adr-failed.service"),
    *("adr-guard.service", "adr-guard.timer"),
)
_VOLUMES = ("volumes.py",)
#: For the worker to drain and leave before the machine is switched off under it.
_GRACE_S = 180


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Say what an instance is to become."""

    runner_id: str
    region: str
    #: Keys in the store, name of the file and digest; not needed with `prepare`.
    wheel_key: str = ""
    wheel_name: str = ""
    wheel_sha256: str = ""
    constraints_key: str = ""
    #: The user's own script.
    setup_key: str | None = None
    setup_sha256: str | None = None
    #: Device as it was asked for (``/dev/sdf``), and the path at which it is mounted.
    volumes: Sequence[tuple[str, str]] = ()
    worker: WorkerOptions = field(default_factory=WorkerOptions)
    #: Watch for interruptions.
    spot: bool = False
    #: Whether jobs may use the role of the instance.
    aws_for_jobs: bool = False
    #: Options of pip, as in a shell.
    pip_options: str = ""
    #: Variables ``AWS_ENDPOINT_URL…`` for boto3.
    endpoints: Mapping[str, str] = field(default_factory=dict)
    #: To be set up over SSH: nothing but the watch over its worker.
    prepare: bool = False
    #: A machine without a heartbeat for so long ends, also one that is not set up by then.
    silence_s: float = 3600.0


def user_data(machine: Machine) -> bytes:
    """Return the user data for an instance: a shell script, compressed where it is too long.

    Raises
    ------
    UsageError
        If a value cannot be used, holds a login, or makes it too long.
    """
    for name, address in machine.endpoints.items():
        refuse_login(address, name)
    values = _values(machine)
    script = _script(machine, values).encode()
    if len(script) > LARGEST_BYTES:
        script = gzip.compress(script, mtime=0)
    if len(script) > LARGEST_BYTES:
        raise UsageError(
            f"the user data would have {len(script):,} bytes, EC2 accepts {LARGEST_BYTES:,}: "
            f"shorten --pip-options or give fewer volumes"
        )
    return script


def _script(machine: Machine, values: str) -> str:
    parts = [
        "#!/bin/bash\n"
        f"# Makes this machine a worker of adr {__version__}. Harmless to run again.\n"
        "set -eu\n"
        "umask 022\n"
    ]
    if not machine.worker.keep:
        parts.append(
            "trap 'echo adr: this machine cannot be set up and ends; systemctl poweroff' ERR\n"
        )
    parts += [f"mkdir -p {_LIB}\n", _file("values", values)]
    if not machine.worker.keep:
        parts += [_file(name) for name in _WATCH]
        parts.append(
            "systemctl daemon-reload\n"
            "systemctl start adr-deadman.service\n"
            "systemctl enable --now adr-deadman.timer\n"
        )
    if not machine.prepare:
        names = (*_VOLUMES, *_WORK) if machine.volumes else _WORK
        parts += [_file(name) for name in names]
        parts.append(
            "systemctl daemon-reload\n"
            "systemctl enable adr-setup.service\n"
            # It ends the machine by itself where it fails, and its log says more.
            "trap - ERR\n"
            "systemctl start adr-setup.service\n"
        )
    return "".join(parts)


def _file(name: str, text: str | None = None) -> str:
    """Return the lines that write a file of the machine, by default the one of that name."""
    body = (files("adr.fleets") / "machine" / name).read_text("utf-8") if text is None else text
    end = "END"
    while end in body.splitlines():
        end += "_"
    is_unit = name.endswith((".service", ".timer"))
    path = f"{_UNITS if is_unit else _LIB}/{name}"
    mode = f"chmod 0755 {path}\n" if name.endswith(".sh") else ""
    return f"cat >{path} <<'{end}'\n{body}{end}\n{mode}"


def _values(machine: Machine) -> str:
    """Return what differs from machine to machine, as variables for bash."""
    worker = machine.worker
    hours = None if worker.keep else worker.max_hours
    words = process_words(
        machine.runner_id,
        worker,
        # Known there only; see worker.sh.
        host="",
        region=machine.region,
        workingdir="/var/lib/adr",
        alive="/run/adr/alive",
        job_user="adr-job",
        spot="" if machine.spot else None,
        aws_for_jobs="" if machine.aws_for_jobs else None,
    )
    single = {
        "KEEP": "yes" if worker.keep else "",
        "PREPARE": "yes" if machine.prepare else "",
        "SILENCE_S": f"{machine.silence_s:.0f}",
        "MAX_S": "" if hours is None else f"{hours * 3600:.0f}",
        "GRACE_S": str(_GRACE_S),
    }
    several: dict[str, Sequence[str]] = {}
    if not machine.prepare:
        single |= {
            "REGION": machine.region,
            "BUCKET": machine.runner_id,
            "WHEEL_KEY": machine.wheel_key,
            "WHEEL_NAME": machine.wheel_name,
            "WHEEL_SHA256": machine.wheel_sha256,
            "CONSTRAINTS_KEY": machine.constraints_key,
            "SETUP_KEY": machine.setup_key or "",
            "SETUP_SHA256": machine.setup_sha256 or "",
            "LOG_KEY": setup_key("@INSTANCE@"),
            "AWS_FOR_JOBS": "yes" if machine.aws_for_jobs else "",
        }
        several = {
            "ENDPOINTS": [f"{name}={value}" for name, value in sorted(machine.endpoints.items())],
            "VOLUMES": [part for volume in machine.volumes for part in volume],
            "PIP_OPTIONS": pip_words(machine.pip_options),
            "WORDS": words,
        }
    return "".join(_assignments(single, several))


def _assignments(single: Mapping[str, str], several: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for name, value in single.items():
        yield f"{name}={shlex.quote(value)}\n"
    for name, values in several.items():
        yield f"{name}=({shlex.join(values)})\n"
