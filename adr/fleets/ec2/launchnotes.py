"""How a launch is repeated after its answer was lost, and launches nothing twice.

Before anything is asked for, a note with a random token is written into the store. The token is
a tag of all that is launched, and EC2 takes two requests with the same one for the same. Whoever
repeats a launch finds the note: instances with that tag are taken over, and only where there are
none the request is sent again, under the same token. The note goes once the instances run.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from adr.errors import AdrError, NotFound
from adr.fleets.base import HostState
from adr.fleets.ec2.instances import state_of
from adr.fleets.ec2.refusals import is_open
from adr.keys import LAUNCHES
from adr.models import SCHEMA
from adr.stores.base import ObjectStore

__all__ = ["Noted", "noted"]

_log = logging.getLogger(__name__)

#: EC2 knows a token for so long.
_FORGOTTEN_AFTER_S = 24 * 3600.0
#: By now EC2 shows what was launched: where there is nothing, nothing is to come.
_VISIBLE_AFTER_S = 600.0
_GONE = (HostState.ENDING, HostState.ENDED)

#: Finds the instances of a token.
Launched = Callable[[str], Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Noted:
    """Hold what is known of a launch before anything is asked for."""

    token: str
    #: Ids of the instances that it has launched already.
    instances: tuple[str, ...] = ()
    #: How long ago it was noted by another; None: just now, for this launch.
    age_s: float | None = None


@contextmanager
def noted(store: ObjectStore, wish: str, launched: Launched) -> Iterator[Noted]:
    """Keep a note while a launch is under way.

    It stays where nobody knows what has become of the launch: when this process is ended, or
    an answer is lost.

    Parameters
    ----------
    wish : str
        Tells a repeated launch from another one.
    """
    found = _found(store, wish, launched) or Noted(_write(store, wish))
    try:
        yield found
    except AdrError as error:
        if not is_open(error):
            store.delete([_key(found.token)])
        raise
    store.delete([_key(found.token)])


def _write(store: ObjectStore, wish: str) -> str:
    token = secrets.token_hex(16)
    note = {"schema": SCHEMA, "wish": wish, "at": time.time()}
    store.write(_key(token), json.dumps(note).encode())
    return token


def _found(store: ObjectStore, wish: str, launched: Launched) -> Noted | None:
    for entry in list(store.list(LAUNCHES)):
        token = entry.key.removeprefix(LAUNCHES).removesuffix(".json")
        try:
            document = store.read(entry.key)
            same = json.loads(document.body)["wish"] == wish
        except (NotFound, ValueError, LookupError, TypeError) as error:
            _log.debug("%s is no note of a launch: %s", entry.key, error)
            continue
        if same and document.age_s < _FORGOTTEN_AFTER_S:
            seen = launched(token)
            alive = [each["InstanceId"] for each in seen if state_of(each) not in _GONE]
            if alive or (not seen and document.age_s < _VISIBLE_AFTER_S):
                return Noted(token, tuple(alive), document.age_s)
        elif not same and document.age_s < _FORGOTTEN_AFTER_S:
            continue
        # Too old, or what came of it has ended by now.
        store.delete([entry.key])
    return None


def _key(token: str) -> str:
    return f"{LAUNCHES}{token}.json"
