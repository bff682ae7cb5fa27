"""A store in an Amazon S3 bucket.

Calls are what costs here, in time and money: a small file is one PUT, a download of any
size one GET, a thousand deletions one POST. All conditions are S3's own, so they hold
between machines without a lock.
"""

from __future__ import annotations

import random
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from io import BytesIO
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from botocore import exceptions as core
from s3transfer.manager import TransferConfig, TransferManager

from adr.aws import Connection, error_code, translated
from adr.errors import Conflict, NotFound, RunnerGone, ServiceError
from adr.stores.base import Document, ObjectInfo, too_large
from adr.stores.files import naming, new_file, open_regular, write_all
from adr.stores.s3parts import written_in_parts
from adr.stores.s3wire import Wire, crc32_text

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

__all__ = ["S3Store"]

#: Files up to this size are read whole and take the short way.
_SMALL_BYTES = 256 << 10
#: Files up to this size are stored in one call; larger ones in parts of at least this size.
_ONE_CALL_BYTES = 8 << 20
#: Most keys that one DeleteObjects takes (a limit of S3).
_DELETE_KEYS = 1000
#: How often a body that broke off, or a deletion that failed in part, is tried.
_TRIES = 5
_FIRST_WAIT_S = 0.2
_CHUNK_BYTES = 1 << 20
_ABORT_PARTS_AFTER_DAYS = 7

_BROKEN_BODY = (
    core.ConnectionClosedError,
    core.FlexibleChecksumError,
    core.IncompleteReadError,
    core.ReadTimeoutError,
    core.ResponseStreamingError,
)


