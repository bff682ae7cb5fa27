"""The settings of a user: their file, their order of precedence, the wizard, the AWS CLI files.

A value is looked for in this order, and the first one found holds:

1. the option of the command, or the argument of the function;
2. the environment; for credentials, region and endpoint of AWS this is all that boto3 finds
   by itself (``AWS_PROFILE``, ``AWS_DEFAULT_REGION``, ``AWS_ENDPOINT_URL``, its own files,
   the role of the machine);
3. the configuration file;
4. the default, in `JSON_DEFAULT`; the region, unset there, falls back to ``eu-central-1``.

The file is ``config.json`` in the configuration folder of the platform, or the one that
``ADR_CONFIG`` names. A setting that is missing, null or empty in it is unset and never hides
a default; settings that this version does not know are kept.

The console and `adr.adr` read settings here; nothing here knows what they are used for. How
the files of the AWS CLI are built is the business of `adr.awsfiles`.
"""

from __future__ import annotations

import copy
import errno
import getpass
import json
import logging
import os
import secrets
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adr.awsfiles import edit_section, profile_of
from adr.errors import UsageError

__all__ = [
    "JSON_DEFAULT",
    "ask_question",
    "config_path",
    "disp_item",
    "get_item",
    "load_config",
    "set_item",
    "update_config",
    "wizard",
    "write_aws_config",
    "write_config",
]

_log = logging.getLogger(__name__)

#: Every setting with its default; None and the empty list are unset.
JSON_DEFAULT: dict[str, Any] = {
    "runner": None,
    "aws": {
        "credentials": {"access_key_id": None, "secret_access_key": None},
        "configuration": {
            "region": None,
            "machine_image": None,
            "instance_type": None,
            "security_groups": [],
            "key_pair": None,
            "output": "json",
        },
    },
    "ssh": {"user": "ubuntu", "password": None, "key_filename": None},
    "command": {"command": None, "preprocessing": None, "postprocessing": None},
    "job": {"timeout": None, "attempts": None, "retry_on": [], "crash_limit": None},
}

#: Settings that hold a number, and one that holds a list of numbers or texts.
_NUMBERS = {"job.timeout", "job.attempts", "job.crash_limit"}
_CODES = "job.retry_on"

#: Keys, words, masked, split; in the order of the wizard.
_QUESTIONS: tuple[tuple[tuple[str, ...], str, bool, bool], ...] = (
    (("aws", "credentials", "access_key_id"), "AWS access key ID", True, False),
    (("aws", "credentials", "secret_access_key"), "AWS secret access key", True, False),
    (("ssh", "user"), "SSH user", False, False),
    (("ssh", "password"), "SSH password", True, False),
    (("ssh", "key_filename"), "SSH key file", False, False),
    (("aws", "configuration", "region"), "AWS region", False, False),
    (("aws", "configuration", "instance_type"), "AWS instance type", False, False),
    (("aws", "configuration", "machine_image"), "AWS machine image", False, False),
    (("aws", "configuration", "security_groups"), "AWS security groups", False, True),
    (("aws", "configuration", "key_pair"), "AWS key pair", False, False),
    (("command", "command"), "Command", False, False),
    (("command", "preprocessing"), "Preprocessing", False, False),
    (("command", "postprocessing"), "Postprocessing", False, False),
    (("aws", "configuration", "output"), "AWS output format", False, False),
)


def config_path() -> Path:
    """Return where the configuration file is, or would be."""
    named = os.environ.get("ADR_CONFIG")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_config_dir("adr")) / "config.json"


