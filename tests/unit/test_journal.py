"""The journal: records appended where nothing can be appended, by calls whose answers get lost."""

from __future__ import annotations

import json
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adr.aws import Connection
from adr.errors import AdrError, ServiceError
from adr.keys import journal_key, journal_prefix
from adr.ledgers.journal import Journal, JournalReader
from adr.models import SCHEMA, JobRecord, JobState
from adr.objectcache import ObjectCache
from adr.stores.base import ObjectInfo, ObjectStore
from adr.stores.directory import DirectoryStore
from adr.stores.s3 import S3Store
from tests.proxy import Proxy


@pytest.fixture
def disk(tmp_path: Path) -> ObjectStore:
    made = DirectoryStore(tmp_path / "store")
    made.create()
    return made


@pytest.fixture
def name() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def bucket(proxy: Proxy, name: str) -> ObjectStore:
    made = S3Store(Connection(name))
    made.create()
    proxy.reset()
    return made


def a_record(index: int, batch: str = "b", tail: str = "") -> JobRecord:
    return JobRecord(batch, index, "x", 0, f"attempt{index}", JobState.FAILED, tail=tail)


def read(store: ObjectStore, batch: str = "b") -> list[int]:
    return sorted(record.index for record in JournalReader(store).records([batch]))


def decided(reader: JournalReader, batch: str = "b") -> list[int]:
    return sorted(each.index for each in reader.decided([batch]))


def pages(store: ObjectStore, batch: str = "b") -> list[str]:
    return [entry.key for entry in store.list(journal_prefix(batch))]


def append_each(journal: Journal, indexes: Sequence[int], batch: str = "b") -> None:
    for index in indexes:
        journal.append([a_record(index, batch)])


class TestPages:
    def test_what_was_appended_is_read(self, disk: ObjectStore) -> None:
        record = a_record(1, tail="\udcff € \n\r\u2028")

        Journal(disk, "w").append([record])

        assert JournalReader(disk).records(["b"]) == [record]

    def test_appending_goes_on_in_the_same_object(self, disk: ObjectStore) -> None:
        append_each(Journal(disk, "w"), range(5))

        assert read(disk) == list(range(5))
        assert pages(disk) == [journal_key("b", "w", 0)]

    def test_a_full_object_is_followed_by_another(self, disk: ObjectStore) -> None:
        journal = Journal(disk, "w")

        for index in range(9):
            journal.append([a_record(index, tail="x" * 250_000)])

        assert read(disk) == list(range(9))
        sizes = [entry.size_bytes for entry in disk.list(journal_prefix("b"))]
        assert len(sizes) == 3
        assert all(size <= 1 << 20 for size in sizes)

    def test_a_group_larger_than_an_object_is_one_all_the_same(self, disk: ObjectStore) -> None:
        journal = Journal(disk, "w")
        append_each(journal, [1])

        journal.append([a_record(index, tail="x" * 500_000) for index in (2, 3, 4)])
        append_each(journal, [5])

        assert read(disk) == [1, 2, 3, 4, 5]
        assert len(pages(disk)) == 3

    def test_each_batch_has_objects_of_its_own(self, disk: ObjectStore) -> None:
        Journal(disk, "w").append([a_record(1, "b"), a_record(2, "c"), a_record(3, "b")])

        assert read(disk, "b") == [1, 3]
        assert read(disk, "c") == [2]
        assert len(JournalReader(disk).records(["b", "c"])) == 3

    def test_each_worker_has_objects_of_its_own(self, disk: ObjectStore) -> None:
        append_each(Journal(disk, "w1"), [1])
        append_each(Journal(disk, "w2"), [2])

        assert read(disk) == [1, 2]
        assert len(pages(disk)) == 2

    def test_of_many_batches_none_is_forgotten_on_disk_and_the_old_ones_are_in_memory(
        self, disk: ObjectStore
    ) -> None:
        journal = Journal(disk, "w")
        batches = [f"b{n}" for n in range(40)]

        for index in (1, 2):
            for batch in batches:
                append_each(journal, [index], batch)

        assert all(read(disk, batch) == [1, 2] for batch in batches)
        assert Counter(len(pages(disk, batch)) for batch in batches) == {2: 40}
        append_each(journal, [3, 4], "b39")
        assert len(pages(disk, "b39")) == 2

    def test_threads_may_append_at_once(self, disk: ObjectStore) -> None:
        journal = Journal(disk, "w")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda index: append_each(journal, [index]), range(40)))

        assert read(disk) == list(range(40))
        assert len(pages(disk)) == 1

    def test_nothing_to_append_is_no_write(self, disk: ObjectStore) -> None:
        Journal(disk, "w").append([])

        assert list(disk.list("")) == []


