"""The settings of a user: their file, their order of precedence, the files of the AWS CLI.

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
the files of the AWS CLI are built is the business of `adr.awsfiles`; who asks for all settings is
`adr.wizard`, whose functions are to be had from here as well.
"""

from __future__ import annotations

import copy
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adr.awsfiles import edit_section, profile_of
from adr.errors import UsageError
from adr.privatefiles import read_private, replace_private

if TYPE_CHECKING:
    from adr.wizard import ask_question, disp_item, wizard

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


def __getattr__(name: str) -> Any:
    if name in ("ask_question", "disp_item", "wizard"):
        # Imported when it is asked for: it imports this module, and few ever need it.
        from importlib import import_module

        return getattr(import_module("adr.wizard"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
    content = read_private(path, "ADR_CONFIG")
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
    replace_private(config_path(), f"{text}\n".encode(), "ADR_CONFIG")


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
    text = (read_private(path, variable) or b"").decode("utf-8", "surrogateescape")
    edited = edit_section(text, header, wanted, values)
    replace_private(path, edited.encode("utf-8", "surrogateescape"), variable)
