"""What a launcher and its child say to each other, and how.

The messages are marshalled objects behind their length in four bytes: a request is the tuple
of what `_Jobs.run` of `adr.worker.launcher_child` takes, a number of seconds (None: the usual
one) between TERM and KILL stops the running job, the answer is a tuple of the fields of
`adr.worker.launcher.Ending`. marshal, since both ends are the same interpreter and json would
double the time that the child takes to start.

They go through two pipes. Whoever reads from a socket is woken as well each time that the other
end has read from it, which takes longer than the reading.

For the child as well, so it imports nothing of adr.
"""

from __future__ import annotations

import marshal
import os

# What typing.TYPE_CHECKING is to a type checker, without the megabyte of typing.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Inbox", "pack", "send"]

_READ_BYTES = 1 << 16


def pack(message: Any) -> bytes:
    """Return the bytes that carry a message."""
    body = marshal.dumps(message)
    return len(body).to_bytes(4, "little") + body


def send(fd: int, message: bytes) -> None:
    """Write what `pack` has returned, all of it."""
    while message:
        message = message[os.write(fd, message) :]


class Inbox:
    """Read the messages that come through a pipe."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._buffer = bytearray()

    def read(self) -> list[Any]:
        """Wait for bytes, and return the messages they complete; EOFError at the end."""
        data = os.read(self.fd, _READ_BYTES)
        if not data:
            raise EOFError
        self._buffer += data
        messages = []
        while len(self._buffer) >= 4:
            end = 4 + int.from_bytes(self._buffer[:4], "little")
            if len(self._buffer) < end:
                break
            messages.append(marshal.loads(bytes(self._buffer[4:end])))
            del self._buffer[:end]
        return messages