class TestTrouble:
    @pytest.mark.parametrize("write", [0, 1, 2])
    def test_a_write_whose_answer_was_lost_is_recognised(
        self, bucket: ObjectStore, proxy: Proxy, write: int
    ) -> None:
        journal = Journal(bucket, "w")
        append_each(journal, range(write))
        lost = proxy.lose_answer("s3.PutObject", times=1)

        append_each(journal, range(write, 4))

        assert lost.hits == 1
        assert [r.index for r in JournalReader(bucket).records(["b"])] == [0, 1, 2, 3]
        assert len(pages(bucket)) == 1

    def test_what_another_has_written_there_is_left_alone(self, disk: ObjectStore) -> None:
        foreign = (json.dumps(a_record(9).to_dict()) + "\n").encode()
        disk.write(journal_key("b", "w", 0), foreign)
        journal = Journal(disk, "w")

        append_each(journal, [1, 2])

        assert disk.read(journal_key("b", "w", 0)).body == foreign
        assert read(disk) == [1, 2, 9]
        assert len(pages(disk)) == 2

    def test_what_has_been_changed_meanwhile_is_left_alone(self, disk: ObjectStore) -> None:
        journal = Journal(disk, "w")
        append_each(journal, [1])
        foreign = disk.read(journal_key("b", "w", 0)).body * 2
        disk.write(journal_key("b", "w", 0), foreign)

        append_each(journal, [2, 3])

        assert disk.read(journal_key("b", "w", 0)).body == foreign
        assert read(disk) == [1, 1, 2, 3]

    def test_what_has_been_removed_meanwhile_does_not_come_back(self, disk: ObjectStore) -> None:
        journal = Journal(disk, "w")
        append_each(journal, [1])
        disk.delete(pages(disk))

        append_each(journal, [2, 3])

        assert read(disk) == [2, 3]

    @pytest.mark.parametrize("write", [0, 1])
    def test_a_write_that_lands_late_destroys_nothing(
        self, bucket: ObjectStore, proxy: Proxy, write: int
    ) -> None:
        # given a write that was cut off, repeated, and followed by others
        journal = Journal(bucket, "w")
        append_each(journal, range(write))
        late = proxy.delay_late("s3.PutObject", times=1)
        append_each(journal, range(write, 5))
        late.wait_held()

        [answer] = late.release()

        assert answer.status == 412
        assert read(bucket) == [0, 1, 2, 3, 4]
        append_each(journal, [5])
        assert read(bucket) == [0, 1, 2, 3, 4, 5]

    def test_a_write_given_up_that_lands_before_the_next_costs_no_record(
        self, bucket: ObjectStore, name: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        journal = Journal(S3Store(Connection(name)), "w")
        append_each(journal, [1])
        late = proxy.delay_late("s3.PutObject", times=1)
        with pytest.raises(ServiceError):
            append_each(journal, [2])

        [answer] = late.release()
        append_each(journal, [3])
        append_each(journal, [2])

        assert answer.status == 200
        assert set(read(bucket)) == {1, 2, 3}

    def test_after_an_error_the_same_records_are_appended_again(
        self, bucket: ObjectStore, proxy: Proxy
    ) -> None:
        journal = Journal(bucket, "w")
        append_each(journal, [1])
        proxy.fail("s3.PutObject", 400, "InvalidRequest", times=1)
        with pytest.raises(ServiceError):
            append_each(journal, [2])

        append_each(journal, [2])

        assert read(bucket) == [1, 2]


class TestReading:
    def test_only_what_has_changed_is_fetched_again(
        self, bucket: ObjectStore, proxy: Proxy
    ) -> None:
        journals = [Journal(bucket, f"w{n}") for n in range(5)]
        for n, journal in enumerate(journals):
            append_each(journal, [n])
        reader = JournalReader(bucket)
        assert decided(reader) == [0, 1, 2, 3, 4]
        assert proxy.count("s3.GetObject") == 5

        append_each(journals[2], [7])
        proxy.reset()
        now, again = decided(reader), decided(reader)

        assert now == again == [0, 1, 2, 3, 4, 7]
        assert proxy.counts == {"s3.ListObjectsV2": 2, "s3.GetObject": 1}
        assert proxy.calls[1] == ("s3.GetObject", journal_key("b", "w2", 0))

    def test_of_an_object_that_has_grown_only_the_end_is_fetched(self, disk: ObjectStore) -> None:
        # given a reader that has read the journal
        reader, journal = JournalReader(disk), Journal(disk, "w")
        append_each(journal, [1, 2])
        assert decided(reader) == [1, 2]
        (key,) = pages(disk)
        known = disk.read(key).body

        # when more is appended, and what was read before cannot be read any more
        append_each(journal, [3])
        disk.write(key, b"x" * len(known) + disk.read(key).body[len(known) :])

        assert decided(reader) == [1, 2, 3]
        # and one that has become smaller is another
        disk.write(key, known)
        assert decided(reader) == [1, 2]

    def test_another_process_reads_what_is_new_from_the_bucket_and_the_rest_from_this_machine(
        self, bucket: ObjectStore, proxy: Proxy, tmp_path: Path
    ) -> None:
        # given two objects that somebody here has read, one of which has grown since
        old, growing = Journal(bucket, "w1"), Journal(bucket, "w2")
        append_each(old, [1, 2])
        append_each(growing, [3])
        folder = tmp_path / "cache"
        assert decided(JournalReader(bucket, ObjectCache("r", folder))) == [1, 2, 3]
        append_each(growing, [4])

        # when
        proxy.reset()
        reader = JournalReader(bucket, ObjectCache("r", folder))

        # then
        assert decided(reader) == [1, 2, 3, 4]
        assert [key for name, key in proxy.calls if name == "s3.GetObject"] == [
            journal_key("b", "w2", 0)
        ]
        # and whoever wants whole records reads only the objects that have them
        proxy.reset()
        (first,) = (each for each in reader.decided(["b"]) if each.index == 2)
        assert reader.records(["b"], [first]) == [a_record(2)]
        assert proxy.counts == {"s3.ListObjectsV2": 1, "s3.GetObject": 1}

        # and what was kept may be broken, or gone
        for path in folder.iterdir():
            path.write_bytes(path.read_bytes()[:-3])
        assert decided(JournalReader(bucket, ObjectCache("r", folder))) == [1, 2, 3, 4]
        shutil.rmtree(folder)
        assert decided(JournalReader(bucket, ObjectCache("r", folder))) == [1, 2, 3, 4]

    def test_an_object_removed_after_it_was_listed_is_passed_over(
        self, disk: ObjectStore, tmp_path: Path
    ) -> None:
        append_each(Journal(disk, "w"), [1])
        listed = list(disk.list(journal_prefix("b")))
        disk.delete(pages(disk))

        class Behind(DirectoryStore):
            def list(self, prefix: str) -> Iterator[ObjectInfo]:
                return iter(listed)

        reader = JournalReader(Behind(tmp_path / "store"))
        assert reader.records(["b"]) == []
        assert decided(reader) == []

    def test_of_many_batches_only_the_last_are_remembered(
        self, bucket: ObjectStore, proxy: Proxy
    ) -> None:
        batches = [f"b{n}" for n in range(40)]
        Journal(bucket, "w").append([a_record(1, batch) for batch in batches])
        reader = JournalReader(bucket)
        proxy.reset()

        # given all at once, all are remembered for the next time
        for _ in range(2):
            assert len(list(reader.decided(batches))) == 40
        assert proxy.count("s3.GetObject") == 40

        # but not for ever
        for batch in reversed(batches):
            assert len(list(reader.decided([batch]))) == 1
        assert 60 <= proxy.count("s3.GetObject") <= 80

    def test_a_batch_without_records_has_none(self, disk: ObjectStore) -> None:
        append_each(Journal(disk, "w"), [1], "bb")

        assert read(disk, "b") == []

    def test_records_of_a_newer_adr_are_refused(self, disk: ObjectStore) -> None:
        line = json.dumps({**a_record(1).to_dict(), "schema": SCHEMA + 1})
        disk.write(journal_key("b", "w", 0), line.encode())

        with pytest.raises(AdrError, match="upgrade adr"):
            read(disk)
        with pytest.raises(AdrError, match=r"the journal .*: .*upgrade adr"):
            decided(JournalReader(disk))
