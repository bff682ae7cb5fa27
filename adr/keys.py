"""Where everything lies in a runner's store: the one place that spells keys.

::

    <batch>.zip                                 input bundle
    <batch>/<attempt>-<index>/<relative path>   results of one attempt
    _batches/<batch>.jsonl.gz                   manifest, written once
    _batches/<batch>.sent                       how far it was sent, while that takes long
    _batches/<batch>.seal                       that it was sent whole
    _batches/<batch>+<index>.jsonl.gz           manifest of a job that was queued singly
    _batches/<batch>~<n>.jsonl.gz, .seal        the n-th retry: jobs with a raised generation
    _batches/<batch>.unaccounted                jobs that were nowhere to be found, and since when
    _journal/<batch>/<worker>-<n>.jsonl         records (AWS)
    _journal/decided/<batch>/<sha256>           that all jobs of these manifests are decided
    _cards/<batch>/<index>                      the unusual jobs (AWS)
    _logs/<batch>/<index>/<attempt>.log         output too large for the record
    _logs/followed/<batch>/<index>/<order>/…    output so far of a job that somebody follows
    _workers/<address>                          registered workers
    _workers/live/<worker>.json                 heartbeats
    _workers/ssh/<host>.json                    hosts of the fleet over SSH
    _workers/setup/<host>.log                   why a host could not be set up
    _install/<sha256>/<name>                    what new hosts install
    _launches/<token>.json                      launches whose answer is not known yet
    _batches/destroyed                          that nobody is to queue any more
    _control/destroyed, destroyed-batch/<batch> orders: nothing more is to be run
    _control/paused                             nothing more is to be begun
    _control/changed                            that there are other orders than before
    _control/cancel/<id>.json                   jobs that are called off
    _control/follow/<batch>/<index>/<id>        somebody reads the output of a job that runs

Keys are text of at most 1,024 bytes in UTF-8 (the limit of S3). File names are bytes of any
kind, so `result_key` quotes what a key cannot hold; the true name stands in the record.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import lru_cache

__all__ = [
    "BATCHES",
    "CARDS",
    "CONTROL",
    "DECIDED",
    "FOLLOWED",
    "FOLLOWS",
    "INSTALL",
    "JOURNAL",
    "LAUNCHES",
    "LIVE",
    "LOGS",
    "MANIFEST",
    "SEAL",
    "SETUP",
    "SSH_HOSTS",
    "TOMBSTONE",
    "UNACCOUNTED",
    "WORKERS",
    "batch_of",
    "bundle_key",
    "card_key",
    "decided_key",
    "decided_prefix",
    "followed_key",
    "followed_prefix",
    "heartbeat_key",
    "install_key",
    "is_batch",
    "journal_key",
    "journal_prefix",
    "log_key",
    "manifest_key",
    "result_key",
    "results_prefix",
    "retry_name",
    "retry_number",
    "seal_key",
    "sent_key",
    "setup_key",
    "unaccounted_key",
    "unsealed_names",
]

BATCHES = "_batches/"
CONTROL = "_control/"
FOLLOWS = CONTROL + "follow/"
MANIFEST = ".jsonl.gz"
SEAL = ".seal"
UNACCOUNTED = ".unaccounted"
#: Beside the manifests, which whoever queues lists anyway.
TOMBSTONE = BATCHES + "destroyed"
WORKERS = "_workers/"
LIVE = WORKERS + "live/"
SETUP = WORKERS + "setup/"
SSH_HOSTS = WORKERS + "ssh/"
INSTALL = "_install/"
LAUNCHES = "_launches/"
JOURNAL = "_journal/"
#: No batch: their ids begin with the year. Here, since workers may write below it.
DECIDED = JOURNAL + "decided/"
CARDS = "_cards/"
LOGS = "_logs/"
#: Below it the same as below `FOLLOWS`, so that what nobody follows any more is found at once.
#: No batch: their ids begin with the year.
FOLLOWED = LOGS + "followed/"

_LONGEST_SEGMENT_BYTES = 200
_LONGEST_NAME_BYTES = 800
_BATCH = re.compile(r"[^/\0._][^/\0]*")
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.+=@, ()'!")


@lru_cache(1024)
def is_batch(text: str) -> bool:
    """Tell whether a text can be the id of a batch, and so name a folder and begin a key.

    Names of adr's own begin with a dot or an underscore.
    """
    return 0 < len(text) <= _LONGEST_SEGMENT_BYTES and _BATCH.fullmatch(text) is not None


def bundle_key(batch: str) -> str:
    """Return the key of the input bundle."""
    return f"{batch}.zip"


def manifest_key(batch: str) -> str:
    """Return the key of the manifest."""
    return f"{BATCHES}{batch}{MANIFEST}"


def seal_key(batch: str) -> str:
    """Return the key of the note that all jobs of the manifest were sent."""
    return f"{BATCHES}{batch}{SEAL}"


def retry_name(batch: str, number: int) -> str:
    """Return what stands for the batch in the keys of manifest and seal of a retry."""
    return f"{batch}~{number}"


def unsealed_names(keys: Iterable[str]) -> set[str]:
    """Return which batches and retries were not sent whole, by the keys below `BATCHES`.

    Jobs that were queued singly stand for their batch, and need no seal of their own.
    """
    names = {key.removeprefix(BATCHES) for key in keys}
    sent = {name.removesuffix(SEAL) for name in names if name.endswith(SEAL)}
    queued = {
        name.removesuffix(MANIFEST).split("+")[0] for name in names if name.endswith(MANIFEST)
    }
    return queued - sent


def batch_of(name: str) -> str:
    """Return the batch that a name in the keys of manifests and seals belongs to."""
    return name.split("~")[0].split("+")[0]


def retry_number(name: str) -> int:
    """Return which retry of its batch a name in the keys of manifests stands for; 0: none."""
    number = name.partition("~")[2]
    return int(number) if number.isdecimal() else 0


def sent_key(batch: str) -> str:
    """Return the key of the note that tells how many jobs were sent."""
    return f"{BATCHES}{batch}.sent"


def unaccounted_key(batch: str) -> str:
    """Return the key of the note that tells which jobs were nowhere to be found."""
    return f"{BATCHES}{batch}{UNACCOUNTED}"


def journal_prefix(batch: str) -> str:
    """Return what the keys of a batch's journal begin with."""
    return f"{JOURNAL}{batch}/"


