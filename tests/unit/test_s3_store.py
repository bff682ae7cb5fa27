"""What is particular to a store on S3: its calls, its settings, and what it does when S3 fails."""

from __future__ import annotations

import base64
import re
import threading
import uuid
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest

from adr.aws import Connection
from adr.errors import Conflict, RunnerGone, ServiceError
from adr.stores.s3 import S3Store
from tests.proxy import Answer, Call, Proxy

CONTENT = bytes(range(256)) * 12_000


@pytest.fixture
def name() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def store(proxy: Proxy, name: str) -> S3Store:
    made = S3Store(Connection(name))
    made.create()
    # Only once does it ask for the owner.
    assert list(made.list("")) == []
    proxy.reset()
    return made


def a_file(path: Path, size: int) -> Path:
    path.write_bytes(bytes(size))
    return path


def test_the_bucket_is_private_and_encrypted_and_forgets_aborted_uploads(
    store: S3Store, name: str
) -> None:
    s3 = boto3.client("s3")

    public = s3.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"]
    encryption = s3.get_bucket_encryption(Bucket=name)["ServerSideEncryptionConfiguration"]
    [rule] = s3.get_bucket_lifecycle_configuration(Bucket=name)["Rules"]

    assert len(public) == 4
    assert set(public.values()) == {True}
    [default] = encryption["Rules"]
    assert default["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
    assert rule["Status"] == "Enabled"


# The proxy refuses, as S3 does, a location that is not the region, and us-east-1 named as one.
@pytest.mark.parametrize("region", ["us-east-1", "eu-west-3"])
def test_a_bucket_can_be_made_in_any_region(proxy: Proxy, name: str, region: str) -> None:
    S3Store(Connection(name, region)).create()

    place = boto3.client("s3").get_bucket_location(Bucket=name)["LocationConstraint"]
    assert (place or "us-east-1") == region


@pytest.mark.parametrize("size", [0, 8 << 20])
def test_a_file_up_to_8_mib_is_one_call_each_way(
    store: S3Store, proxy: Proxy, tmp_path: Path, size: int
) -> None:
    store.upload(a_file(tmp_path / "f", size), "key")
    store.download("key", tmp_path / "copy")

    assert proxy.calls == [("s3.PutObject", "key"), ("s3.GetObject", "key")]


def test_a_larger_file_goes_in_parts_and_comes_back_in_one_call(
    store: S3Store, proxy: Proxy, tmp_path: Path
) -> None:
    store.upload(a_file(tmp_path / "f", (8 << 20) + 1), "key")
    store.download("key", tmp_path / "copy")

    assert proxy.counts == {
        "s3.CreateMultipartUpload": 1,
        "s3.UploadPart": 2,
        "s3.CompleteMultipartUpload": 1,
        "s3.GetObject": 1,
    }
    assert (tmp_path / "copy").stat().st_size == (8 << 20) + 1


def test_a_large_upload_that_fails_leaves_no_parts(
    store: S3Store, proxy: Proxy, tmp_path: Path, name: str
) -> None:
    proxy.fail("s3.UploadPart", 403, "AccessDenied")

    with pytest.raises(ServiceError, match=r"big.*UploadPart"):
        store.upload(a_file(tmp_path / "f", (8 << 20) + 1), "big")

    assert proxy.count("s3.AbortMultipartUpload") == 1
    assert list(store.list("")) == []


def test_a_large_upload_survives_the_loss_of_its_last_answer(
    store: S3Store, proxy: Proxy, tmp_path: Path
) -> None:
    # What S3 may answer the second try of what its first try has done.
    proxy.fail("s3.CompleteMultipartUpload", 404, "NoSuchUpload", times=1)

    store.upload(a_file(tmp_path / "f", (8 << 20) + 1), "big")

    assert [entry.size_bytes for entry in store.list("")] == [(8 << 20) + 1]


PIECES = [bytes([n]) * (3 << 20) for n in range(7)]


def write_pieces(store: S3Store, pieces: Iterable[bytes]) -> None:
    with store.writing("made", sum(map(len, PIECES))) as write:
        for piece in pieces:
            write(piece)


@pytest.mark.parametrize(("number", "parts"), [(0, 0), (2, 0), (3, 1), (7, 3)])
def test_an_object_is_uploaded_in_parts_while_it_is_made(
    store: S3Store, proxy: Proxy, tmp_path: Path, number: int, parts: int
) -> None:
    write_pieces(store, PIECES[:number])

    if parts:
        counts = {"s3.CreateMultipartUpload": 1, "s3.UploadPart": parts}
        assert proxy.counts == {**counts, "s3.CompleteMultipartUpload": 1}
    else:
        assert proxy.counts == {"s3.PutObject": 1}
    store.download("made", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"".join(PIECES[:number])


def test_an_object_whose_making_fails_leaves_nothing(store: S3Store, proxy: Proxy) -> None:
    def breaking_off() -> Iterator[bytes]:
        yield from PIECES
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_pieces(store, breaking_off())

    assert proxy.count("s3.AbortMultipartUpload") == 1
    assert list(store.list("")) == []


def test_an_object_with_a_part_that_fails_is_not_made_to_its_end(
    store: S3Store, proxy: Proxy
) -> None:
    proxy.fail("s3.UploadPart", 403, "AccessDenied")
    left = iter(PIECES * 20)

    with pytest.raises(ServiceError, match=r"made.*UploadPart"):
        write_pieces(store, left)

    assert len(list(left)) > 0
    assert proxy.count("s3.AbortMultipartUpload") == 1
    assert list(store.list("")) == []


def test_parts_that_were_put_together_without_an_answer_are_an_object(
    store: S3Store, proxy: Proxy
) -> None:
    proxy.lose_answer("s3.CompleteMultipartUpload", times=1)

    write_pieces(store, PIECES)

    assert [entry.size_bytes for entry in store.list("")] == [7 * (3 << 20)]


def test_a_thousand_objects_are_listed_and_removed_with_one_call(
    store: S3Store, proxy: Proxy
) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: store.write(f"{n:04d}", b""), range(1001)))
    proxy.reset()

    store.delete(entry.key for entry in store.list(""))

    assert proxy.counts == {"s3.ListObjectsV2": 2, "s3.DeleteObjects": 2}
    assert list(store.list("")) == []


