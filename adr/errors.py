"""The errors adr raises: one root, one clear sentence each.

A subclass exists only where a caller catches it. Backends translate the errors of
botocore, sqlite3 and the operating system into these, once, where they occur; the console
prints the sentence and exits with `exit_code`.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "AdrError",
    "Conflict",
    "Denied",
    "NotFound",
    "PartialFailure",
    "RunnerGone",
    "ServiceError",
    "Unavailable",
    "UsageError",
]


class AdrError(Exception):
    """Say in one sentence what failed, on what, and what to do next."""

    #: Exit status of the command line when this error ends a command.
    exit_code = 1


class UsageError(AdrError):
    """Refuse input that cannot be used; nothing has been changed."""

    exit_code = 2


class NotFound(AdrError):
    """Name an object that does not exist."""


class Conflict(AdrError):
    """Report a conditional write that found another content than it expected."""


class ServiceError(AdrError):
    """Report a service that refused or did not answer."""


class Denied(ServiceError):
    """Report a service that does not allow a call to these credentials."""


class Unavailable(ServiceError):
    """Report a service that is out of reach or overloaded now: worth another try later."""


class RunnerGone(AdrError):
    """Report a runner that has been destroyed, or never was."""

    exit_code = 2


class PartialFailure(AdrError):
    """Report work on many things of which some failed.

    Parameters
    ----------
    message : str
        The sentence for people.
    succeeded, failed : sequence of str
        Names of what was done and of what was not.
    """

    def __init__(
        self, message: str, succeeded: Sequence[str] = (), failed: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.succeeded = tuple(succeeded)
        self.failed = tuple(failed)
