"""Results of ``adr run`` put where people look for them: from its store into ``<to>/<label>/``.

``<to>/.adr/published.jsonl`` says which attempt lies under which label and which files of it
are adr's. So a run that was cut off is made good by the next, what an older attempt has left
is removed, and a file of somebody else's, or one that was changed since, is never touched.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from adr.errors import AdrError, PartialFailure
from adr.keys import result_key
from adr.models import Job, JobRecord
from adr.stores.base import ObjectStore
from adr.transfer import Fetch, fetch, remove_fetched

__all__ = ["Publisher", "fetches"]

_log = logging.getLogger(__name__)


def fetches(job: Job, record: JobRecord, before: str) -> list[Fetch]:
    """Say where the results of a record lie, and where they go: below `before`."""
    return [
        Fetch(
            key=result_key(job.batch, job.index, record.attempt, each.name),
            name=before + each.name,
            size_bytes=each.size_bytes,
            sha256=each.sha256,
            mode=each.mode,
        )
        for each in record.results
    ]


class Publisher:
    """Keep an output folder as the records say.

    Not thread-safe.

    Parameters
    ----------
    store : ObjectStore
        Where the results are.
    folder : Path
        Where they go.
    notes : Path
        File that tells what lies there.
    """

    def __init__(self, store: ObjectStore, folder: Path, notes: Path) -> None:
        self._store = store
        self._folder = folder
        self._notes = notes
        self._published: dict[str, dict[str, Any]] = {}
        #: Files that are not adr's, or were changed, and have the name of a result.
        self.kept: set[str] = set()
        self._is_cut = False
        if notes.exists():
            body = notes.read_bytes()
            self._is_cut = not body.endswith(b"\n")
            for line in body.splitlines():
                try:
                    note = json.loads(line)
                    files = {**note["files"]}
                    self._published[note["label"]] = {**note, "files": files}
                except (ValueError, KeyError, TypeError):
                    _log.debug("a note was cut off: what it was about is published again")

    def publish(self, items: Iterable[tuple[Job, str, JobRecord]]) -> list[str]:
        """Make the files under each label those of its record, and none else of adr's.

        Returns
        -------
        list of str
            What could not be put into place, as sentences; calling again tries again.
        """
        todo = [each for each in items if not self._is_there(each[1], each[2])]
        if not todo:
            return []
        try:
            for _, label, record in todo:
                self._remove_older(label, record)
            wanted = [
                each for job, label, record in todo for each in fetches(job, record, f"{label}/")
            ]
            kept = set(fetch(self._store, wanted, self._folder).kept_names)
            self.kept |= kept
            with self._notes.open("a", encoding="ascii") as file:
                if self._is_cut:
                    file.write("\n")
                    self._is_cut = False
                for _, label, record in todo:
                    self._note(label, record, kept)
                    file.write(json.dumps(self._published[label]) + "\n")
        except PartialFailure as error:
            return [str(error)]
        except (AdrError, OSError) as error:
            return [f"cannot publish results in {self._folder}: {error}"]
        return []

    def _note(self, label: str, record: JobRecord, kept: set[str]) -> None:
        files = {
            each.name: each.sha256 for each in record.results if f"{label}/{each.name}" not in kept
        }
        self._published[label] = {"label": label, "attempt": record.attempt, "files": files}

    def _is_there(self, label: str, record: JobRecord) -> bool:
        note = self._published.get(label)
        if note is None:
            return not record.results
        return note["attempt"] == record.attempt and all(
            each.name in note["files"] and os.path.lexists(self._folder / label / each.name)
            for each in record.results
        )

    def _remove_older(self, label: str, record: JobRecord) -> None:
        """Remove what an earlier attempt has left under a label, unless it was changed."""
        note = self._published.get(label)
        if note is None or note["attempt"] == record.attempt:
            return
        for name, sha256 in note["files"].items():
            remove_fetched(self._folder, f"{label}/{name}", sha256)