def refused(key: str, code: str) -> Answer:
    body = (
        f'<?xml version="1.0"?><DeleteResult><Error><Key>{key}</Key><Code>{code}</Code>'
        f"<Message>Refused by the test</Message></Error></DeleteResult>"
    )
    return Answer(200, body.encode(), [("Content-Type", "application/xml")])


def test_only_what_was_not_removed_is_tried_again(store: S3Store, proxy: Proxy) -> None:
    for key in ("a", "b"):
        store.write(key, b"")
    bodies: list[bytes] = []
    proxy.before("s3.DeleteObjects", lambda call: bodies.append(call.body))
    proxy.after("s3.DeleteObjects", lambda call: refused("b", "InternalError"), times=1)

    store.delete(["a", "b"])

    assert [re.findall(rb"<Key>(.)</Key>", body) for body in bodies] == [[b"a", b"b"], [b"b"]]


def test_what_may_not_be_removed_is_named_at_once(store: S3Store, proxy: Proxy) -> None:
    proxy.before("s3.DeleteObjects", lambda call: refused("b", "AccessDenied"))

    with pytest.raises(ServiceError, match=r"1 objects .* b among them: .*AccessDenied"):
        store.delete(["a", "b"])

    assert proxy.count("s3.DeleteObjects") == 1