def load_config(*keys: str) -> Any:
    """Read the configuration, or a part of it.

    Without a file everything has its default.

    Parameters
    ----------
    *keys : str
        Where the part stands: its key, after the keys of the objects around it.

    Returns
    -------
    dict or str or list of str or None
        A copy of the part, unset settings replaced by their defaults.

    Raises
    ------
    UsageError
        If the file is broken or unreadable, or there is no setting of that name.

    See Also
    --------
    update_config, write_config, get_item

    Examples
    --------
    >>> config.load_config()
    >>> config.load_config('aws', 'credentials')
    """
    path = config_path()
    content = _read(path, "ADR_CONFIG")
    try:
        cfg = _complete(JSON_DEFAULT, None if content is None else _parse(content))
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"the configuration file {path} is broken ({error}): "
            f"mend it, or remove it and run 'adr config'"
        ) from error
    return get_item(cfg, keys)


def update_config(*keys: Any) -> None:
    """Change one setting in the file.

    The file is read, changed and replaced whole: of two changes at the same moment, one may
    be lost, and the file is valid all the same.

    Parameters
    ----------
    *keys : str
        Where the setting stands; the last one is the value it gets, None to unset it.

    Raises
    ------
    UsageError
        If there is no such setting, the value is of the wrong kind, or the file is broken
        or cannot be written; nothing has been changed.

    See Also
    --------
    load_config, write_config, set_item

    Examples
    --------
    >>> config.update_config('aws', 'credentials', 'access_key_id', 'ABCDEFGHIJKLMNOPQRSTUVWXYZ')
    """
    if len(keys) < 2:
        raise UsageError("update_config needs the keys of a setting, and then its value")
    *place, value = keys
    cfg = load_config()
    get_item(cfg, place)
    write_config(set_item(cfg, place, value))


def write_config(cfg: Mapping[str, Any]) -> None:
    """Write the configuration to its file, readable only by its owner.

    The file is replaced as a whole or not at all.

    Parameters
    ----------
    cfg : dict
        Configuration like `JSON_DEFAULT`; what is missing is written with its default.

    Raises
    ------
    UsageError
        If a value is of the wrong kind, or the file cannot be written.

    See Also
    --------
    load_config, update_config, write_aws_config
    """
    try:
        text = json.dumps(_complete(JSON_DEFAULT, cfg), indent=4)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"the configuration cannot be written ({error}): correct this setting"
        ) from error
    _write(config_path(), f"{text}\n".encode(), "ADR_CONFIG")


def get_item(cfg: Any, keys: Sequence[str]) -> Any:
    """Return the part of a configuration that the keys lead to.

    Parameters
    ----------
    cfg : dict
        Configuration.
    keys : tuple of str
        Keys from the outermost inwards; none for the whole.

    Raises
    ------
    UsageError
        If a key leads nowhere.
    """
    item = cfg
    for depth, key in enumerate(keys):
        if not isinstance(item, Mapping) or key not in item:
            raise UsageError(
                f"there is no setting '{'.'.join(map(str, keys))}': {_describe(item, keys[:depth])}"
            )
        item = item[key]
    return item


def set_item(cfg: dict[str, Any], keys: Sequence[str], val: Any) -> dict[str, Any]:
    """Set what the keys lead to, making the objects on the way where they are missing.

    Parameters
    ----------
    cfg : dict
        Configuration; changed in place.
    keys : tuple of str
        Keys from the outermost inwards.
    val : any
        Value to set.

    Returns
    -------
    dict
        `cfg`.

    Raises
    ------
    UsageError
        If a key on the way leads to a value, which can hold no other.
    """
    item = cfg
    for depth, key in enumerate(keys[:-1], start=1):
        item = item.setdefault(key, {})
        if not isinstance(item, dict):
            raise UsageError(
                f"there is no setting '{'.'.join(keys)}': {_describe(item, keys[:depth])}"
            )
    item[keys[-1]] = val
    return cfg


def disp_item(val: str | Sequence[str] | None, masked: bool = False) -> str:
    """Write a value as the wizard shows it.

    Parameters
    ----------
    val : str or list of str
        Value; a list is joined by commas, None is empty.
    masked : bool, optional
        Show the first 80 % as stars, rounded up so that a short secret is hidden whole.
    """
    text = "" if val is None else val if isinstance(val, str) else ",".join(val)
    if masked:
        shown = len(text) // 5
        return "*" * (len(text) - shown) + text[len(text) - shown :]
    return text


