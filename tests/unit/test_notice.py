"""The notice before an instance is taken away, from a metadata service over HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from adr.worker import notice
from adr.worker.notice import Notice, watch
from tests.servers import free_port
from tests.unit.metadata import Metadata


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    monkeypatch.setattr(notice, "_EVERY_S", 0.01)
    made = Metadata()
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", made.url + "/")
    with made.serving():
        yield made


class Watch:
    """A watch in a thread."""

    def __init__(self) -> None:
        self.seen: list[Notice] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=watch, args=(self.over, self.seen.append))
        self.thread.start()

    def end(self) -> None:
        self.over.set()
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture
def watching(metadata: Metadata) -> Iterator[Watch]:
    made = Watch()
    yield made
    made.end()


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
def test_a_notice_is_seen_once_it_is_there(
    metadata: Metadata, watching: Watch, wait_for: Callable[..., bool], action: str
) -> None:
    wait_for(lambda: metadata.asked.count("GET 404") >= 3)
    assert watching.seen == []

    at = metadata.announce(120, action)

    watching.thread.join(20)
    assert watching.seen == [Notice(at)]
    assert metadata.asked.count("PUT 200") == 1, "one token is enough"


def test_a_token_that_has_ended_is_renewed(
    metadata: Metadata, watching: Watch, wait_for: Callable[..., bool]
) -> None:
    wait_for(lambda: metadata.asked.count("GET 404") >= 1)

    metadata.end_tokens()
    metadata.announce(120)

    watching.thread.join(20)
    assert len(watching.seen) == 1
    assert metadata.asked[-3:] == ["GET 401", "PUT 200", "GET 200"]


@pytest.mark.parametrize("body", ["", "[]", "null", "soon", '{"action": "reboot"}'])
def test_what_is_no_notice_is_none(
    metadata: Metadata, watching: Watch, wait_for: Callable[..., bool], body: str
) -> None:
    metadata.body = body
    wait_for(lambda: metadata.asked.count("GET 200") >= 2)

    metadata.announce(120)

    watching.thread.join(20)
    assert len(watching.seen) == 1


def test_a_notice_without_a_time_means_the_usual_two_minutes(
    metadata: Metadata, watching: Watch
) -> None:
    metadata.body = '{"action": "terminate"}'

    watching.thread.join(20)

    assert 80 < watching.seen[0].left_s() <= 90


def test_a_service_that_is_away_is_said_once_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wait_for: Callable[..., bool]
) -> None:
    # given a service that is not there yet, and a proxy that nobody is to ask
    monkeypatch.setattr(notice, "_EVERY_S", 0.01)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    port = free_port()
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{port}")
    watching = Watch()
    wait_for(lambda: "cannot see interruptions of this instance" in caplog.text)

    # when it comes
    metadata = Metadata(port)
    with metadata.serving():
        metadata.announce(120)
        watching.thread.join(20)

    # then it is heard
    assert len(watching.seen) == 1
    assert caplog.text.count("cannot see interruptions of this instance") == 1


def test_jobs_get_the_time_that_is_left_but_for_what_storing_takes() -> None:
    now = time.time()

    assert 89 < Notice(now + 120).left_s() <= 90
    assert Notice(now + 20).left_s() == 5
    assert Notice(now - 20).left_s() == 5
    # Where the clock has been set back, or was never right.
    assert Notice(now + 86400).left_s() == 90
