"""From options, as the command line and the Python API name them, to what a fleet is asked for.

One place says which option means something for which kind of fleet, what its value must look
like, and which setting of the configuration stands in for it. An option that means nothing is
refused, since whoever gave it expects something of it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from adr import config
from adr.errors import UsageError
from adr.fleets.specs import Ec2Spec, LocalSpec, SshSpec, Volume, WorkerOptions

__all__ = ["AUTO", "launch_spec", "ssh_spec"]

#: As a number of hosts: as many as the waiting jobs ask for.
AUTO = "auto"

_MOST_HOSTS = 1000
_MOST_GIB = 65_536

_WORKER = {"slots", "idle", "max_hours", "keep"}
_SSH = {
    *_WORKER, "hosts", "user", "password", "key", "hours", "copy_credentials", "timeout",
    "setup", "pip_options",
}  # fmt: skip
_OPTIONS = {
    "ec2": {
        *_WORKER, "max", "ait", "ami", "image", "asg", "akp", "subnet", "spot", "fallback",
        "disk", "volume", "instance_profile", "aws_for_jobs", "setup", "pip_options", "prepare",
    },
    "ssh": _SSH,
    "local": _WORKER,
}  # fmt: skip
_CALLED = {
    "ec2": "instances of EC2",
    "ssh": "hosts over SSH",
    "local": "workers on this machine",
}
#: What ``adr prepare`` is told, and not the launch of instances that wait for it.
_LEFT_TO_PREPARE = ("slots", "setup", "pip_options", "idle", "max_hours", "keep")
#: What instances that wait for it do not have: they use credentials that it lends.
_WITHOUT_ROLE = ("instance_profile", "aws_for_jobs")

_TYPE = r"[a-z][a-z0-9-]*\.[a-z0-9-]+"
_TYPE_WORDS = "instance types such as c7i.large"


def launch_spec(
    kind: str, n: int | str | None = None, options: Mapping[str, Any] | None = None
) -> Ec2Spec | LocalSpec | SshSpec:
    """Return what a fleet is asked for.

    Parameters
    ----------
    kind : str
        Kind of the fleet that a launch uses where no hosts are named: the usual one of the runner.
    n : int or "auto", optional
        How many hosts; without, one, or those that are named.
    options : mapping, optional
        By their names on the command line with underscores; None, False and nothing stand for
        options that were not given.

    Raises
    ------
    UsageError
        If an option is unknown, means nothing here, or has a value that cannot be used.
    """
    given = {name: value for name, value in (options or {}).items() if _is_given(value)}
    chosen = "ssh" if "hosts" in given else kind
    _refuse_others(chosen, given)
    if chosen == "ssh":
        if n is not None:
            raise UsageError("-n means nothing with --hosts: as many as are named are launched")
        return ssh_spec(**given)
    number = _number_of_hosts(n)
    if chosen == "local":
        return LocalSpec(number, _worker(given))
    return _ec2_spec(number, given)


def ssh_spec(*, renew: bool = False, **options: Any) -> SshSpec:
    """Return what is asked of hosts over SSH; see `launch_spec`.

    Without hosts it is about those that the runner has.
    """
    given = {name: value for name, value in options.items() if _is_given(value)}
    _refuse_others("ssh", given)
    if renew:
        for name in ("setup", "pip_options", *sorted(_WORKER)):
            if name in given:
                raise UsageError(
                    f"{_option(name)} means nothing with --renew, which only hands over "
                    f"credentials: leave it out"
                )
    if "copy_credentials" in given and "hours" in given:
        raise UsageError("--hours is for credentials that end, not for --copy-credentials")
    hosts = _texts("hosts", given, r"[^\s,/-][^\s,/]*", "names such as lab1 or user@lab2:2222")
    settings = config.load_config("ssh")
    user = settings["user"]
    # What nobody has chosen must not stand above the User of ~/.ssh/config.
    own_user = None if user == config.JSON_DEFAULT["ssh"]["user"] else user
    return SshSpec(
        hosts=hosts,
        user=given.get("user") or own_user,
        password=given.get("password"),
        key_filename=given.get("key") or settings["key_filename"],
        timeout_s=_number("timeout", given, 86_400) or SshSpec(()).timeout_s,
        setup=_script(given),
        pip_options=given.get("pip_options", ""),
        renew=renew,
        # The longest that STS lends keys for.
        credential_hours=_number("hours", given, 36, 1) or SshSpec(()).credential_hours,
        copy_credentials=bool(given.get("copy_credentials")),
        worker=_worker(given),
    )


def _ec2_spec(n: int | None, given: Mapping[str, Any]) -> Ec2Spec:
    if "max" in given and n is not None:
        raise UsageError("--max bounds -n auto: give that as well, or leave it out")
    if "fallback" in given and "spot" not in given:
        raise UsageError("--fallback is for --spot: give that as well, or leave it out")
    if "ami" in given and "image" in given:
        raise UsageError("--ami and --image both name the machine image: give one of them")
    prepare = "prepare" in given
    if prepare:
        if "spot" in given:
            raise UsageError(
                "--prepare and --spot do not go together: a worker that is set up over SSH gets "
                "no notice of an interruption; leave one of them out"
            )
        for name in _LEFT_TO_PREPARE:
            if name in given:
                raise UsageError(
                    f"{_option(name)} means nothing with --prepare: give it to adr prepare"
                )
        for name in _WITHOUT_ROLE:
            if name in given:
                raise UsageError(
                    f"{_option(name)} means nothing with --prepare, whose instances have no role "
                    f"but credentials that adr prepare lends: leave it out"
                )
    settings = config.load_config("aws", "configuration")
    for name, setting in (
        ("ait", "instance_type"),
        ("asg", "security_groups"),
        ("akp", "key_pair"),
        ("ami", "machine_image"),
    ):
        if settings[setting] and not (name == "ami" and "image" in given):
            given = {name: settings[setting], **given}
    if prepare and not ({"akp", "ami"} & given.keys()):
        raise UsageError(
            "--prepare needs a key pair to log in with: name one with --akp, or an image that "
            "lets you in with --ami"
        )
    image = given.get("image", Ec2Spec.image)
    if image not in ("ubuntu", "amazon"):
        raise UsageError(f"--image takes ubuntu or amazon, not {image!r}")
    return Ec2Spec(
        n=n,
        most=_whole("max", given, _MOST_HOSTS) or Ec2Spec.most,
        types=_texts("ait", given, _TYPE, _TYPE_WORDS) or Ec2Spec.types,
        ami=_id("ami", given),
        image=image,
        groups=_texts("asg", given, r"sg-[0-9a-z]+", "ids of security groups such as sg-0a1b2c3d"),
        key_pair=given.get("akp"),
        subnet=_id("subnet", given),
        spot="spot" in given,
        fallback="fallback" in given,
        disk_gib=_whole("disk", given, _MOST_GIB),
        volumes=_volumes(given),
        setup=_script(given),
        instance_profile=given.get("instance_profile"),
        aws_for_jobs="aws_for_jobs" in given,
        pip_options=given.get("pip_options", ""),
        prepare=prepare,
        worker=_worker(given),
    )


def _worker(given: Mapping[str, Any]) -> WorkerOptions:
    keep = "keep" in given
    for name in ("idle", "max_hours"):
        if keep and name in given:
            raise UsageError(f"--keep turns {_option(name)} off: give one of them")
    return WorkerOptions(
        slots=_whole("slots", given, 1000),
        idle_min=_number("idle", given, 525_600) or WorkerOptions.idle_min,
        max_hours=_number("max_hours", given, 8_760),
        keep=keep,
    )


def _is_given(value: object) -> bool:
    # Also 0, which is no good value and is to be refused.
    return value is not None and value is not False and value != [] and value != ()


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _refuse_others(kind: str, given: Collection[str]) -> None:
    known = set().union(*_OPTIONS.values())
    for name in given:
        if name not in known:
            raise UsageError(f"a launch has no option {name!r}: it has {', '.join(sorted(known))}")
        if name not in _OPTIONS[kind]:
            raise UsageError(f"{_option(name)} means nothing for {_CALLED[kind]}: leave it out")


def _number_of_hosts(n: int | str | None) -> int | None:
    if n == AUTO:
        return None
    text = "1" if n is None else str(n)
    if not (text.isascii() and text.isdigit() and text.strip("0")):
        raise UsageError(f"-n takes a whole number from 1 up, or {AUTO}, not {text!r}")
    if len(text.lstrip("0")) > 9 or int(text) > _MOST_HOSTS:
        raise UsageError(f"-n takes at most {_MOST_HOSTS:,}, not {text[:20]}")
    return int(text)


def _whole(name: str, given: Mapping[str, Any], most: int) -> int | None:
    value = _number(name, given, most, 1)
    if value is None:
        return None
    if value != int(value):
        raise UsageError(f"{_option(name)} takes a whole number, not {given[name]!r}")
    return int(value)


def _number(
    name: str, given: Mapping[str, Any], most: float, least: float | None = None
) -> float | None:
    if name not in given:
        return None
    try:
        value = float(given[name])
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not (0 < value <= most and value >= (least or 0)):
        above = "above 0" if least is None else f"from {least:g}"
        raise UsageError(f"{_option(name)} takes a number {above} to {most:,}, not {given[name]!r}")
    return value


def _texts(name: str, given: Mapping[str, Any], pattern: str, what: str) -> tuple[str, ...]:
    """Return texts that were given as a list, or as one text with commas; each once."""
    value = given.get(name, ())
    parts: Sequence[str] = value.split(",") if isinstance(value, str) else list(value)
    texts = [str(part).strip() for part in parts]
    for text in texts:
        if not re.fullmatch(pattern, text):
            raise UsageError(
                f"{_option(name)} takes {what}, with commas between them, not {text!r}"
            )
    return tuple(dict.fromkeys(texts))


def _id(name: str, given: Mapping[str, Any]) -> str | None:
    value: str | None = given.get(name)
    if value is not None and not re.fullmatch(rf"{name}-[0-9a-z]+", value):
        raise UsageError(f"{_option(name)} takes an id such as {name}-0a1b2c3d, not {value!r}")
    return value


def _script(given: Mapping[str, Any]) -> Path | None:
    name = given.get("setup")
    if name is None:
        return None
    path = Path(name)
    if not path.is_file() or not os.access(path, os.R_OK):
        raise UsageError(f"--setup={name} is no file that can be read: check its name")
    return path


def _volumes(given: Mapping[str, Any]) -> tuple[Volume, ...]:
    value = given.get("volume", ())
    found: dict[str, Volume] = {}
    for text in [value] if isinstance(value, str) else value:
        match = re.fullmatch(r"(snap-[0-9a-z]+):(/[\w./+-]+)", str(text), re.ASCII)
        mount = PurePosixPath(match[2]) if match else PurePosixPath("/")
        if match is None or ".." in mount.parts or mount == PurePosixPath("/"):
            raise UsageError(
                f"--volume takes a snapshot and where to mount it, snap-0a1b2c3d:/mnt/data, "
                f"not {text!r}"
            )
        if str(mount) in found:
            raise UsageError(f"two volumes cannot both be mounted at {mount}: choose another path")
        found[str(mount)] = Volume(match[1], str(mount))
    return tuple(found.values())
