"""What the errors of boto3 mean: which of adr's own each becomes, and what to do about it.

Backends have these functions from `adr.aws`, beside the clients whose errors they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from botocore import exceptions as core

from adr.errors import (
    AdrError,
    Conflict,
    Denied,
    NotFound,
    RunnerGone,
    ServiceError,
    Unavailable,
    UsageError,
)

__all__ = ["error_code", "is_denied", "is_uncertain", "translated"]

_LOG_IN = "run adr config, or set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_RENEW = "log in again, or where adr prepare has set up this machine, run adr prepare --renew"
#: What botocore says, in an error of no kind of its own, where it is given keys that have ended.
_STILL_ENDED = "refreshed credentials are still expired"
_ENDED = f"the credentials of this machine have ended: {_RENEW}"


def error_code(error: BaseException | None) -> str:
    """Return the code AWS gave an error, such as ``NoSuchKey``; empty where it gave none."""
    if isinstance(error, core.ClientError):
        return str(error.response.get("Error", {}).get("Code", ""))
    return ""


def is_uncertain(error: AdrError) -> bool:
    """Tell whether a call that failed with a translated `error` may have been carried out."""
    cause = error.__cause__
    if isinstance(cause, core.ClientError):
        return int(cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)) >= 500
    return isinstance(cause, (core.ConnectionError, core.HTTPClientError))


def is_denied(error: AdrError) -> bool:
    """Tell whether a call failed, with a translated `error`, for want of a permission."""
    return error_code(error.__cause__) in _DENIED


@contextmanager
def translated(operation: str, subject: str) -> Iterator[None]:
    """Turn the errors of boto3 within into one sentence of adr's own.

    Parameters
    ----------
    operation, subject : str
        What is tried and on what: they complete "cannot …", as in ``"read"``,
        ``"the manifest of batch b"``.

    Raises
    ------
    NotFound, Conflict, RunnerGone
        If there is no such object, a condition did not hold, or there is no such runner.
    UsageError
        If the input was refused before anything was sent.
    ServiceError
        If AWS refused, failed or could not be reached.

    Examples
    --------
    >>> with translated("read", "the manifest"):
    ...     client.get_object(Bucket=bucket, Key=key)
    """
    try:
        yield
    except core.ClientError as error:
        kind, why = _answer(error)
        raise kind(f"cannot {operation} {subject}: {why}") from error
    except core.BotoCoreError as error:
        kind, why = _trouble(error)
        raise kind(f"cannot {operation} {subject}: {why}") from error
    except RuntimeError as error:
        if _STILL_ENDED not in str(error):
            raise
        raise Unavailable(f"cannot {operation} {subject}: {_ENDED}") from error


_MISSING = {"NoSuchKey", "NotFound", "404"}
_GONE = {
    "NoSuchBucket",
    "QueueDoesNotExist",
    "AWS.SimpleQueueService.NonExistentQueue",
}
_CONFLICTS = {"PreconditionFailed", "412", "ConditionalRequestConflict"}
_DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "Forbidden", "403"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_THROTTLED = {
    "RequestThrottled",
    "SlowDown",
    "ThrottledException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
}
_WRONG_KEYS = {
    "AuthFailure",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}


def _answer(error: core.ClientError) -> tuple[type[AdrError], str]:
    """Read an error that AWS answered."""
    code = error_code(error)
    said = str(error.response.get("Error", {}).get("Message", "")).strip().rstrip(".") or code
    action = error.operation_name
    if code in _MISSING:
        return NotFound, "it does not exist"
    if code in _GONE:
        return RunnerGone, "the runner is gone; adr list shows those there are"
    if code in _CONFLICTS:
        return Conflict, f"it has been changed meanwhile ({code})"
    if code in _DENIED:
        return Denied, (
            f"AWS denies {action} to these credentials ({said}): "
            f"ask for that permission, or use others (adr config or AWS_PROFILE)"
        )
    if code in _EXPIRED:
        return Unavailable, _ENDED
    if code in _WRONG_KEYS:
        return ServiceError, f"AWS does not accept the credentials ({code}): {_LOG_IN}"
    if code == "RequestTimeTooSkewed":
        return ServiceError, "the clock of this machine is wrong: set it and try again"
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
    kind = Unavailable if status >= 500 or code in _THROTTLED else ServiceError
    return kind, f"AWS answered {action} with {code} ({said})"


def _trouble(error: Exception) -> tuple[type[AdrError], str]:
    """Read an error that botocore raised without an answer of AWS."""
    said = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, core.ProfileNotFound):
        return UsageError, f"{said}: set AWS_PROFILE to one of those in ~/.aws/config"
    if isinstance(error, (core.ConfigParseError, core.InvalidConfigError)):
        return UsageError, f"{said}: correct that file"
    if isinstance(error, core.InvalidRegionError):
        return UsageError, "this is no region: give one such as eu-central-1"
    if isinstance(error, core.ParamValidationError):
        return UsageError, said
    if isinstance(error, core.PartialCredentialsError):
        return ServiceError, f"the credentials are incomplete ({said}): {_LOG_IN}"
    if isinstance(error, core.NoCredentialsError):
        return ServiceError, f"there are no AWS credentials: {_LOG_IN}"
    if isinstance(
        error,
        (
            core.CredentialRetrievalError,
            core.SSOError,
            core.TokenRetrievalError,
        ),
    ):
        # A worker that runs goes on when they can be had again.
        return Unavailable, f"the credentials could not be had ({said}): {_RENEW}"
    if isinstance(error, (core.ConnectionError, core.HTTPClientError, core.IncompleteReadError)):
        return Unavailable, f"{said}: check the network, the region and AWS_ENDPOINT_URL"
    return ServiceError, said
