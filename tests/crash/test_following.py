"""The output of a running job is followed from elsewhere, byte by byte, whoever dies meanwhile."""

from __future__ import annotations

import random
import signal
import threading

import pytest

import adr
from adr.errors import AdrError
from adr.following import follow
from adr.keys import FOLLOWED, FOLLOWS
from adr.models import Job
from adr.orders import order_cancelling
from adr.runner import open_runner
from adr.survey import Survey
from tests.proxy import Proxy
from tests.scene import Scene

#: A part holds up to 1 MiB.
BURST = random.Random(7).randbytes(1_060_000) + b"\0\n\0\xc3"
LAST = b"\xa9 last words"
#: Says what the test lets it say, and its last words just before it ends.
TALK = """\
number=${1##*-}; number=${number%.txt}
for burst in 1 2 3; do
    while [ ! -e "$SIDE/burst-$number-$burst" ]; do sleep 0.05; done
    cat burst.bin
done
while [ ! -e "$SIDE/end-$number" ]; do sleep 0.05; done
printf '\\251 last words'
"""
SOON = {"orders_s": 0.5, "visibility_s": 2}


class Talk:
    """A scene of jobs that talk, and those who follow them."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        scene.command = "bash talk.sh {}"
        (scene.inputs / "talk.sh").write_text(TALK)
        (scene.inputs / "burst.bin").write_bytes(BURST)
        local = scene.kind == "local"
        self.runner = open_runner(scene.runner, **({} if local else {"orders_s": 0.5}))
        self.survey = Survey(self.runner)

    def jobs(self, number: int) -> list[Job]:
        batch = self.scene.queue(number)
        return [view.job for view in self.survey.status(batch).jobs]

    def say(self, job: Job, burst: int) -> None:
        (self.scene.side / f"burst-{job.index}-{burst}").touch()

    def end(self, job: Job) -> None:
        (self.scene.side / f"end-{job.index}").touch()

    def follow(self, job: Job) -> Reader:
        return Reader(self, job)

    def left(self) -> list[str]:
        """Return the keys of all that serves to follow jobs."""
        return [each.key for top in (FOLLOWS, FOLLOWED) for each in self.runner.store.list(top)]


class Reader:
    """Somebody who follows a job."""

    def __init__(self, talk: Talk, job: Job) -> None:
        self.wait = talk.scene.wait
        self.heard = b""
        self.told: list[str] = []
        self._chunks = follow(talk.runner, talk.survey, job, self.told.append)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for chunk in self._chunks:
            self.heard += chunk

    def await_heard(self, length: int) -> None:
        self.wait(lambda: len(self.heard) >= length)

    def ended(self) -> bytes:
        """Wait for the end; return all that was heard."""
        self._thread.join(40)
        assert not self._thread.is_alive(), self.told
        return self.heard


@pytest.fixture
def talk(scene: Scene) -> Talk:
    return Talk(scene)


def test_all_who_follow_a_job_hear_each_byte_once(
    talk: Talk, request: pytest.FixtureRequest
) -> None:
    proxy: Proxy | None = None
    if talk.scene.kind == "aws":
        proxy = request.getfixturevalue("proxy")

    def stored(index: int) -> int:
        """Return how many parts and notes workers have stored for who follows a job."""
        assert proxy is not None
        return proxy.count("s3.PutObject", rf"^{FOLLOWED}[^/]+/{index:06d}/")

    # given somebody who follows a job before it starts
    followed, other = talk.jobs(2)
    first = talk.follow(followed)
    worker = talk.scene.worker(slots=2, times=SOON)
    # when it writes a burst, then that is heard while it runs
    talk.say(followed, 1)
    first.await_heard(len(BURST))
    assert first.heard == BURST
    # and while it writes nothing, nothing is stored
    if proxy is not None:
        parts = stored(followed.index)
        asked = proxy.counts["s3.ListObjectsV2"]
        talk.scene.wait(lambda: proxy.counts["s3.ListObjectsV2"] >= asked + 12)
        assert stored(followed.index) == parts <= 6
    # and who comes later hears all of it, too
    talk.say(followed, 2)
    first.await_heard(2 * len(BURST))
    second = talk.follow(followed)
    second.await_heard(2 * len(BURST))
    # and who only asks for it is told how to
    with pytest.raises(AdrError, match=r"is running: .* or followed: adr logs -f$"):
        adr.logs(talk.runner.id, followed.name)
    # and what it says just before it ends is heard as well
    talk.say(followed, 3)
    talk.end(followed)
    whole = 3 * BURST + LAST
    assert first.ended() == whole
    assert second.ended() == whole
    assert b"".join(adr.logs(talk.runner.id, followed.name)) == whole
    assert first.told == second.told == []
    # and nothing stays behind, and nothing was stored of the job that nobody followed
    assert talk.left() == []
    for burst in (1, 2, 3):
        talk.say(other, burst)
    talk.end(other)
    talk.scene.await_empty()
    worker.end()
    assert talk.left() == []
    if proxy is not None:
        assert stored(other.index) == 0
        # for each of two a note, and as many parts as its length takes, or as it was looked at
        assert 2 * (1 + 4) <= stored(followed.index) <= 2 * (1 + 3 * 6)


def test_who_follows_a_job_hears_of_its_worker_and_of_its_end(talk: Talk) -> None:
    # given somebody who follows a job, whose worker is killed in the middle
    (job,) = talk.jobs(1)
    reader = talk.follow(job)
    worker = talk.scene.worker(times=SOON)
    talk.say(job, 1)
    reader.await_heard(len(BURST))
    worker.kill()
    # when another one runs it
    talk.scene.await_no_process()
    talk.say(job, 2)
    worker = talk.scene.worker(times=SOON)
    # then it is said where its output begins anew
    reader.await_heard(3 * len(BURST))
    assert reader.heard == 3 * BURST
    (said,) = (each for each in reader.told if "attempt" in each)
    assert "ended with its worker: attempt" in said
    assert said.endswith("follows, from its first byte")
    # and when it is cancelled, that is said, and heard what its shell says of it
    order_cancelling(talk.runner.store, [job])
    assert reader.ended().startswith(3 * BURST)
    assert reader.heard.endswith(b"Terminated\n")
    assert reader.told[-1] == f"{job.name} was cancelled"
    talk.scene.await_empty()
    worker.end()
    assert talk.left() == []
    with pytest.raises(AdrError, match="was cancelled: no output of it is kept"):
        adr.logs(talk.runner.id, job.name)


def test_nothing_is_left_of_who_gives_up_or_has_nothing_to_wait_for(local: Scene) -> None:
    # given a command that follows a job
    talk = Talk(local)
    (job,) = talk.jobs(1)
    words = ["logs", "-f", f"--runner={local.runner}", job.name]
    command = local.start("adr", *words)
    local.wait(talk.left)
    # when it is interrupted
    command.signal(signal.SIGINT)
    # then nothing is left of it
    assert command.ended() == 130
    said = f"{job.name} waits to be run, and no worker runs\nadr: interrupted\n"
    assert command.output() == said
    assert talk.left() == []
    # and who follows a job that will never run does not wait for it
    reader = follow(talk.runner, talk.survey, job, lambda _: None)
    order_cancelling(talk.runner.store, [job])
    never = f"{job.name} was cancelled before it ran: it has no output"
    with pytest.raises(AdrError, match=never):
        next(reader)
    with pytest.raises(AdrError, match=never):
        adr.logs(talk.runner.id, job.name, follow=True)
    assert talk.left() == []