def ask_question(
    cfg: dict[str, Any],
    keys: Sequence[str],
    display: str,
    masked: bool = False,
    split: bool = False,
) -> dict[str, Any]:
    """Ask for a value and set it; an empty answer leaves it as it is.

    Parameters
    ----------
    cfg : dict
        Configuration; changed in place.
    keys : tuple of str
        Keys of the setting.
    display : str
        Words of the question.
    masked : bool, optional
        The value is a secret: show it masked, and do not echo what is typed on a terminal.
    split : bool, optional
        The value is a list: split the answer at commas.

    Returns
    -------
    dict
        `cfg`.

    Raises
    ------
    EOFError
        If the input has ended.

    See Also
    --------
    disp_item, get_item, set_item
    """
    current = disp_item(get_item(cfg, keys), masked)
    answer = _ask(f"{display} [{current}]: " if current else f"{display}: ", hidden=masked)
    if not answer:
        return cfg
    if split:
        return set_item(cfg, keys, [part.strip() for part in answer.split(",") if part.strip()])
    return set_item(cfg, keys, answer)


def wizard() -> None:
    """Ask for every setting in turn and write the answers.

    The first answer is written after the last question: Ctrl-C, or an end of the input,
    changes nothing.

    Raises
    ------
    UsageError
        If the input ends before the last answer or is no text, or a file is broken or cannot
        be written.

    See Also
    --------
    load_config, write_config, write_aws_config, ask_question
    """
    cfg = load_config()
    try:
        for keys, display, masked, split in _QUESTIONS:
            cfg = ask_question(cfg, keys, display, masked, split)
        reply = None
        while reply not in ("", "y", "yes", "n", "no"):
            reply = _ask("Also write AWSCLI config [Y/n]? ").lower()
    except EOFError as error:
        raise UsageError(
            "the input ended before the last question of the wizard, so nothing has been "
            "written: run 'adr config' again and answer every question, if only with Enter"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"an answer is not text in {error.encoding}, so nothing has been written: "
            f"run 'adr config' again in a terminal of that encoding"
        ) from error
    # The runner is not asked for; another command may have changed it in the meantime.
    write_config(set_item(cfg, ("runner",), load_config("runner")))
    if reply in ("", "y", "yes"):
        write_aws_config(cfg)


def write_aws_config(cfg: Mapping[str, Any]) -> None:
    """Write credentials, region and output format to the files of the AWS CLI.

    The files are ``~/.aws/credentials`` and ``~/.aws/config``, or those that
    ``AWS_SHARED_CREDENTIALS_FILE`` and ``AWS_CONFIG_FILE`` name; the profile is that of
    ``AWS_PROFILE``, or ``default``. Other profiles, other settings of this one, comments and
    order stay. A session token of the profile is removed with the keys it belonged to. What
    is unset in `cfg` is left as it is in the files. Each file is replaced whole or not at all.

    Parameters
    ----------
    cfg : dict
        Configuration like `JSON_DEFAULT`.

    Raises
    ------
    UsageError
        If a value does not fit into these files, or one of them cannot be read or written.

    See Also
    --------
    write_config
    """
    profile = os.environ.get("AWS_PROFILE") or "default"
    key_id = get_item(cfg, ("aws", "credentials", "access_key_id"))
    secret = get_item(cfg, ("aws", "credentials", "secret_access_key"))
    if key_id and secret:
        _edit_profile(
            "AWS_SHARED_CREDENTIALS_FILE",
            "~/.aws/credentials",
            profile,
            lambda header: header == profile,
            {
                "aws_access_key_id": key_id,
                "aws_secret_access_key": secret,
                "aws_session_token": None,
                "aws_security_token": None,
            },
        )
    settings = {
        name: get_item(cfg, ("aws", "configuration", name)) for name in ("region", "output")
    }
    settings = {name: value for name, value in settings.items() if value}
    if settings:
        _edit_profile(
            "AWS_CONFIG_FILE",
            "~/.aws/config",
            "default" if profile == "default" else f"profile {shlex.quote(profile)}",
            lambda header: profile_of(header) == profile,
            settings,
        )


