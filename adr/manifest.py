"""The manifest: what was queued, written once, before the first job is sent.

It tells a later reader which jobs there must be, whatever queue and journal say, and lets a
`queue` or a `retry` that was cut off be taken up again instead of doubled. `adr.batch` makes
the jobs; whoever counts them reads this.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from adr.errors import AdrError
from adr.models import SCHEMA, Job, check_schema, parse_time, time_text

__all__ = [
    "Manifest",
    "compact_json",
    "jobs_of",
    "manifest_bytes",
    "read_manifest",
]


@dataclass(frozen=True)
class Manifest:
    """Say what was queued in one go."""

    batch: str
    #: Seconds since the epoch at which it was made.
    created: float
    #: Name of the folder that was bundled.
    root: str
    #: Size of the zip, and of all files in it.
    bundle_bytes: int
    unpacked_bytes: int
    jobs: tuple[Job, ...]


def compact_json(value: Any) -> bytes:
    """Write JSON in ASCII without spaces; surrogates of names that are not UTF-8 survive."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def jobs_of(manifests: Iterable[Manifest]) -> list[Job]:
    """Return the jobs of the manifests of one batch, each in its newest generation."""
    jobs: dict[int, Job] = {}
    for manifest in manifests:
        for job in manifest.jobs:
            known = jobs.get(job.index)
            if known is None or known.generation < job.generation:
                jobs[job.index] = job
    return list(jobs.values())


def manifest_bytes(
    jobs: Sequence[Job],
    *,
    root: str | os.PathLike[str],
    created: float,
    bundle_bytes: int,
    unpacked_bytes: int,
) -> bytes:
    """Write the manifest of jobs of one batch: gzipped JSON lines, a header and then the jobs.

    The same arguments make the same bytes.
    """
    header = {
        "schema": SCHEMA,
        "batch": jobs[0].batch,
        "created": time_text(created),
        "root": os.path.basename(os.path.abspath(root)),
        "count": len(jobs),
        "bundle_bytes": bundle_bytes,
        "unpacked_bytes": unpacked_bytes,
    }
    # The gzip module writes the time into its header, which zlib leaves at 0.
    packer = zlib.compressobj(wbits=31)
    lines = [packer.compress(compact_json(header) + b"\n")]
    lines += [packer.compress(compact_json(job.to_dict()) + b"\n") for job in jobs]
    return b"".join([*lines, packer.flush()])


def read_manifest(body: bytes) -> Manifest:
    """Read what `manifest_bytes` wrote.

    Raises
    ------
    AdrError
        If it is broken or a newer adr wrote it.
    """
    try:
        header, *jobs = map(json.loads, zlib.decompress(body, wbits=31).splitlines())
        check_schema(header, "the manifest")
        manifest = Manifest(
            batch=header["batch"],
            created=parse_time(header["created"]) or 0.0,
            root=header["root"],
            bundle_bytes=header["bundle_bytes"],
            unpacked_bytes=header["unpacked_bytes"],
            jobs=tuple(map(Job.from_dict, jobs)),
        )
        complete = header["count"] == len(jobs)
    except (zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdrError(f"the manifest of a batch is broken: {error}") from error
    if not complete:
        raise AdrError(f"the manifest of {manifest.batch} is broken: jobs are missing")
    return manifest
