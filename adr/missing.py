"""Jobs that nobody knows of: unaccounted at one look, and lost at a later one.

The counts of SQS are approximate, so one look proves nothing. What was missing at a look is noted
in the store, for whoever looks next.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection
from contextlib import suppress

from adr.documents import reading
from adr.errors import AdrError, NotFound, RunnerGone, ServiceError
from adr.keys import unaccounted_key
from adr.models import SCHEMA
from adr.stores.base import ObjectStore

__all__ = ["LOST_AFTER_S", "MissingJobs"]

_log = logging.getLogger(__name__)

#: As long as the counts of SQS take to be right, and more.
LOST_AFTER_S = 90.0

#: Index and generation.
_Job = tuple[int, int]


class MissingJobs:
    """Tell which jobs are lost of those that are missing.

    Parameters
    ----------
    store : ObjectStore
        The store of the runner.
    lost_after_s : float
        Seconds between two looks at which a job is missing before it is lost.
    """

    def __init__(self, store: ObjectStore, lost_after_s: float) -> None:
        self._store = store
        self._lost_after_s = lost_after_s

    def lost(self, batch: str, missing: Collection[_Job], *, noted: bool) -> list[_Job]:
        """Return those jobs of a batch that were missing at an earlier look as well.

        Notes those that are missing now, with the time of the first such look.

        Parameters
        ----------
        noted : bool
            Whether there is a note of an earlier look.
        """
        key = unaccounted_key(batch)
        known = self._read(key) if noted else {}
        now = time.time()
        names = {_noted_as(*job): job for job in missing}
        # A look cannot have been later than this one: its clock was ahead, or set back since.
        since = {name: min(known.get(name, now), now) for name in names}
        if since != known:
            # Who may only read is not to be kept from looking.
            with suppress(ServiceError):
                self._store.write(key, json.dumps({"schema": SCHEMA, "since": since}).encode())
        again = since.keys() & known
        return [names[name] for name in again if now - since[name] >= self._lost_after_s]

    def _read(self, key: str) -> dict[str, float]:
        try:
            with reading(f"the note {key}"):
                found = json.loads(self._store.read(key).body)["since"]
                return {index: float(since) for index, since in found.items()}
        except (RunnerGone, ServiceError):
            raise
        except NotFound:
            pass
        except AdrError as error:
            _log.warning("%s: it is written anew", error)
        return {}


def _noted_as(index: int, generation: int) -> str:
    """Return what stands for a job in the note on what is unaccounted; another after a retry."""
    return f"{index}~{generation}" if generation else str(index)
