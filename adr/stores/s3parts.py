"""An object of S3 that is written piece by piece: its parts are uploaded while it is being made.

So a bundle takes no room on the disk, and about as long as the slower of making and uploading.
A few parts are in memory at a time, whatever the object's size.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from botocore import exceptions as core

from adr.aws import Connection, error_code

__all__ = ["PartWriter", "written_in_parts"]

_log = logging.getLogger(__name__)

_PART_BYTES = 8 << 20
#: S3 takes 10,000 parts.
_MOST_PARTS = 9000
#: As many parts as are uploaded at a time, unless they are large.
_UPLOADS = 4


class PartWriter:
    """Collect what is written and upload a part as soon as it is full; for one thread."""

    def __init__(self, connection: Connection, key: str, most_bytes: int) -> None:
        self._s3: Any = connection.bucket_s3
        self._where = {"Bucket": connection.runner_id, "Key": key}
        self._part_bytes = max(_PART_BYTES, math.ceil(most_bytes / _MOST_PARTS))
        self._uploads = max(1, _UPLOADS * _PART_BYTES // self._part_bytes)
        self._pool = ThreadPoolExecutor(self._uploads, "part")
        self._room = threading.BoundedSemaphore(self._uploads)
        self._upload: dict[str, str] = {}
        self._parts: list[Future[dict[str, Any]]] = []
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._size_bytes = 0

    def write(self, data: bytes) -> None:
        """Take more; blocks while too many parts are on their way, and raises what ended one."""
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= self._part_bytes:
            self._send()

    def finish(self) -> None:
        """Upload the rest, and let the object appear."""
        if not self._parts:
            self._s3.put_object(**self._where, Body=b"".join(self._waiting))
            return
        if self._waiting:
            self._send()
        parts = [part.result() for part in self._parts]
        try:
            self._s3.complete_multipart_upload(
                **self._where, **self._upload, MultipartUpload={"Parts": parts}
            )
        except core.ClientError as error:
            # The parts were put together, that answer was lost, and the next try found none.
            if error_code(error) != "NoSuchUpload" or not self._is_there():
                raise

    def close(self, failed: bool) -> None:
        """End the threads, and forget the parts of an object that is not to be."""
        self._pool.shutdown(cancel_futures=True)
        if failed and self._upload:
            try:
                self._s3.abort_multipart_upload(**self._where, **self._upload)
            except (core.ClientError, core.BotoCoreError) as error:
                _log.debug("parts of %s stay until the bucket drops them: %s", self._where, error)

    def _send(self) -> None:
        if not self._upload:
            calculation = self._s3.meta.config.request_checksum_calculation
            checked = {} if calculation == "when_required" else {"ChecksumAlgorithm": "CRC32"}
            made = self._s3.create_multipart_upload(**self._where, **checked)
            self._upload = {"UploadId": made["UploadId"]}
        self._room.acquire()
        for part in self._parts:
            if part.done():
                # One that has failed ends it all.
                part.result()
        body = b"".join(self._waiting)
        self._waiting, self._waiting_bytes = [], 0
        self._size_bytes += len(body)
        part = self._pool.submit(self._send_part, len(self._parts) + 1, body)
        part.add_done_callback(lambda _: self._room.release())
        self._parts.append(part)

    def _send_part(self, number: int, body: bytes) -> dict[str, Any]:
        answer = self._s3.upload_part(**self._where, **self._upload, PartNumber=number, Body=body)
        checked = {name: answer[name] for name in ("ChecksumCRC32",) if name in answer}
        return {"PartNumber": number, "ETag": answer["ETag"], **checked}

    def _is_there(self) -> bool:
        with suppress(core.ClientError):
            found = self._s3.head_object(**self._where)
            return bool(found["ContentLength"] == self._size_bytes)
        return False


@contextmanager
def written_in_parts(connection: Connection, key: str, most_bytes: int) -> Iterator[PartWriter]:
    """Let an object be written; it appears at the end, unless there was an error."""
    writer = PartWriter(connection, key, most_bytes)
    try:
        yield writer
        writer.finish()
    except BaseException:
        writer.close(failed=True)
        raise
    writer.close(failed=False)
