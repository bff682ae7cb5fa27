"""How to log in to a host over SSH, and in plain words why that failed.

Used by `adr.remote` alone.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass, field
from functools import cache

import paramiko
from fabric import Connection
from paramiko import ssh_exception

from adr.errors import ServiceError, Unavailable, UsageError
from adr.hostkeys import KnownHosts, changed_key

__all__ = ["Login", "no_connection", "read_key", "said"]


@dataclass(frozen=True)
class Login:
    """Say how to log in, where ``~/.ssh/config`` and the agent do not."""

    user: str | None = None
    #: Also the passphrase of the key.
    password: str | None = field(default=None, repr=False)
    key_filename: str | None = None


@cache  # a passphrase is slow to try, by design
def read_key(login: Login) -> paramiko.PKey:
    """Read the key of a login, whatever its kind; with it goes the certificate beside it."""
    path = os.path.expanduser(str(login.key_filename))
    for kind in (paramiko.Ed25519Key, paramiko.RSAKey, paramiko.ECDSAKey):
        try:
            try:
                key: paramiko.PKey = kind.from_private_key_file(path)
            except paramiko.PasswordRequiredException:
                if not login.password:
                    raise
                key = kind.from_private_key_file(path, login.password)
        except paramiko.PasswordRequiredException as error:
            raise UsageError(
                f"the key {path} has a passphrase: give it as the password, or let ssh-add hand "
                f"the key to the agent"
            ) from error
        except OSError as error:
            raise UsageError(f"cannot read the key {path}: {error.strerror}") from error
        except (paramiko.SSHException, ValueError):
            continue
        if os.path.isfile(f"{path}-cert.pub"):
            key.load_certificate(f"{path}-cert.pub")
        return key
    raise UsageError(
        f"{path} is no private key that can be used: give one of ssh-keygen, and its passphrase "
        f"as the password if it has one"
    )


def no_connection(
    error: BaseException, connection: Connection, known_hosts: KnownHosts
) -> ServiceError:
    """Say why a host could not be reached, and what to do."""
    at = _at(connection)
    if isinstance(error, paramiko.BadHostKeyException):
        return changed_key(error, connection.port, known_hosts)
    if isinstance(error, paramiko.AuthenticationException) or _is_about_keys(error):
        return ServiceError(_refused_login(error, connection))
    if isinstance(error, TimeoutError) or "No existing session" in str(error):
        return Unavailable(f"{at} does not answer: is the host up, and is the name right?")
    if isinstance(error, socket.gaierror):
        return Unavailable(f"nobody knows a host {connection.host}: check the name")
    if isinstance(error, ssh_exception.NoValidConnectionsError):
        numbers = {each.errno for each in error.errors.values()}
    else:
        numbers = {getattr(error, "errno", None)}
    if errno.ECONNREFUSED in numbers:
        return Unavailable(f"{at} refuses connections: is sshd running there, and is it that port?")
    if numbers & {errno.EHOSTUNREACH, errno.ENETUNREACH}:
        return Unavailable(f"there is no way to {at}: is the host up, and is the network?")
    if isinstance(error, paramiko.ChannelException):
        return Unavailable(f"{at} cannot be reached from the host before it ({error.text})")
    if isinstance(error, (EOFError, ConnectionError)) or "banner" in str(error):
        return Unavailable(f"{at} does not speak SSH, or is too busy to: {said(error)}")
    return ServiceError(f"cannot connect to {at}: {said(error)}")


def _is_about_keys(error: BaseException) -> bool:
    """Tell whether Paramiko ran out of keys: it then raises what it met last."""
    if not isinstance(error, paramiko.SSHException):
        return False
    said = str(error).lower()
    return "private key" in said or "no authentication methods" in said or "invalid key" in said


def _refused_login(error: BaseException, connection: Connection) -> str:
    given = connection.connect_kwargs
    tried = [f"the key {each}" for each in given.get("key_filename") or []]
    if given.get("pkey") is not None:
        tried.insert(0, "the key given")
    tried.append("the agent and the keys in ~/.ssh")
    if given.get("password") is not None:
        tried.append("the password")
    if isinstance(error, ssh_exception.BadAuthenticationType):
        tried[-1] += f" (it takes {' or '.join(error.allowed_types)})"
    return (
        f"{connection.host} does not let {connection.user} in; tried {', '.join(tried)}: "
        f"is that the user, and is the public key in its ~/.ssh/authorized_keys?"
    )


def _at(connection: Connection) -> str:
    return f"{connection.host} port {connection.port}"


def said(error: BaseException) -> str:
    """Return what an error says, on one line, or else what it is called."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
