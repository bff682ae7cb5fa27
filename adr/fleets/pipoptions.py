"""Options of pip, as a user gives them for machines that install adr.

They are stored and handed on where others can read them: in user data, in lists of processes.
So an address in them must not hold a login, and no message repeats them.
"""

from __future__ import annotations

import re
import shlex

from adr.errors import UsageError

__all__ = ["pip_words", "refuse_login"]

#: A token is a password too, and is often given as the name of a user. pip takes a proxy
#: without a scheme.
_LOGIN = re.compile(r"(://|--proxy[= ])[^/\s]*@")


def pip_words(options: str) -> list[str]:
    """Return the options as words, split as by a shell.

    Raises
    ------
    UsageError
        If they cannot be split, or an address in them holds a user name or a password.
    """
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise UsageError(
            f"--pip-options cannot be read ({str(error).lower()}): quote as in a shell"
        ) from error
    refuse_login(" ".join(words), "--pip-options")
    return words


def refuse_login(text: str, option: str) -> None:
    """Refuse an address with a user name or a password in it, without repeating it.

    Raises
    ------
    UsageError
        If there is one; it names `option`.
    """
    if _LOGIN.search(text):
        raise UsageError(
            f"an address in {option} holds a user name or a password, which others could read "
            f"on the way to the machines: use an address without"
        )
