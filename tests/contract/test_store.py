"""The contract of every store."""

from __future__ import annotations

import errno
import os
import resource
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adr.aws import Connection
from adr.errors import Conflict, NotFound, RunnerGone, ServiceError
from adr.stores.base import ObjectStore
from adr.stores.directory import DirectoryStore
from adr.stores.s3 import S3Store

LARGE_BYTES = (20 << 20) + 7


@pytest.fixture(params=["directory", "ministack", "moto"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    made: ObjectStore
    if request.param == "directory":
        made = DirectoryStore(tmp_path / "runner")
    else:
        request.getfixturevalue("aws_env" if request.param == "ministack" else "moto_env")
        made = S3Store(Connection(str(uuid.uuid4())))
    made.create()
    return made


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """Let the system refuse to write more than 1 MiB to a file, much as a full disk would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def a_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [entry.key for entry in store.list(prefix)]


class TestDocuments:
    def test_what_was_written_is_read(self, store: ObjectStore) -> None:
        etag = store.write("_batches/b.seal", b"\x00 content")

        document = store.read("_batches/b.seal")

        assert document.body == b"\x00 content"
        assert document.etag == etag
        assert 0 <= document.age_s < 60

    def test_of_what_grows_the_end_is_read(self, store: ObjectStore) -> None:
        store.write("_journal/b/w-0.jsonl", b"first\n")
        etag = store.write("_journal/b/w-0.jsonl", b"first\nsecond\n")

        end = store.read("_journal/b/w-0.jsonl", len(b"first\n"))

        assert (end.body, end.etag) == (b"second\n", etag)

    def test_an_empty_object_is_an_object(self, store: ObjectStore) -> None:
        store.write("_workers/10.0.0.1", b"")

        assert store.read("_workers/10.0.0.1").body == b""

    def test_reading_what_is_not_there_is_not_found(self, store: ObjectStore) -> None:
        store.write("a/b", b"")

        for key in ("nothing", "a", "a/b/c", "a/c"):
            with pytest.raises(NotFound, match=key):
                store.read(key)

    def test_every_version_has_an_etag_of_its_own(self, store: ObjectStore) -> None:
        contents = [str(n % 10 + n // 10).encode() * 3 for n in range(20)]

        etags = [store.write("key", content) for content in contents]

        for n, content in enumerate(contents):
            different = [e for e, c in zip(etags, contents, strict=True) if c != content]
            assert etags[n] not in different

    def test_a_flat_listing_passes_over_what_lies_deeper(self, store: ObjectStore) -> None:
        for key in ("a.zip", "a/1", "b/c/2", "b/d", "c.zip"):
            store.write(key, b"")

        def flat(prefix: str) -> list[str]:
            return [entry.key for entry in store.list(prefix, flat=True)]

        assert flat("") == ["a.zip", "c.zip"]
        assert flat("b/") == ["b/d"]
        assert flat("a") == ["a.zip"]
        assert flat("x") == []

    def test_the_listing_has_the_etag_of_the_last_version(self, store: ObjectStore) -> None:
        store.write("key", b"first")
        etag = store.write("key", b"second!")

        [entry] = store.list("key")

        assert (entry.etag, entry.size_bytes) == (etag, 7)

    def test_the_age_grows_and_a_rewrite_ends_it(
        self, store: ObjectStore, wait_for: Callable[..., float]
    ) -> None:
        store.write("beat", b"1")
        # S3 counts whole seconds
        wait_for(lambda: store.read("beat").age_s >= 1)

        store.write("beat", b"2")

        assert store.read("beat").age_s < 1


class TestConditions:
    def test_if_absent_writes_once(self, store: ObjectStore) -> None:
        store.write("card", b"first", if_absent=True)

        with pytest.raises(Conflict, match="card"):
            store.write("card", b"second", if_absent=True)

        assert store.read("card").body == b"first"

    def test_if_absent_writes_again_after_a_deletion(self, store: ObjectStore) -> None:
        store.write("card", b"first", if_absent=True)
        store.delete(["card"])

        store.write("card", b"second", if_absent=True)

        assert store.read("card").body == b"second"

    def test_if_match_writes_over_that_version_only(self, store: ObjectStore) -> None:
        first = store.write("card", b"first")
        second = store.write("card", b"second", if_match=first)

        with pytest.raises(Conflict, match="card"):
            store.write("card", b"third", if_match=first)

        assert store.read("card").body == b"second"
        assert store.read("card").etag == second

    def test_if_match_of_a_removed_object_is_a_conflict(self, store: ObjectStore) -> None:
        etag = store.write("card", b"first")
        store.delete(["card"])

        with pytest.raises(Conflict, match="card"):
            store.write("card", b"second", if_match=etag)

        assert keys(store) == []

    def test_one_of_many_writers_wins(self, store: ObjectStore) -> None:
        start = threading.Barrier(8)

        def write(n: int) -> bool:
            start.wait()
            try:
                store.write("deep/down/card", str(n).encode(), if_absent=True)
            except Conflict:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(write, range(8)))

        assert won.count(True) == 1
        assert store.read("deep/down/card").body == str(won.index(True)).encode()

    def test_no_change_of_a_counter_is_lost(self, store: ObjectStore) -> None:
        store.write("counter", b"0")

        def add(_: int) -> None:
            while True:
                old = store.read("counter")
                try:
                    store.write("counter", str(int(old.body) + 1).encode(), if_match=old.etag)
                except Conflict:
                    continue
                return

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(add, range(20)))

        assert store.read("counter").body == b"20"


class TestFiles:
    @pytest.mark.parametrize("size", [0, 1, 8 << 20, LARGE_BYTES])
    @pytest.mark.parametrize("move", [False, True])
    def test_a_file_comes_back_as_it_was(
        self, store: ObjectStore, tmp_path: Path, size: int, move: bool
    ) -> None:
        content = os.urandom(1 << 16) * (size // (1 << 16) + 1)
        content = content[:size]
        source = a_file(tmp_path / "result.nc", content)

        store.upload(source, "b/000001/aa/result.nc", move=move)
        store.download("b/000001/aa/result.nc", tmp_path / "copy")

        assert (tmp_path / "copy").read_bytes() == content
        assert [e.size_bytes for e in store.list("b/")] == [size]
        if not move:
            assert source.read_bytes() == content

    def test_an_upload_replaces_what_was_there(self, store: ObjectStore, tmp_path: Path) -> None:
        store.upload(a_file(tmp_path / "f", b"first"), "key")
        first = store.read("key").etag

        store.upload(a_file(tmp_path / "f", b"other"), "key", move=True)

        assert store.read("key").body == b"other"
        assert store.read("key").etag != first

    def test_a_missing_file_is_named(self, store: ObjectStore, tmp_path: Path) -> None:
        for move in (False, True):
            with pytest.raises(ServiceError, match=str(tmp_path / "missing")):
                store.upload(tmp_path / "missing", "key", move=move)

        assert keys(store) == []

    def test_only_regular_files_are_stored(self, store: ObjectStore, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path, tmp_path / "pipe"):
            with pytest.raises(ServiceError, match=str(path)):
                store.upload(path, "key")

        assert keys(store) == []

    def test_downloading_what_is_not_there_leaves_no_file(
        self, store: ObjectStore, tmp_path: Path
    ) -> None:
        with pytest.raises(NotFound, match="nothing"):
            store.download("nothing", tmp_path / "copy")

        assert not (tmp_path / "copy").exists()

    def test_a_download_never_touches_a_file_that_exists(
        self, store: ObjectStore, tmp_path: Path
    ) -> None:
        store.write("key", b"new")
        mine = a_file(tmp_path / "copy", b"mine")
        (tmp_path / "link").symlink_to(mine)

        for path in (mine, tmp_path / "link"):
            with pytest.raises(ServiceError, match=str(path)):
                store.download("key", path)

        assert mine.read_bytes() == b"mine"

    def test_a_download_into_nowhere_is_named(self, store: ObjectStore, tmp_path: Path) -> None:
        store.write("key", b"")

        with pytest.raises(ServiceError, match="no/where"):
            store.download("key", tmp_path / "no" / "where")

    def test_a_full_disk_leaves_no_half_file(
        self, store: ObjectStore, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        store.upload(a_file(tmp_path / "f", bytes(3 << 20)), "key")
        request.getfixturevalue("small_files_only")

        with pytest.raises(ServiceError, match=rf"{tmp_path}/copy: {os.strerror(errno.EFBIG)}"):
            store.download("key", tmp_path / "copy")

        assert not (tmp_path / "copy").exists()


class TestListing:
    def test_keys_come_in_the_order_of_their_bytes(self, store: ObjectStore) -> None:
        names = [
            "a/b",
            "a.txt",
            "a0",
            "a/b.c/d",
            "a/B",
            "b",
            "ä",
            "a/b-c",
            "z/z/z",
            "a-b/c",
            "\U00010000",
            "\uffff",
        ]
        for name in names:
            if name != "a/b":
                store.write(name, b"")

        assert keys(store) == sorted(names[1:], key=str.encode)

    def test_a_prefix_may_cut_through_a_name(self, store: ObjectStore) -> None:
        for name in ("_batches/b1.seal", "_batches/b10.seal", "_batches/b2.seal", "b1/x", "b1.zip"):
            store.write(name, b"")

        assert keys(store, "_batches/b1") == ["_batches/b1.seal", "_batches/b10.seal"]
        assert keys(store, "b1/") == ["b1/x"]
        assert keys(store, "b1") == ["b1.zip", "b1/x"]
        assert keys(store, "b1/x") == ["b1/x"]
        assert keys(store, "nothing/at/all/") == []
        assert keys(store, "b1.zip/x") == []

    def test_names_of_all_plain_characters_survive(self, store: ObjectStore) -> None:
        name = "b/000001/aa/a &+=@,'()! %20%FF~" + "x" * 180
        store.write(name, b"content")

        assert keys(store) == [name]
        assert store.read(name).body == b"content"


class TestRemoval:
    def test_more_than_one_call_takes_are_removed(self, store: ObjectStore) -> None:
        names = [f"b/{n:06d}/x" for n in range(1003)]
        # Those that are not there count for a call as the others do, and are made for nothing.
        for name in (names[0], names[1], names[-1]):
            store.write(name, b"")

        store.delete(iter(names[1:]))

        assert keys(store) == names[:1]

    def test_absent_ones_are_no_error(self, store: ObjectStore) -> None:
        store.write("b/c", b"")

        store.delete(["nothing", "b", "no/thing", "b/c/d", "b/c"])
        store.delete([])

        assert keys(store) == []

    def test_writers_and_removers_in_one_place_do_not_disturb_each_other(
        self, store: ObjectStore
    ) -> None:
        def write_and_remove(n: int) -> None:
            for _ in range(10):
                store.write(f"deep/er/{n}", b"")
                store.delete([f"deep/er/{n}"])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write_and_remove, range(4)))

        assert keys(store) == []


class TestLife:
    def test_creating_again_keeps_what_is_there(self, store: ObjectStore) -> None:
        store.write("key", b"content")

        store.create()

        assert store.read("key").body == b"content"

    def test_a_destroyed_store_stays_gone(self, store: ObjectStore, tmp_path: Path) -> None:
        store.write("a/b", b"content")
        store.destroy()

        store.destroy()
        store.delete(["a/b"])
        for attempt in (
            lambda: store.write("a/b", b""),
            lambda: store.write("a/b", b"", if_absent=True),
            lambda: store.upload(a_file(tmp_path / "f", b""), "a/b"),
            lambda: store.upload(a_file(tmp_path / "f", b""), "a/b", move=True),
            lambda: store.read("a/b"),
            lambda: store.download("a/b", tmp_path / "copy"),
            lambda: keys(store),
        ):
            with pytest.raises(RunnerGone):
                attempt()

    def test_a_store_is_empty_after_it_was_destroyed_and_made_again(
        self, store: ObjectStore
    ) -> None:
        store.write("a/b", b"content")
        store.destroy()

        store.create()

        assert keys(store) == []
