"""Small objects on the short way: not to be told from boto3's, and left to it in any trouble."""

from __future__ import annotations

import base64
import uuid
import zlib
from itertools import product
from pathlib import Path

import pytest

from adr.aws import Connection
from adr.errors import NotFound, RunnerGone
from adr.stores import s3wire
from adr.stores.s3 import S3Store
from tests.proxy import Call, Proxy

#: What only boto3 sends.
BOTO3_ALONE = {"amz-sdk-invocation-id", "amz-sdk-request", "expect"}


class Place:
    """A store behind a proxy that remembers the headers of all calls on objects."""

    def __init__(self, proxy: Proxy, folder: Path) -> None:
        self.store = S3Store(Connection(str(uuid.uuid4())))
        self.store.create()
        assert list(self.store.list("")) == []
        self.folder = folder
        self.calls: list[Call] = []
        proxy.before(lambda call: call.name.endswith("tObject"), self.calls.append)

    def put(self, key: str, content: bytes) -> None:
        path = self.folder / "given"
        path.write_bytes(content)
        self.store.upload(path, key)

    def get(self, key: str) -> bytes:
        path = self.folder / "found"
        path.unlink(missing_ok=True)
        self.store.download(key, path)
        return path.read_bytes()

    def by_boto3(self) -> list[bool]:
        """Tell which of the calls were boto3's, and forget them."""
        found = [not BOTO3_ALONE.isdisjoint(call.lower) for call in self.calls]
        self.calls.clear()
        return found


@pytest.fixture
def place(proxy: Proxy, tmp_path: Path) -> Place:
    return Place(proxy, tmp_path)


def test_all_but_the_first_take_the_short_way_with_the_same_headers(place: Place) -> None:
    contents = {
        "b/1/a": b"",
        "b/1/\u00fc ~+=&%2F/e": b"content",
        "b//c": b"1\r\n\r\n2",
        "d.e": bytes(200_000),
    }

    for key, content in contents.items():
        place.put(key, content)
    assert {key: place.get(key) for key in contents} == contents

    calls = list(place.calls)
    assert place.by_boto3() == 2 * [True, False, False, False]
    for first, *others in (calls[:4], calls[4:]):
        for call in others:
            assert set(first.lower) - BOTO3_ALONE == set(call.lower)
            for name in ("user-agent", "x-amz-expected-bucket-owner", "x-amz-checksum-mode"):
                assert call.lower.get(name) == first.lower.get(name)
    for call, content in zip(calls[:4], contents.values(), strict=True):
        checksum = base64.b64encode(zlib.crc32(content).to_bytes(4, "big")).decode()
        assert call.lower["x-amz-checksum-crc32"] == checksum


@pytest.mark.parametrize(
    ("name", "trouble"),
    [
        *product(
            ("s3.PutObject", "s3.GetObject"), ("slow down", "no", "lost answer", "lost request")
        ),
        ("s3.GetObject", "cut off"),
        ("s3.GetObject", "changed"),
    ],
)
def test_what_fails_is_left_to_boto3(
    place: Place, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, name: str, trouble: str
) -> None:
    monkeypatch.setattr(s3wire, "_FIRST_PAUSE_S", 60.0)
    for key in ("1", "2"):
        place.put(key, b"before")
        place.get(key)
    place.calls.clear()
    rule = {
        "slow down": lambda: proxy.fail(name, 503, "SlowDown", times=1),
        "no": lambda: proxy.fail(name, 403, "RequestTimeTooSkewed", times=1),
        "lost answer": lambda: proxy.lose_answer(name, times=1),
        "lost request": lambda: proxy.lose_request(name, times=1),
        "cut off": lambda: proxy.truncate(name, times=1),
        "changed": lambda: proxy.corrupt(name, times=1),
    }[trouble]()

    place.put("2", b"content")
    assert place.get("2") == b"content"
    place.put("3", b"more")

    assert rule.hits == 1
    assert len(place.calls) == 4
    if trouble in ("cut off", "changed"):
        # A body that ends early is no reason to mistrust the way.
        assert place.by_boto3()[0] is False
    elif name == "s3.PutObject":
        assert place.by_boto3() == [False, True, True, True]
    else:
        assert place.by_boto3() == [False, False, True, True]


def test_it_is_taken_again_after_a_while(
    place: Place, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3wire, "_FIRST_PAUSE_S", 1e-9)
    place.put("1", b"")
    place.calls.clear()
    proxy.fail("s3.PutObject", 503, "SlowDown", times=1)

    for key in ("2", "3"):
        place.put(key, b"")

    assert place.by_boto3() == [False, True, False]


def test_what_is_gone_is_said_as_ever(place: Place) -> None:
    place.put("1", b"")
    assert place.get("1") == b""

    with pytest.raises(NotFound, match="absent"):
        place.get("absent")
    place.store.destroy()
    with pytest.raises(RunnerGone):
        place.put("2", b"")
    with pytest.raises(RunnerGone):
        place.get("1")


def test_a_request_with_anything_unusual_is_no_pattern(place: Place) -> None:
    def add(params: dict, **_: object) -> None:
        params["headers"]["x-amz-storage-class"] = "STANDARD_IA"

    events = place.store._connection.s3.meta.events
    events.register("before-call.s3.PutObject", add)

    for key in ("1", "2", "3"):
        place.put(key, b"")

    assert place.by_boto3() == [True, True, True]


def test_where_botocore_is_another_inside_boto3_does_it_all(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.put("1", b"first")
    place.get("1")
    monkeypatch.setattr(s3wire, "AWSRequest", None)
    place.put("2", b"content")
    assert place.get("2") == b"content"
