"""The JSON of jobs, of which very many are written at once: into manifests, messages and tables.

Apart from `adr.models`, which is imported by commands that need no JSON.
"""

from __future__ import annotations

import json
from dataclasses import fields
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quoted
from operator import attrgetter
from typing import Any

from adr.models import SCHEMA, Job

__all__ = ["job_text"]

#: What each job of a batch has for itself.
_OWN = {"batch", "index", "count", "label", "command", "input", "fingerprint"}
#: All else mostly is the same in all jobs of a batch.
_SHARED = [spec.name for spec in fields(Job) if spec.name not in _OWN]
_shared_values = attrgetter(*_SHARED)


def job_text(job: Job) -> str:
    """Write `Job.to_dict` as JSON, in a third of the time: what jobs share is written once."""
    own = (
        f'{{"schema":{SCHEMA},"batch":{quoted(job.batch)},"index":{job.index:d},'
        f'"count":{job.count:d},"label":{quoted(job.label)},"command":{quoted(job.command)}'
    )
    given = "" if job.input is None else f',"input":{quoted(job.input)}'
    same = "" if job.fingerprint is None else f',"fingerprint":{quoted(job.fingerprint)}'
    return f"{own}{given}{_shared_text(_shared_values(job))}{same}}}"


@lru_cache(64)
def _shared_text(values: tuple[Any, ...]) -> str:
    """Write these fields as they follow others; nothing where all have their default values."""
    job = Job("", 0, 0, "", "", **dict(zip(_SHARED, values, strict=True)))
    data = {name: value for name, value in job.to_dict().items() if name in _SHARED}
    return "," + json.dumps(data, separators=(",", ":"))[1:-1] if data else ""
