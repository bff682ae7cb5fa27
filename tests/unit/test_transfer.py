"""Many files at once: whole or not at all, never outside the target, whatever goes wrong."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adr.aws import Connection
from adr.errors import AdrError, PartialFailure, UsageError
from adr.keys import result_key
from adr.stores.base import ObjectStore
from adr.stores.directory import DirectoryStore
from adr.stores.s3 import S3Store
from adr.transfer import Fetch, FetchReport, fetch, store_files
from tests.proxy import Proxy

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    made = DirectoryStore(tmp_path / "runner")
    made.create()
    return made


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def stored(
    store: ObjectStore, name: str, content: bytes = b"content", mode: int = 0o644, index: int = 1
) -> Fetch:
    """Store a result of that name and say how it is fetched."""
    key = result_key("b", index, "0" * 16, name)
    store.write(key, content)
    return Fetch(key, name, len(content), hashlib.sha256(content).hexdigest(), mode)


def files(target: Path) -> dict[str, bytes]:
    """Return name and content of all that lies in the target."""
    return {str(p.relative_to(target)): p.read_bytes() for p in target.rglob("*") if p.is_file()}


class Counter:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.total = self.done = self.finished = 0

    def start(self, what: str, total: int, unit: str) -> None:
        assert unit == "bytes"
        self.total = total

    def advance(self, amount: int = 1) -> None:
        self.done += amount

    def note(self, **counts: int) -> None:
        pass

    def finish(self) -> None:
        self.finished += 1


class TestFetching:
    def test_files_arrive_in_their_folders_with_content_and_mode(
        self, store: DirectoryStore, target: Path
    ) -> None:
        items = [
            stored(store, "a.csv", b"1,2"),
            stored(store, "deep/er/b.sh", b"#!/bin/sh", 0o755),
            stored(store, "deep/empty", b""),
        ]

        report = fetch(store, items, target)

        assert report == FetchReport(fetched=3, unchanged=0, kept=0, size_bytes=12)
        assert files(target) == {"a.csv": b"1,2", "deep/er/b.sh": b"#!/bin/sh", "deep/empty": b""}
        assert stat.S_IMODE((target / "deep/er/b.sh").stat().st_mode) == 0o755
        assert stat.S_IMODE((target / "a.csv").stat().st_mode) == 0o644
        assert sorted(p.name for p in target.iterdir()) == ["a.csv", "deep"]

    def test_a_mode_grants_no_other_identity_and_leaves_a_file_readable(
        self, store: DirectoryStore, target: Path
    ) -> None:
        items = [stored(store, "setuid", mode=0o104755), stored(store, "nothing", mode=0)]

        fetch(store, items, target)

        assert stat.S_IMODE((target / "setuid").stat().st_mode) == 0o755
        assert stat.S_IMODE((target / "nothing").stat().st_mode) == 0o400

    @linux
    @pytest.mark.parametrize(
        "raw", [b"\xff\xfe\x80", b"new\nline", b"-rf *", b".hidden", b"x" * 255, "ä€𝄞".encode()]
    )
    def test_names_of_any_bytes_survive(
        self, store: DirectoryStore, target: Path, raw: bytes
    ) -> None:
        fetch(store, [stored(store, os.fsdecode(raw + b"/" + raw))], target)

        assert os.listdir(os.fsencode(target)) == [raw]
        assert os.listdir(os.fsencode(target) + b"/" + raw) == [raw]

    @linux
    def test_a_path_longer_than_the_system_takes_at_once_arrives(
        self, store: DirectoryStore, target: Path
    ) -> None:
        name = "/".join(["x" * 200] * 30)

        fetch(store, [stored(store, name)], target)

        here = os.open(target, os.O_RDONLY)
        for segment in name.split("/"):
            below = os.open(segment, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        assert os.read(here, 99) == b"content"
        os.close(here)

    def test_progress_reaches_its_total(self, store: DirectoryStore, target: Path) -> None:
        progress = Counter()
        items = [stored(store, str(n), bytes(n)) for n in range(9)]
        fetch(store, items[:3], target)
        (target / "5").write_bytes(b"mine")

        fetch(store, items, target, progress=progress)

        assert (progress.total, progress.done, progress.finished) == (36, 36, 1)

    def test_nothing_to_fetch_is_no_error(self, store: DirectoryStore, target: Path) -> None:
        assert fetch(store, [], target) == FetchReport(0, 0, 0, 0)

    def test_a_file_costs_one_call_and_none_when_it_is_there(
        self, proxy: Proxy, target: Path
    ) -> None:
        store = S3Store(Connection(str(uuid.uuid4())))
        store.create()
        items = [stored(store, f"{n}/out.csv", str(n).encode()) for n in range(20)]
        proxy.reset()

        fetch(store, items, target)
        again = fetch(store, items, target)

        assert proxy.counts == {"s3.GetObject": 20}
        assert again == FetchReport(fetched=0, unchanged=20, kept=0, size_bytes=0)


class TestWhatIsThere:
    def test_only_what_is_missing_is_fetched(self, store: DirectoryStore, target: Path) -> None:
        items = [stored(store, "a", b"one"), stored(store, "b", b"two")]
        fetch(store, items[:1], target)
        store.delete([items[0].key])

        assert fetch(store, items, target) == FetchReport(1, 1, 0, 3)

    def test_other_content_is_kept(self, store: DirectoryStore, target: Path) -> None:
        target.mkdir()
        (target / "same-size").write_bytes(b"CONTENT")
        (target / "other-size").write_bytes(b"mine")
        items = [stored(store, "same-size"), stored(store, "other-size")]

        report = fetch(store, items, target)

        assert (report.fetched, report.kept) == (0, 2)
        assert sorted(report.kept_names) == ["other-size", "same-size"]
        assert files(target) == {"same-size": b"CONTENT", "other-size": b"mine"}

    def test_other_content_is_replaced_when_asked(
        self, store: DirectoryStore, target: Path
    ) -> None:
        items = [stored(store, "a"), stored(store, "b")]
        fetch(store, items[:1], target)
        (target / "b").write_bytes(b"mine")

        assert fetch(store, items, target, overwrite=True) == FetchReport(1, 1, 0, 7)
        assert files(target) == {"a": b"content", "b": b"content"}

    def test_a_link_is_replaced_and_what_it_names_spared(
        self, store: DirectoryStore, target: Path, tmp_path: Path
    ) -> None:
        target.mkdir()
        (tmp_path / "mine").write_bytes(b"content")
        (target / "a").symlink_to(tmp_path / "mine")
        item = stored(store, "a")

        assert fetch(store, [item], target).kept == 1
        assert fetch(store, [item], target, overwrite=True).fetched == 1
        assert not (target / "a").is_symlink()
        assert (tmp_path / "mine").read_bytes() == b"content"

    def test_a_pipe_is_not_waited_for(self, store: DirectoryStore, target: Path) -> None:
        target.mkdir()
        os.mkfifo(target / "a")

        assert fetch(store, [stored(store, "a", b"")], target).kept == 1

    def test_a_folder_in_the_way_is_a_failure_even_when_replacing(
        self, store: DirectoryStore, target: Path
    ) -> None:
        (target / "a" / "mine").mkdir(parents=True)

        with pytest.raises(PartialFailure, match=r"a .*"):
            fetch(store, [stored(store, "a")], target, overwrite=True)

        assert (target / "a" / "mine").is_dir()


class TestNames:
    @pytest.mark.parametrize(
        "name", ["", ".", "..", "/etc/x", "../x", "a/../../x", "a/..", "a//b", "a/", "./a", "a\0b"]
    )
    def test_a_name_that_could_lead_out_is_refused_and_the_rest_done(
        self, store: DirectoryStore, target: Path, tmp_path: Path, name: str
    ) -> None:
        good = stored(store, "good")
        bad = Fetch(good.key, name, good.size_bytes, good.sha256, good.mode)
        before = sorted(p for p in tmp_path.iterdir())

        with pytest.raises(PartialFailure, match=r"1 of 2 files .*refused") as raised:
            fetch(store, [bad, good], target)

        assert raised.value.succeeded == ("good",)
        assert raised.value.failed == (name,)
        assert files(target) == {"good": b"content"}
        assert sorted(p for p in tmp_path.iterdir()) == sorted([*before, target])

    @pytest.mark.parametrize("inside", [True, False])
    def test_a_folder_that_is_a_link_is_not_followed(
        self, store: DirectoryStore, target: Path, tmp_path: Path, inside: bool
    ) -> None:
        elsewhere = (target if inside else tmp_path) / "elsewhere"
        elsewhere.mkdir(parents=True)
        (target / "real").mkdir(parents=True)
        (target / "real" / "link").symlink_to(elsewhere)

        with pytest.raises(PartialFailure, match="link on its way is a link"):
            fetch(store, [stored(store, "real/link/x"), stored(store, "y")], target)

        assert list(elsewhere.iterdir()) == []
        assert (target / "y").exists()

    def test_the_target_itself_may_be_a_link(
        self, store: DirectoryStore, target: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "disk").mkdir()
        target.symlink_to(tmp_path / "disk")

        fetch(store, [stored(store, "x")], target)

        assert (tmp_path / "disk" / "x").exists()

    def test_a_file_in_place_of_a_folder_is_named(
        self, store: DirectoryStore, target: Path
    ) -> None:
        target.mkdir()
        (target / "a").write_bytes(b"mine")

        with pytest.raises(PartialFailure, match="a on its way is a link or a file"):
            fetch(store, [stored(store, "a/b")], target)

        assert files(target) == {"a": b"mine"}

    def test_a_name_that_the_file_system_cannot_hold_is_named(
        self, store: DirectoryStore, target: Path
    ) -> None:
        long = [stored(store, "x" * 300), stored(store, "y" * 300 + "/z")]

        with pytest.raises(PartialFailure, match=r"2 of 3 .*too long") as raised:
            fetch(store, [*long, stored(store, "good")], target)

        assert set(raised.value.failed) == {item.name for item in long}
        assert files(target) == {"good": b"content"}

    def test_a_name_wanted_twice_is_written_once(self, store: DirectoryStore, target: Path) -> None:
        items = [stored(store, "a", b"one"), stored(store, "a", b"two", index=2)]

        with pytest.raises(PartialFailure, match="same name"):
            fetch(store, items, target, threads=1)

        assert files(target) == {"a": b"one"}

    def test_a_name_that_cannot_be_printed_can_be_told(
        self, store: DirectoryStore, target: Path
    ) -> None:
        item = stored(store, "\udcff\x1b[31m")
        store.delete([item.key])

        with pytest.raises(PartialFailure) as raised:
            fetch(store, [item], target)

        assert str(raised.value).encode("utf-8").isascii()
        assert "\x1b" not in str(raised.value)


class TestFailures:
    def test_one_missing_object_does_not_stop_the_rest(
        self, store: DirectoryStore, target: Path
    ) -> None:
        items = [stored(store, str(n)) for n in range(30)]
        store.delete([items[3].key])

        with pytest.raises(PartialFailure, match=r"1 of 30 files .* 3 ") as raised:
            fetch(store, items, target)

        assert raised.value.failed == ("3",)
        assert len(raised.value.succeeded) == len(files(target)) == 29

    @pytest.mark.parametrize("content", [b"changed", b"content, and more", b""])
    def test_content_that_is_not_the_recorded_one_never_appears(
        self, store: DirectoryStore, target: Path, content: bytes
    ) -> None:
        item = stored(store, "a")
        store.write(item.key, content)

        with pytest.raises(PartialFailure, match=r"a .*not what the record says"):
            fetch(store, [item], target)

        assert files(target) == {}
        assert list(target.iterdir()) == []

    def test_a_service_that_refuses_everything_is_soon_given_up(
        self, proxy: Proxy, target: Path
    ) -> None:
        store = S3Store(Connection(str(uuid.uuid4())))
        store.create()
        proxy.fail("s3.GetObject", 403, "AccessDenied")
        items = [Fetch(f"b/{n}", str(n), 1, "0" * 64, 0o644) for n in range(500)]

        with pytest.raises(
            PartialFailure, match=r"500 of 500 .*AWS denies.*and 490 more"
        ) as raised:
            fetch(store, items, target)

        assert len(raised.value.failed) == 500
        assert proxy.count("s3.GetObject") < 100

    def test_many_bad_items_among_good_ones_do_not_stop_the_rest(
        self, store: DirectoryStore, target: Path
    ) -> None:
        items = [stored(store, str(n)) for n in range(60)]
        store.delete([item.key for item in items[::2]])

        with pytest.raises(PartialFailure, match="30 of 60"):
            fetch(store, items, target, threads=1)

        assert len(files(target)) == 30

    def test_a_target_that_is_a_file_is_refused(self, store: DirectoryStore, target: Path) -> None:
        target.write_bytes(b"mine")

        with pytest.raises(UsageError, match=f"{target}: it is a file"):
            fetch(store, [stored(store, "a")], target)

        assert target.read_bytes() == b"mine"

    @pytest.mark.parametrize(
        "place", ["file/below", pytest.param("/proc/adr", marks=linux), "x" * 300]
    )
    def test_a_target_that_cannot_be_written_is_refused_before_anything(
        self, store: DirectoryStore, tmp_path: Path, place: str
    ) -> None:
        (tmp_path / "file").write_bytes(b"")
        item = stored(store, "a")
        progress = Counter()

        with pytest.raises(UsageError, match=place):
            fetch(store, [item], tmp_path / place, progress=progress)

        assert progress.total == 0


# Half a file is written, then nothing more, as with a service that stands still.
_STUCK = """
import sys
from pathlib import Path
from adr.stores.directory import DirectoryStore
from adr.transfer import Fetch, fetch