def test_a_bucket_that_is_written_to_while_it_is_removed_is_removed(
    store: S3Store, proxy: Proxy, name: str
) -> None:
    late = S3Store(Connection(name))

    def write_late(call: Call) -> None:
        late.write("late", b"")

    proxy.before("s3.DeleteBucket", write_late, times=1)

    store.destroy()

    with pytest.raises(RunnerGone):
        late.read("late")


def test_a_refused_condition_is_a_conflict_however_s3_words_it(
    store: S3Store, proxy: Proxy
) -> None:
    proxy.fail("s3.PutObject", 409, "ConditionalRequestConflict")

    with pytest.raises(Conflict, match="card"):
        store.write("card", b"", if_absent=True)


def test_a_condition_fails_where_its_own_first_try_has_won(store: S3Store, proxy: Proxy) -> None:
    proxy.lose_answer("s3.PutObject", times=1)

    with pytest.raises(Conflict, match="card"):
        store.write("card", b"mine", if_absent=True)

    assert store.read("card").body == b"mine"


def test_a_service_that_asks_to_slow_down_is_tried_again(store: S3Store, proxy: Proxy) -> None:
    proxy.fail("s3.PutObject", 503, "SlowDown", times=1)

    store.write("key", b"content")

    assert store.read("key").body == b"content"
    assert proxy.count("s3.PutObject") == 2


class BreakingServer(ThreadingHTTPServer):
    """Serve `CONTENT` under every key, the first answers not whole."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), BreakingHandler)
        self.breaks: list[str] = []
        self.ranges: list[str | None] = []


class BreakingHandler(BaseHTTPRequestHandler):
    server: BreakingServer

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.ranges.append(asked)
        start = int(asked[len("bytes=") : -1]) if asked else 0
        body = CONTENT[start:]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Fri, 20 Nov 2026 09:00:00 GMT")
        if not asked:
            crc = base64.b64encode(zlib.crc32(CONTENT).to_bytes(4, "big")).decode()
            self.send_header("x-amz-checksum-crc32", crc)
        self.end_headers()
        fault = self.server.breaks.pop(0) if self.server.breaks else ""
        if fault == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body[:-1] + b"?" if fault == "bad" else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def breaking(aws_env: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[BreakingServer]:
    server = BreakingServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_body_that_breaks_off_is_continued(
    breaking: BreakingServer, name: str, tmp_path: Path
) -> None:
    breaking.breaks = ["cut", "cut"]

    S3Store(Connection(name)).download("key", tmp_path / "copy")

    assert (tmp_path / "copy").read_bytes() == CONTENT
    first, *others = breaking.ranges
    assert first is None
    assert len(others) == 2
    assert all(others)


def test_a_body_with_a_wrong_checksum_is_fetched_anew(
    breaking: BreakingServer, name: str, tmp_path: Path
) -> None:
    breaking.breaks = ["bad"]

    S3Store(Connection(name)).download("key", tmp_path / "copy")

    assert (tmp_path / "copy").read_bytes() == CONTENT
    assert breaking.ranges == [None, None]


def test_a_continued_body_is_fetched_anew_where_the_whole_has_a_wrong_checksum(
    breaking: BreakingServer, name: str, tmp_path: Path
) -> None:
    breaking.breaks = ["cut", "bad"]

    S3Store(Connection(name)).download("key", tmp_path / "copy")

    assert (tmp_path / "copy").read_bytes() == CONTENT
    whole, part, anew = breaking.ranges
    assert (whole, anew) == (None, None)
    assert part is not None


def test_a_document_is_never_read_in_part(breaking: BreakingServer, name: str) -> None:
    breaking.breaks = ["cut", "cut"]

    assert S3Store(Connection(name)).read("key").body == CONTENT


def test_a_body_that_always_breaks_off_leaves_no_file(
    breaking: BreakingServer, name: str, tmp_path: Path
) -> None:
    breaking.breaks = ["cut"] * 9

    with pytest.raises(ServiceError, match="key"):
        S3Store(Connection(name)).download("key", tmp_path / "copy")

    assert not (tmp_path / "copy").exists()
