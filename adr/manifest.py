"""The manifest: what was queued, written once, before the first job is sent.

It tells a later reader which jobs there must be, whatever queue and journal say, and lets a
`queue` or a `retry` that was cut off be taken up again instead of doubled. `adr.batch` makes
the jobs; whoever counts them reads this.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from adr.documents import known_fields, reading
from adr.keys import BATCHES, MANIFEST, batch_of
from adr.models import SCHEMA, Job, check_schema, parse_time, time_text

__all__ = [
    "Manifest",
    "compact_json",
    "jobs_of",
    "manifest_bytes",
    "read_manifest",
]


_PIECE_BYTES = 1 << 20
#: A job goes into a message, which holds 1 MiB.
_LONGEST_LINE_BYTES = 16 << 20


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


def read_manifest(body: bytes, key: str) -> Manifest:
    """Read what `manifest_bytes` wrote, from the object `key`.

    Raises
    ------
    AdrError
        If it is broken, that of another batch, or a newer adr wrote it.
    """
    what = f"the manifest {key}"
    with reading(what):
        lines = _unpacked(body)
        header = json.loads(next(lines, b""))
        check_schema(header, what)
        manifest = Manifest(
            **known_fields(
                Manifest,
                {
                    **header,
                    "created": parse_time(header["created"]) or 0.0,
                    "jobs": tuple(Job.from_dict(json.loads(line)) for line in lines),
                },
            )
        )
        if batch_of(key.removeprefix(BATCHES).removesuffix(MANIFEST)) != manifest.batch:
            raise ValueError(f"it is that of the batch {manifest.batch!r:.50}")
        if {job.batch for job in manifest.jobs} - {manifest.batch}:
            raise ValueError("it has jobs of another batch")
        if header["count"] != len(manifest.jobs):
            raise ValueError("jobs are missing")
        return manifest


def _unpacked(body: bytes) -> Iterator[bytes]:
    """Yield the lines, and never hold more than one that is too long to be one."""
    unpacker = zlib.decompressobj(wbits=31)
    line = b""
    while not unpacker.eof:
        piece = unpacker.decompress(body, _PIECE_BYTES)
        body = unpacker.unconsumed_tail
        if not piece and not body and not unpacker.eof:
            raise ValueError("it is cut off")
        *whole, line = (line + piece).split(b"\n")
        yield from whole
        if len(line) > _LONGEST_LINE_BYTES:
            raise ValueError(f"a line is longer than {_LONGEST_LINE_BYTES:,} bytes")
    if line:
        yield line