class Stuck(DirectoryStore):
    def download(self, key, path):
        path.write_bytes(b"half")
        print("stuck", flush=True)
        sys.stdin.read()

fetch(Stuck(Path("unused")), [Fetch("key", "a/b", 8, "0" * 64, 0o644)], Path(sys.argv[1]))
"""


@contextmanager
def stuck_download(target: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _STUCK, str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    try:
        assert process.stdout.readline() == b"stuck\n"
        yield process
    finally:
        process.kill()
        process.communicate()


class TestInterruption:
    def test_what_a_killed_download_left_is_removed_by_the_next(
        self, store: DirectoryStore, target: Path
    ) -> None:
        with stuck_download(target) as process:
            process.kill()
            process.wait()
        assert b"half" in files(target).values()

        fetch(store, [stored(store, "c")], target)

        assert files(target) == {"c": b"content"}

    def test_what_a_running_download_has_is_left_alone(
        self, store: DirectoryStore, target: Path
    ) -> None:
        with stuck_download(target):
            fetch(store, [stored(store, "c")], target)

            assert b"half" in files(target).values()

    def test_ctrl_c_ends_a_download_at_once_and_leaves_nothing(self, target: Path) -> None:
        with stuck_download(target) as process:
            process.send_signal(signal.SIGINT)
            assert process.wait(10) != 0

        assert files(target) == {}
        assert [p.name for p in target.iterdir()] == ["a"]


class TestStoringFiles:
    def test_all_files_are_stored(self, store: DirectoryStore, tmp_path: Path) -> None:
        pairs = [(tmp_path / str(n), f"b/{n}") for n in range(20)]
        for path, _ in pairs:
            path.write_bytes(path.name.encode())

        store_files(store, pairs, move=True)

        assert {e.key: store.read(e.key).body for e in store.list("")} == {
            key: path.name.encode() for path, key in pairs
        }
        assert not any(path.exists() for path, _ in pairs)

    def test_an_error_is_raised_when_the_others_are_done(
        self, store: DirectoryStore, tmp_path: Path
    ) -> None:
        (tmp_path / "there").write_bytes(b"content")
        pairs = [(tmp_path / "missing", "a"), *((tmp_path / "there", f"b/{n}") for n in range(9))]

        with pytest.raises(AdrError, match="missing"):
            store_files(store, pairs, threads=1)

        assert len(list(store.list(""))) == 9
