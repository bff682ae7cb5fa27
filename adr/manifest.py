"""The manifest: what was queued, written once, before the first job is sent.

It tells a later reader which jobs there must be, whatever queue and journal say, and lets a
`queue` or a `retry` that was cut off be taken up again instead of doubled. `adr.batch` makes
the jobs; whoever counts them reads this. Numbers and generations of the jobs stand in the header
already: to count a hundred thousand jobs none of them has to be made.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any

from adr.documents import known_fields, reading
from adr.jobtext import job_text
from adr.keys import BATCHES, MANIFEST, batch_of, is_batch
from adr.models import SCHEMA, Job, check_schema
from adr.times import parse_time, time_text

__all__ = [
    "Manifest",
    "Span",
    "compact_json",
    "job_ids",
    "jobs_of",
    "manifest_bytes",
    "read_header",
    "read_manifest",
]

#: First index, last index and generation of jobs that follow each other.
Span = tuple[int, int, int]

#: Hardly larger than at higher levels: digests cannot be compressed.
_LEVEL = 3
_PIECE_BYTES = 1 << 20
_LINES_PER_PIECE = 1000
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
    #: The jobs in their order.
    spans: tuple[Span, ...]
    #: What was written, and under which key.
    body: bytes = field(repr=False)
    key: str

    @property
    def count(self) -> int:
        """Return how many jobs there are."""
        return sum(last - first + 1 for first, last, _ in self.spans)

    @property
    def is_retry(self) -> bool:
        """Tell whether these are jobs of another manifest in a later generation."""
        return any(generation for _, _, generation in self.spans)

    def ids(self) -> Iterator[tuple[int, int]]:
        """Yield index and generation of the jobs in their order."""
        for first, last, generation in self.spans:
            for index in range(first, last + 1):
                yield index, generation

    def jobs(self) -> Iterator[Job]:
        """Read the jobs, each when it is asked for, and all of them anew each time.

        Raises
        ------
        AdrError
            If one is broken, or another than the header tells of.
        """
        with reading(f"the manifest {self.key}"):
            for job, named in zip(_jobs(self.body), self.ids(), strict=True):
                if job.batch != self.batch:
                    raise ValueError("it has jobs of another batch")
                if (job.index, job.generation) != named:
                    raise ValueError("its jobs are others than it says")
                yield job


_encode = json.JSONEncoder(separators=(",", ":")).encode


def compact_json(value: Any) -> bytes:
    """Write JSON in ASCII without spaces; surrogates of names that are not UTF-8 survive."""
    return _encode(value).encode("ascii")


def jobs_of(manifests: Sequence[Manifest]) -> Iterator[Job]:
    """Yield the jobs of the manifests of one batch, each in its newest generation."""
    raised: dict[int, Job] = {}
    for manifest in manifests:
        if manifest.is_retry:
            for job in manifest.jobs():
                if job.index not in raised or raised[job.index].generation < job.generation:
                    raised[job.index] = job
    for manifest in manifests:
        if not manifest.is_retry:
            for job in manifest.jobs():
                yield raised.pop(job.index, job)
    yield from raised.values()


def job_ids(manifests: Sequence[Manifest]) -> Iterator[tuple[int, int, Manifest]]:
    """Yield index, generation and manifest of what `jobs_of` yields, in the same order."""
    raised: dict[int, tuple[int, int, Manifest]] = {}
    for manifest in manifests:
        if manifest.is_retry:
            for index, generation in manifest.ids():
                if index not in raised or raised[index][1] < generation:
                    raised[index] = index, generation, manifest
    for manifest in manifests:
        if not manifest.is_retry:
            for index, generation in manifest.ids():
                yield raised.pop(index, (index, generation, manifest))
    yield from raised.values()


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
        "spans": _spans(jobs),
        "bundle_bytes": bundle_bytes,
        "unpacked_bytes": unpacked_bytes,
    }
    # The gzip module writes the time into its header, which zlib leaves at 0.
    packer = zlib.compressobj(_LEVEL, wbits=31)
    # Which gives away what it holds without a copy.
    packed = BytesIO()
    packed.write(packer.compress(compact_json(header) + b"\n"))
    for start in range(0, len(jobs), _LINES_PER_PIECE):
        lines = [job_text(job) for job in jobs[start : start + _LINES_PER_PIECE]]
        packed.write(packer.compress("\n".join([*lines, ""]).encode("ascii")))
    packed.write(packer.flush())
    return packed.getvalue()


def read_manifest(body: bytes, key: str) -> Manifest:
    """Read what `manifest_bytes` wrote, from the object `key`; the jobs only as they are asked for.

    Raises
    ------
    AdrError
        If it is cut off, that of another batch, or a newer adr wrote it.
    """
    manifest = read_header(body, key)
    with reading(f"the manifest {key}"):
        if sum(1 for _ in _unpacked(body)) - 1 != manifest.count:
            raise ValueError("jobs are missing")
    return manifest


def read_header(body: bytes, key: str) -> Manifest:
    """Read the same, and do not look whether all jobs are there: it was read whole before."""
    what = f"the manifest {key}"
    with reading(what):
        header = json.loads(next(_unpacked(body), b""))
        check_schema(header, what)
        values = {**header, "created": parse_time(header["created"]) or 0.0}
        values["spans"] = tuple(map(tuple, header.get("spans", ())))
        manifest = Manifest(**known_fields(Manifest, {**values, "body": body, "key": key}))
        if not is_batch(manifest.batch):
            raise ValueError(f"its batch is {manifest.batch!r:.50}, which can be the name of none")
        if batch_of(key.removeprefix(BATCHES).removesuffix(MANIFEST)) != manifest.batch:
            raise ValueError(f"it is that of the batch {manifest.batch!r:.50}")
        if "spans" not in header:
            # An earlier adr wrote it.
            manifest = replace(manifest, spans=_spans(_jobs(body)))
        if manifest.count != header["count"]:
            raise ValueError("jobs are missing")
        if not all(0 < first <= last for first, last, _ in manifest.spans):
            raise ValueError("its jobs are not numbered from 1")
        return manifest


def _jobs(body: bytes) -> Iterator[Job]:
    lines = _unpacked(body)
    next(lines)
    return (Job.from_dict(json.loads(line)) for line in lines)


def _spans(jobs: Iterable[Job]) -> tuple[Span, ...]:
    spans: list[Span] = []
    for job in jobs:
        if spans and spans[-1][1:] == (job.index - 1, job.generation):
            spans[-1] = (spans[-1][0], job.index, job.generation)
        else:
            spans.append((job.index, job.index, job.generation))
    return tuple(spans)


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