def _parse(content: bytes) -> Any:
    data = json.loads(content)
    if not isinstance(data, dict):
        raise ValueError(f"it holds {_kind(data)} where an object is expected")
    return data


def _complete(default: Any, given: Any, key: str = "") -> Any:
    """Return a copy of `given`, its unset settings replaced by their defaults.

    The message of the ValueError names the setting but not its value, which may be a secret.
    """
    if given is None or given == "":
        return copy.deepcopy(default)
    if isinstance(default, dict):
        if isinstance(given, Mapping):
            known = {
                name: _complete(value, given.get(name), f"{key}.{name}".lstrip("."))
                for name, value in default.items()
            }
            return {**copy.deepcopy(dict(given)), **known}
        expected = "an object"
    elif isinstance(default, list):
        kinds = (str, int) if key == _CODES else (str,)
        if isinstance(given, list) and all(isinstance(each, kinds) for each in given):
            return list(given)
        expected = "a list of exit codes" if key == _CODES else "a list of texts"
    elif key in _NUMBERS:
        if isinstance(given, int | float) and not isinstance(given, bool):
            return given
        expected = "a number"
    elif isinstance(given, str):
        return given
    else:
        expected = "a text"
    raise ValueError(f"'{key}' holds {_kind(given)} where {expected} is expected")


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    kinds |= {int: "a number", float: "a number", type(None): "null"}
    return kinds.get(type(value), type(value).__name__)


def _describe(item: Any, keys: Sequence[str]) -> str:
    name = f"'{'.'.join(map(str, keys))}'" if keys else "the configuration"
    if isinstance(item, Mapping):
        return f"{name} holds {', '.join(map(str, item))}"
    return f"{name} is a value and holds no other"


def _ask(prompt: str, hidden: bool = False) -> str:
    if hidden and sys.stdin.isatty():
        return getpass.getpass(prompt).strip()
    if sys.stdout.isatty():
        # Line editing redraws the line and has to know the prompt.
        return input(prompt).strip()
    print(prompt, end="", file=sys.stderr, flush=True)
    return input().strip()


def _edit_profile(
    variable: str,
    usual: str,
    header: str,
    wanted: Callable[[str], bool],
    values: Mapping[str, str | None],
) -> None:
    path = Path(os.path.expandvars(os.environ.get(variable) or usual)).expanduser()
    for text in (header, *(value for value in values.values() if value is not None)):
        if not text.isprintable():
            raise UsageError(
                f"a line break or another control character stands in the profile or settings "
                f"for {path}, which cannot hold it: correct AWS_PROFILE or run 'adr config' again"
            )
    # Surrogates carry bytes that are not UTF-8 through the edit unchanged.
    text = (_read(path, variable) or b"").decode("utf-8", "surrogateescape")
    edited = edit_section(text, header, wanted, values)
    _write(path, edited.encode("utf-8", "surrogateescape"), variable)


def _read(path: Path, variable: str) -> bytes | None:
    """Return the content of a file, None where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}; "
            f"make it a readable file, or name another one in {variable}"
        ) from error


def _write(path: Path, content: bytes, variable: str) -> None:
    """Replace a private file, whole or not at all."""
    # A link is followed, so that settings kept elsewhere stay linked.
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        if target.exists() and not target.is_file():
            # Renaming over a device, such as /dev/null, would take it from everybody.
            raise OSError(errno.EINVAL, "it is not an ordinary file")
        if not target.parent.exists():
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(descriptor)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}; "
            f"make it a writable file, or name another one in {variable}"
        ) from error
    _log.info("wrote %s", path)
