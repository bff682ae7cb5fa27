"""The wizard: asks for every setting, one after the other, and has the answers written.

What settings there are, and where they are kept, is the business of `adr.config`, where these
functions are to be had as well.
"""

from __future__ import annotations

import getpass
import sys
from collections.abc import Sequence
from typing import Any

from adr.config import get_item, load_config, set_item, write_aws_config, write_config
from adr.errors import UsageError

__all__ = ["ask_question", "disp_item", "wizard"]

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


def _ask(prompt: str, hidden: bool = False) -> str:
    if hidden and sys.stdin.isatty():
        return getpass.getpass(prompt).strip()
    if sys.stdout.isatty():
        # Line editing redraws the line and has to know the prompt.
        return input(prompt).strip()
    print(prompt, end="", file=sys.stderr, flush=True)
    return input().strip()
