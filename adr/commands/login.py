"""How several commands are told to log in to hosts over SSH."""

from __future__ import annotations

import getpass
import sys

from adr.errors import UsageError
from adr.options import Arguments

__all__ = ["login_of", "password_of"]


def login_of(given: Arguments) -> dict[str, str | None]:
    """Return user, password and key, by the names that the functions of adr have for them."""
    return {
        "user": given.text("--user"),
        "password": password_of(given),
        "key_filename": given.text("--key"),
    }


def password_of(given: Arguments) -> str | None:
    """Return the password that was given, or ask for it where that was asked for.

    Raises
    ------
    UsageError
        If there is no terminal to ask on.
    """
    password = given.text("--password")
    if not given.flag("--ask-password"):
        return password
    if password is not None:
        raise UsageError("--password and --ask-password both give the password: choose one")
    if not sys.stdin.isatty():
        raise UsageError("--ask-password needs a terminal to ask on: there is none")
    return getpass.getpass("SSH password: ", sys.stderr)
