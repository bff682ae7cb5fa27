"""The dead letters of an AWS runner: messages that SQS has moved aside, since nobody settled them.

SQS cannot be listed. So whoever looks receives all messages, and shows them again afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from adr.documents import reading
from adr.errors import AdrError
from adr.ledgers.base import DeadLetter
from adr.ledgers.sqs import Message, MessageQueue
from adr.models import Job

__all__ = ["count_dead", "look_at_dead", "revive"]

#: Longer than it takes to look through a thousand of them.
_HIDDEN_S = 120.0
#: Long polls ask all servers of SQS, so that nothing found means that there is nothing.
_WAIT_S = 1.0


def count_dead(queue: MessageQueue) -> int:
    """Count the dead letters of a queue, approximately."""
    depth = queue.dead.depth()
    return depth.waiting + depth.in_flight + depth.delayed


def look_at_dead(queue: MessageQueue) -> list[DeadLetter]:
    """Return the dead letters of a queue, which stay where they are."""
    dead = queue.dead
    messages = {message.id: message for some in _received(dead) for message in some}
    dead.hide([message.handle for message in messages.values()], 0)
    return [_letter(message) for message in messages.values()]


def revive(queue: MessageQueue) -> list[DeadLetter]:
    """Send the jobs among the dead letters of a queue again, and delete those that were sent."""
    dead = queue.dead
    found: dict[str, DeadLetter] = {}
    left: dict[str, str] = {}
    for messages in _received(dead):
        letters = {message.handle: _letter(message) for message in messages}
        queue.send([letter.job for letter in letters.values() if letter.job], again=True)
        dead.delete([handle for handle, letter in letters.items() if letter.job])
        left |= {letter.id: handle for handle, letter in letters.items() if not letter.job}
        found |= {letter.id: letter for letter in letters.values()}
    dead.hide(list(left.values()), 0)
    return list(found.values())


def _received(dead: MessageQueue) -> Iterator[list[Message]]:
    """Receive until nothing comes that is new; what took too long may come twice."""
    known: set[str] = set()
    while messages := dead.receive(10, _WAIT_S, _HIDDEN_S):
        yield messages
        ids = {message.id for message in messages}
        if ids <= known:
            return
        known |= ids


def _letter(message: Message) -> DeadLetter:
    try:
        with reading("the message"):
            return DeadLetter(message.id, Job.from_dict(json.loads(message.body)))
    except AdrError as error:
        return DeadLetter(message.id, None, str(error))