class S3Store:
    """Keep objects in the bucket of a runner; see `adr.stores.base.ObjectStore` for the contract.

    Thread-safe. The constructor makes no call.

    Parameters
    ----------
    connection : Connection
        The runner, whose id is the bucket's name.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._bucket = connection.runner_id
        self._lock = threading.Lock()
        self._manager: TransferManager | None = None
        self._wire = Wire(connection)

    def create(self) -> None:
        """Make the bucket: private, encrypted, and rid of the parts of aborted uploads."""
        s3, region = self._connection.s3, self._connection.region
        # us-east-1 is where a bucket lies that names no location, and is refused as a location.
        place: Any = {}
        if region != "us-east-1":
            place["CreateBucketConfiguration"] = {"LocationConstraint": region}
        with translated("create", f"the bucket {self._bucket}"):
            try:
                s3.create_bucket(Bucket=self._bucket, **place)
            except core.ClientError as error:
                if error_code(error) != "BucketAlreadyOwnedByYou":
                    raise
            s3.put_public_access_block(
                Bucket=self._bucket,
                PublicAccessBlockConfiguration={
                    "BlockPublicAcls": True,
                    "IgnorePublicAcls": True,
                    "BlockPublicPolicy": True,
                    "RestrictPublicBuckets": True,
                },
            )
            s3.put_bucket_encryption(
                Bucket=self._bucket,
                ServerSideEncryptionConfiguration={
                    "Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]
                },
            )
            s3.put_bucket_lifecycle_configuration(
                Bucket=self._bucket,
                LifecycleConfiguration={
                    "Rules": [
                        {
                            "ID": "abort-incomplete-uploads",
                            "Status": "Enabled",
                            "Filter": {"Prefix": ""},
                            "AbortIncompleteMultipartUpload": {
                                "DaysAfterInitiation": _ABORT_PARTS_AFTER_DAYS
                            },
                        }
                    ]
                },
            )

    def destroy(self) -> None:
        """Delete all objects, then the bucket; idempotent."""
        for attempt in range(_TRIES):
            _wait(attempt)
            try:
                self.delete(entry.key for entry in self.list(""))
                with translated("remove", f"the bucket {self._bucket}"):
                    try:
                        self._connection.bucket_s3.delete_bucket(Bucket=self._bucket)
                        return
                    except core.ClientError as error:
                        # A worker may write until it notices that its runner is gone.
                        if error_code(error) != "BucketNotEmpty" or attempt == _TRIES - 1:
                            raise
            except RunnerGone:
                return

    def upload(self, path: Path, key: str, *, move: bool = False) -> None:
        """Store a copy of the file; up to 8 MiB in one call, more in parallel parts."""
        del move  # A bucket takes only copies.
        with naming("read", path):
            file = open_regular(path)
        with file, naming("read", path), translated("store", self._named(key)):
            size_bytes = path.stat().st_size
            if size_bytes <= _SMALL_BYTES:
                self._put_small(key, file.read())
                return
            if size_bytes <= _ONE_CALL_BYTES:
                self._connection.bucket_s3.put_object(Bucket=self._bucket, Key=key, Body=file)
                return
            try:
                self._transfers().upload(str(path), self._bucket, key).result()
            except core.ClientError as error:
                # The parts were put together, that answer was lost, and the next try found none.
                if error_code(error) != "NoSuchUpload":
                    raise
                self._transfers().upload(str(path), self._bucket, key).result()

    @contextmanager
    def writing(self, key: str, most_bytes: int) -> Iterator[Callable[[bytes], object]]:
        """Upload in parts while the object is written; a small one in one call."""
        with (
            translated("store", self._named(key)),
            written_in_parts(self._connection, key, most_bytes) as writer,
        ):
            yield writer.write

    def download(self, key: str, path: Path) -> None:
        """Stream the object to `path`, in one GET unless it breaks off."""
        with new_file(path) as file:
            self._receive(key, file)

    def read(self, key: str, start: int = 0) -> Document:
        """Return a small object, or its end."""
        body = BytesIO()
        answer = self._receive(key, body, is_small=True, start=start)
        return Document(body.getvalue(), answer["ETag"], _age_s(answer))

    def write(
        self, key: str, body: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        """Store a small object and return its ETag."""
        condition: Any = {}
        if if_absent:
            condition["IfNoneMatch"] = "*"
        if if_match is not None:
            condition["IfMatch"] = if_match
        try:
            with translated("write", self._named(key)):
                answer = self._connection.bucket_s3.put_object(
                    Bucket=self._bucket, Key=key, Body=body, **condition
                )
        except NotFound as error:
            # S3's answer to If-Match where there is no object.
            raise Conflict(f"{self._named(key)} has been removed meanwhile") from error
        return answer["ETag"]

    def list(self, prefix: str, *, flat: bool = False) -> Iterator[ObjectInfo]:
        """Yield the objects, one call per 1,000."""
        delimiter: Any = {"Delimiter": "/"} if flat else {}
        pages = iter(
            self._connection.bucket_s3.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=prefix, **delimiter
            )
        )
        while True:
            with translated("list", self._named(prefix + "*")):
                page = next(pages, None)
            if page is None:
                return
            for entry in page.get("Contents", ()):
                written_at = entry["LastModified"].timestamp()
                yield ObjectInfo(entry["Key"], entry["Size"], entry["ETag"], written_at)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects, 1,000 a call; absent ones are no error."""
        waiting = iter(keys)
        with suppress(RunnerGone):
            while batch := tuple(islice(waiting, _DELETE_KEYS)):
                self._delete(batch)

    def _delete(self, batch: Sequence[str]) -> None:
        for attempt in range(_TRIES):
            _wait(attempt)
            with translated("remove", f"objects of runner {self._bucket}"):
                answer = self._connection.bucket_s3.delete_objects(
                    Bucket=self._bucket,
                    Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True},
                )
            errors = answer.get("Errors")
            if not errors:
                return
            batch = [error["Key"] for error in errors]
            code, said = errors[0].get("Code"), errors[0].get("Message")
            if code == "AccessDenied":
                break
        raise ServiceError(
            f"cannot remove {len(batch)} objects of runner {self._bucket}, {batch[0]} among them: "
            f"AWS answered {code} ({said})"
        )

    def _put_small(self, key: str, body: bytes) -> None:
        if not self._wire.put(key, body):
            self._connection.bucket_s3.put_object(Bucket=self._bucket, Key=key, Body=body)
            self._wire.learn("PutObject", key)

    def _receive(
        self, key: str, file: BinaryIO, *, is_small: bool = False, start: int = 0
    ) -> GetObjectOutputTypeDef:
        """Write the object to a seekable file; go on where its body breaks off."""
        done, etag, checksum = start, "", 0
        whole: str | None = None
        with translated("read", self._named(key)):
            for attempt in count():
                _wait(attempt)
                rest: Any = {"Range": f"bytes={done}-"} if done else {}
                if done and etag:
                    rest["IfMatch"] = etag
                answer = self._get(key, rest, is_small)
                etag = answer["ETag"]
                if not done:
                    whole, checksum = answer.get("ChecksumCRC32"), 0
                if is_small and (problem := too_large(key, answer["ContentLength"])):
                    answer["Body"].close()
                    raise problem
                try:
                    for chunk in answer["Body"].iter_chunks(_CHUNK_BYTES):
                        write_all(file, chunk)
                        done += len(chunk)
                        checksum = zlib.crc32(chunk, checksum)
                    # A part has no checksum; that of an object that was put together has a dash.
                    if whole and "-" not in whole and whole != crc32_text(checksum):
                        raise core.FlexibleChecksumError(error_msg="its parts do not match")
                    break
                except _BROKEN_BODY as error:
                    if attempt == _TRIES - 1:
                        raise
                    if isinstance(error, core.FlexibleChecksumError):
                        done = start + file.seek(0)
                        file.truncate()
        return answer

    def _get(self, key: str, rest: Any, is_small: bool) -> GetObjectOutputTypeDef:
        # Only boto3's answer tells the age of a document, and how it came that there is none.
        if not (rest or is_small):
            answer = self._wire.get(key)
            if answer is not None:
                return answer
        answer = self._connection.bucket_s3.get_object(Bucket=self._bucket, Key=key, **rest)
        if not rest:
            self._wire.learn("GetObject", key)
        return answer

    def _transfers(self) -> TransferManager:
        # One for all: it puts hooks on the client, which must not happen while others use it often.
        with self._lock:
            if self._manager is None:
                config = TransferConfig(
                    multipart_threshold=_ONE_CALL_BYTES,
                    multipart_chunksize=_ONE_CALL_BYTES,
                    max_request_concurrency=8,
                )
                self._manager = TransferManager(self._connection.bucket_s3, config)
            return self._manager

    def _named(self, key: str) -> str:
        return f"{key} of runner {self._bucket}"


def _age_s(answer: GetObjectOutputTypeDef) -> float:
    """Return the age of an object by the clock of S3, which counts whole seconds."""
    now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    return max(0.0, (now - answer["LastModified"]).total_seconds())


def _wait(attempt: int) -> None:
    """Sleep before every try but the first, longer each time, and not in step with others."""
    if attempt:
        time.sleep(_FIRST_WAIT_S * 2 ** (attempt - 1) * random.uniform(0.5, 1))