def journal_key(batch: str, worker: str, number: int) -> str:
    """Return the key of one journal object of one worker."""
    return f"{journal_prefix(batch)}{worker}-{number}.jsonl"


def decided_prefix(batch: str) -> str:
    """Return what the keys begin with of all notes that jobs of a batch are decided."""
    return f"{DECIDED}{batch}/"


def decided_key(batch: str, manifests: Iterable[str]) -> str:
    """Return the key of the note that all jobs of a batch are decided, as far as it is known.

    Parameters
    ----------
    manifests : iterable of str
        Keys of the manifests that there were: more of them are more jobs, or newer generations.
    """
    # Imported here as below: most of what spells keys needs no digest.
    import hashlib

    names = "\n".join(sorted(manifests)).encode("utf-8", "surrogateescape")
    return decided_prefix(batch) + hashlib.sha256(names).hexdigest()


def card_key(batch: str, index: int) -> str:
    """Return the key of the card of an unusual job."""
    return f"{CARDS}{batch}/{index:06d}"


def log_key(batch: str, index: int, attempt: str) -> str:
    """Return the key of an output that is too large for the record."""
    return f"{LOGS}{batch}/{index:06d}/{attempt}.log"


def followed_prefix(batch: str, index: int, order: str) -> str:
    """Return what the keys of all that one order to follow a job has brought begin with."""
    return f"{FOLLOWED}{batch}/{index:06d}/{order}/"


def followed_key(prefix: str, attempt: str, offset: int, *, end: bool = False) -> str:
    """Return the key of the output from an offset on, or of the note that it ends there."""
    return f"{prefix}{attempt}-{offset:012d}{'.end' if end else ''}"


def heartbeat_key(worker: str) -> str:
    """Return the key of a worker's heartbeat."""
    return f"{LIVE}{worker}.json"


def install_key(sha256: str, name: str) -> str:
    """Return the key of a file that new hosts fetch, by the digest of its content."""
    return f"{INSTALL}{sha256}/{name}"


def setup_key(host: str) -> str:
    """Return the key of what a host said when it could not be set up."""
    return f"{SETUP}{host}.log"


def results_prefix(batch: str, index: int, attempt: str) -> str:
    """Return what the keys of one attempt's results begin with.

    The attempt first, since it is random: S3 takes 3,500 writes a second of keys that begin
    alike, and takes more only where it can divide them by what they begin with. What ascends,
    as the index does, is all at one end at a time. Nobody looks for results but by a record.
    """
    return f"{batch}/{attempt}-{index:06d}/"


def result_key(batch: str, index: int, attempt: str, name: str) -> str:
    """Return the key of one result.

    Bytes that are not plain in a key or a file name are written as ``%XX``. A name that
    becomes too long for a key or a file system is replaced by ``%-`` and its SHA-256, which
    no quoted name can equal: there a ``%`` is always followed by two digits.

    Parameters
    ----------
    name : str
        Path relative to the job's directory, as `os.fsdecode` gives it.
    """
    raw = os.fsencode(name)
    segments = []
    for segment in raw.split(b"/"):
        quoted = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in segment)
        segments.append(quoted.replace(".", "%2E") if quoted in (".", "..") else quoted)
    text = "/".join(segments)
    if len(text) > _LONGEST_NAME_BYTES or max(map(len, segments)) > _LONGEST_SEGMENT_BYTES:
        import hashlib

        text = "%-" + hashlib.sha256(raw).hexdigest()
    return results_prefix(batch, index, attempt) + text
