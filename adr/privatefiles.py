"""Files with the settings of a user: read, and replaced whole, for nobody but their owner."""

from __future__ import annotations

import errno
import logging
import os
import secrets
from pathlib import Path

from adr.errors import UsageError

__all__ = ["read_private", "replace_private"]

_log = logging.getLogger(__name__)


def read_private(path: Path, variable: str) -> bytes | None:
    """Return the content of a file, None where there is none.

    Parameters
    ----------
    variable : str
        The variable of the environment that names another one, for the message.

    Raises
    ------
    UsageError
        If it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}; "
            f"make it a readable file, or name another one in {variable}"
        ) from error


def replace_private(path: Path, content: bytes, variable: str) -> None:
    """Replace a file by one that only its owner can read, whole or not at all.

    Parameters
    ----------
    variable : str
        The variable of the environment that names another one, for the message.

    Raises
    ------
    UsageError
        If it cannot be written.
    """
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
