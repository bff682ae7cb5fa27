"""Bundles, names and documents from a store that others may write to: refused in one sentence.

Nothing is written outside its place, nothing inflates beyond what it declared, and whatever is
broken, foreign or gigantic is named to whoever reads it. What `tests/unit` shows of bundles
(``test_bundle.py``) and downloads (``test_transfer.py``) is not repeated here.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import stat
import struct
import tempfile
import time
import uuid
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from adr.bundle import restore_member, unpack_bundle, unpacked_bytes, write_bundle
from adr.entries import EXTRA
from adr.errors import AdrError, PartialFailure, UsageError
from adr.keys import (
    BATCHES,
    JOURNAL,
    LIVE,
    bundle_key,
    card_key,
    manifest_key,
    result_key,
    unaccounted_key,
)
from adr.ledgers.aws import AwsLedger
from adr.ledgers.sqs import MessageQueue
from adr.manifest import manifest_bytes, read_manifest
from adr.members import choose
from adr.models import Job, JobRecord, JobState, Outcome, ResultFile
from adr.orders import CONTROL
from adr.publish import Publisher
from adr.roster import Roster
from adr.runner import open_runner
from adr.stores.directory import DirectoryStore
from adr.stores.s3 import S3Store
from adr.transfer import Fetch, fetch
from adr.workerinfo import WorkerInfo
from tests.contract.jobs import BATCH, a_job, outcome_of
from tests.e2e.conftest import Shell, shell
from tests.faults.small_aws import small_aws
from tests.unit.test_bundle import largest_file
from tests.unit.workers import Site

__all__ = ["shell"]

FILE, LINK, FOLDER = stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777, stat.S_IFDIR | 0o755
NESTED = b"[" * 100_000


def archive(
    path: Path, *entries: tuple[str, int, bytes], method: int = zipfile.ZIP_DEFLATED
) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        for name, mode, content in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = method
            made.writestr(info, content)
    return path


def patched(path: Path, *entries: tuple[str, int, bytes], **places: Any) -> Path:
    """Change the last entry of the table of contents, and nothing else."""
    body = bytearray(archive(path, *entries).read_bytes())
    start = body.rindex(b"PK\x01\x02")
    offsets = {"flags": (8, "<H"), "method": (10, "<H"), "size": (24, "<I"), "start": (42, "<I")}
    for name, value in places.items():
        offset, form = offsets[name]
        struct.pack_into(form, body, start + offset, value)
    path.write_bytes(body)
    return path


def with_extra(path: Path, extra: bytes, size: int = 1) -> Path:
    """Make a zip of one entry with an extra field that zipfile would not write."""
    with zipfile.ZipFile(path, "w") as made:
        info = zipfile.ZipInfo("a")
        info.extra = struct.pack("<HH", 0x7FFF, len(extra) - 4) + bytes(len(extra) - 4)
        made.writestr(info, b"x")
    body = bytearray(path.read_bytes())
    start = body.rindex(b"PK\x01\x02")
    body[start + 47 : start + 47 + len(extra)] = extra
    struct.pack_into("<I", body, start + 24, size)
    path.write_bytes(body)
    return path


def renamed(path: Path, old: bytes, new: bytes, flags: int = 0) -> Path:
    patched(path, (old.decode(), FILE, b"content"), flags=flags)
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


def with_table_of(path: Path, size_bytes: int) -> Path:
    """Make a file, with a hole, that says that its table of contents is so large."""
    with path.open("wb") as file:
        file.truncate(size_bytes)
        file.seek(size_bytes)
        file.write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, size_bytes, 0, 0))
    return path


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "encrypted": (lambda p: patched(p, ("a", FILE, b"x"), flags=1), r"'a' is encrypted"),
    "bzip2, which inflates in memory": (
        lambda p: archive(p, ("a", FILE, b"x"), method=zipfile.ZIP_BZIP2),
        "compressed by method 12",
    ),
    "lzma": (
        lambda p: archive(p, ("a", FILE, b"x"), method=zipfile.ZIP_LZMA),
        "compressed by method 14",
    ),
    "an unknown method": (
        lambda p: patched(p, ("a", FILE, b"x"), method=99),
        "compressed by method 99",
    ),
    "one file that declares too much among honest ones": (
        lambda p: patched(p, ("big", FILE, os.urandom(9000)), ("a", FILE, b"x"), size=900_000),
        r"'a' declares 900,000 bytes, more than",
    ),
    "files that share bytes": (
        lambda p: patched(p, ("a", FILE, b"0" * 9000), ("a", FILE, b"0" * 9000), start=0),
        "share the same bytes",
    ),
    "a zero byte in a name": (lambda p: renamed(p, b"abcd", b"ab\0d"), "unsafe name"),
    "a name that is no UTF-8 but says so": (
        lambda p: renamed(p, b"abcd", b"ab\xff\xfe", flags=0x800),
        "is broken: 'utf-8'",
    ),
    "a name longer than any": (lambda p: archive(p, ("x" * 60_000, FILE, b"")), "too long or deep"),
    "folders deeper than any": (
        lambda p: archive(p, ("d/" * 1900 + "x", FILE, b"")),
        "too long or deep",
    ),
    "a name that is a file and a folder": (
        lambda p: archive(p, ("a", FILE, b"x"), ("a/", FOLDER, b"")),
        "holds 'a' twice",
    ),
    "a file below a link": (
        lambda p: archive(p, ("l", LINK, b"/tmp"), ("l/x", FILE, b"")),
        "'l/x' lies under something that is no folder",
    ),
    "a link with a zero byte": (lambda p: archive(p, ("l", LINK, b"a\0b")), "'l' has no target"),
    "a chain of links": (
        lambda p: archive(p, *((f"l{n}", LINK, b"l%d" % (n + 1)) for n in range(1500))),
        "chain of its links is too long",
    ),
    "a socket": (lambda p: archive(p, ("s", stat.S_IFSOCK, b"")), "device or socket, 's'"),
    "a character device": (lambda p: archive(p, ("c", stat.S_IFCHR, b"")), "device or socket"),
    "an extra field that ends early": (
        lambda p: with_extra(p, struct.pack("<HHq", 0x7FFE, 9, 0)),
        "extra fields ends early",
    ),
    "an extra field with our time that ends early": (
        lambda p: with_extra(p, struct.pack("<HHq", EXTRA, 12, 0)),
        "extra fields ends early",
    ),
    "an extra field with its size that ends early": (
        lambda p: with_extra(p, struct.pack("<HHq", 1, 16, 1), size=0xFFFFFFFF),
        "extra fields ends early",
    ),
    "a table of contents that fills the memory": (
        lambda p: with_table_of(p, 300 << 20),
        "table of contents is larger",
    ),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_bundles_are_refused_whole_in_one_sentence(tmp_path: Path) -> None:
    for kind, (make, reason) in HOSTILE.items():
        path = make(tmp_path / "bundle.zip")
        with suppress(AdrError):
            unpacked_bytes(path)
        with pytest.raises(AdrError) as refused:
            unpack_bundle(path, tmp_path / "out")
        said = str(refused.value)
        assert f"the bundle {path} is broken: " in said, kind
        assert reason in said, (kind, said)
        assert said.isprintable(), kind
        assert len(said) < 500, kind
        with pytest.raises(AdrError):
            restore_member(path, "a", tmp_path / "out")
        assert [each.name for each in tmp_path.iterdir()] == ["bundle.zip"], kind


def test_no_more_is_inflated_than_was_declared(tmp_path: Path) -> None:
    # given a file that says it is small, on a disk that takes no large one
    path = patched(tmp_path / "b.zip", ("a", FILE, b"\0" * (32 << 20)), size=1000)

    with largest_file(100_000), pytest.raises(AdrError, match="is broken"):
        unpack_bundle(path, tmp_path / "out")

    assert [each.name for each in tmp_path.iterdir()] == ["b.zip"]


def test_odd_names_that_a_disk_can_hold_are_none_of_it(tmp_path: Path) -> None:
    names = ["..\\up", "C:\\x", "a", "A", "new\nline", "-rf", "caf\u00e9"]
    path = archive(tmp_path / "b.zip", *((name, FILE, name.encode()) for name in names))

    unpack_bundle(path, tmp_path / "out")

    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == sorted(names)
    assert all((tmp_path / "out" / name).read_text() == name for name in names)


def test_more_files_than_a_bundle_may_hold_are_refused_on_both_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for number in range(6):
        (root / str(number)).touch()
    members = choose(str(root), ()).files
    write_bundle(root, members, tmp_path / "b.zip", compress=True)
    for module in ("bundle", "entries"):
        monkeypatch.setattr(f"adr.{module}.MOST_ENTRIES", 5)

    with pytest.raises(UsageError, match=r"there are 6 files and folders in .*--exclude"):
        write_bundle(root, members, tmp_path / "c.zip", compress=True)
    with pytest.raises(AdrError, match="holds 6 files and folders, and may hold 5"):
        unpack_bundle(tmp_path / "b.zip", tmp_path / "out")

    assert sorted(each.name for each in tmp_path.iterdir()) == ["b.zip", "root"]


def test_whatever_was_changed_in_a_bundle_is_refused_or_stays_inside(
    seed: int, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_bytes(os.urandom(50))
    (root / "sub/b.txt").write_text("b" * 500)
    (root / "link").symlink_to("sub/b.txt")
    choice = choose(str(root), ())
    write_bundle(root, choice.folders + choice.files, tmp_path / "good.zip", compress=True)
    good = (tmp_path / "good.zip").read_bytes()
    places = st.integers(0, len(good) - 1)

    @_seeded(seed, examples=250)
    @given(st.lists(st.tuples(places, st.integers(0, 255)), max_size=4), st.none() | places)
    def spoil(changes: list[tuple[int, int]], cut: int | None) -> None:
        body = bytearray(good)
        for place, value in changes:
            body[place] = value
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            path, out = Path(folder, "b.zip"), Path(folder, "in/out")
            out.parent.mkdir()
            path.write_bytes(body[:cut])
            try:
                unpack_bundle(path, out)
                restore_member(path, "a.txt", out)
            except AdrError:
                shutil.rmtree(out, ignore_errors=True)
            else:
                assert sum(f.lstat().st_size for f in out.rglob("*")) < 1032 * len(good)
            assert {each.name for each in Path(folder).iterdir()} == {"b.zip", "in"}
            assert {each.name for each in out.parent.iterdir()} <= {"out"}

    spoil()


def _seeded(number: int, examples: int) -> Callable[[Any], Any]:
    chosen = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    return lambda test: seed(number)(chosen(test))


def test_a_worker_fails_the_jobs_of_hostile_bundles_and_runs_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # given batches whose inputs were replaced in the store, and a disk with room for 90 MB
    site = Site(tmp_path)
    store = open_runner(site.runner).store
    big = tmp_path / "big.zip"
    with big.open("wb") as file:
        file.truncate(40 << 20)
    wanted = {
        archive(tmp_path / "up.zip", ("../../../up", FILE, b"x")): "unsafe name, '../../../up'",
        archive(tmp_path / "out.zip", ("l", LINK, b"../../../..")): "link 'l' leads out",
        archive(tmp_path / "bomb.zip", ("b", FILE, b"\0" * (50 << 20))): "unpacking batch",
        big: "fetching the inputs",
        patched(tmp_path / "locked.zip", ("s", FILE, b"x"), flags=1): "'s' is encrypted",
    }
    for path in wanted:
        store.upload(path, bundle_key(site.queue("touch was-run")))
        path.unlink()
    good = site.queue("touch was-run")
    usage = shutil.disk_usage(tmp_path)._replace(free=90 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    before = sorted(tmp_path.iterdir())

    # when a worker works on them
    report = site.worker(slots=1, stop_on_empty=True).run()

    # then the records of these jobs say why, and the other one has run
    assert (report.failed, report.succeeded) == (len(wanted), 1)
    views = site.survey.status().jobs
    reasons = [view.record.reason for view in views if view.record and view.job.batch != good]
    for reason in wanted.values():
        [said] = [each for each in reasons if reason in each]
        assert said.isprintable()
    assert not any(record.exc_info for record in caplog.records)
    assert sorted(tmp_path.iterdir()) == before
    assert list(site.workingdir.iterdir()) == []


class TestNamesOfResults:
    def stored(self, store: DirectoryStore, name: str, content: bytes = b"content") -> Fetch:
        key = f"objects-of/{uuid.uuid4().hex}"
        store.write(key, content)
        return Fetch(key, name, len(content), hashlib.sha256(content).hexdigest(), 0o644)

    def test_never_lead_to_files_of_adr_itself(self, tmp_path: Path) -> None:
        # given the output folder of an `adr run`, and another download into it
        store = DirectoryStore(tmp_path / "store")
        store.create()
        target = tmp_path / "target"
        (target / ".adr").mkdir(parents=True)
        names = [".adr/objects/_control/destroyed", ".ADR/x", ".adr", ".adr-download-1/lock"]
        items = [self.stored(store, name) for name in [*names, "case/.adr/x", "A", "a"]]

        with pytest.raises(PartialFailure, match="adr's own files") as raised:
            fetch(store, items, target)

        assert set(raised.value.failed) == set(names)
        found = {str(each.relative_to(target)) for each in target.rglob("*") if each.is_file()}
        assert found == {"case/.adr/x", "A", "a"}

    def test_do_not_let_anything_be_removed_beyond_a_link(self, tmp_path: Path) -> None:
        # given a published result, whose folder somebody has replaced by a link
        store = DirectoryStore(tmp_path / "store")
        store.create()
        folder, elsewhere = tmp_path / "to", tmp_path / "elsewhere"
        folder.mkdir()
        publisher = Publisher(store, folder, tmp_path / "published.jsonl")
        job = a_job()

        def record(attempt: str, *names: str) -> JobRecord:
            digest = hashlib.sha256(b"content").hexdigest()
            for name in names:
                store.write(result_key(job.batch, job.index, attempt, name), b"content")
            results = tuple(ResultFile(name, 7, digest) for name in names)
            return JobRecord.of(job, attempt, JobState.SUCCEEDED, results=results)

        first = record("a" * 16, "sub/x", "deep/er/y", "z")
        assert publisher.publish([(job, "case", first)]) == []
        (folder / "case/sub").rename(elsewhere)
        (folder / "case/sub").symlink_to(elsewhere)

        # when a later attempt, with other results, is published
        assert publisher.publish([(job, "case", record("b" * 16, "z"))]) == []

        assert (elsewhere / "x").read_bytes() == b"content"
        assert sorted(each.name for each in (folder / "case").iterdir()) == ["sub", "z"]

    def test_of_a_hostile_record_write_nothing_outside_the_target(
        self, shell: Shell, tmp_path: Path
    ) -> None:
        # given a job whose record names results as it likes, and a target with a link out of it
        shell.inside = True
        shell.write({"in/case.txt": "1"})
        shell("create", "--local", f"--dir={tmp_path / 'runner'}")
        batch = shell("queue", "in/case.txt", "--command=true").out.strip()
        runner = open_runner(str(tmp_path / "runner"), worker="w")
        [lease] = runner.ledger.receive(1, 0)
        digest = hashlib.sha256(b"content").hexdigest()
        names = ["../../up", "/etc/adr-was-here", "good", "out/x", "file/x", "a\0b"]
        results = tuple(ResultFile(name, 7, digest) for name in names)
        for name in ("../../up", "good", "out/x", "file/x", "a\0b"):
            runner.store.write(result_key(batch, 1, lease.attempt, name), b"content")
        record = JobRecord.of(lease.job, lease.attempt, JobState.SUCCEEDED, results=results)
        runner.ledger.settle([Outcome(lease, record)])
        top = tmp_path / "work/target" / batch / "case"
        top.mkdir(parents=True)
        (top / "file").write_text("mine")
        (tmp_path / "elsewhere").mkdir()
        (top / "out").symlink_to(tmp_path / "elsewhere")

        done = shell("download", "target", status=1)

        assert "5 of 6 files could not be downloaded" in done.err
        assert (top / "file").read_text() == "mine"
        assert (top / "good").read_bytes() == b"content"
        assert list((tmp_path / "elsewhere").iterdir()) == []
        assert not Path("/etc/adr-was-here").exists()
        assert {each.name for each in tmp_path.iterdir()} == {"work", "runner", "elsewhere"}


TEXT = st.text(max_size=5) | st.just("\ud800")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


def test_documents_of_any_shape_are_read_or_refused_in_one_sentence(seed: int) -> None:
    job = a_job()
    record = JobRecord.of(
        job, "a" * 16, JobState.SUCCEEDED, results=(ResultFile("x", 1, "0"),), leased_at=1.0
    )
    worker = WorkerInfo("w", "host", 1, 1, 1.0, "1")
    kinds: list[tuple[Any, dict[str, Any]]] = [
        (Job, {**job.to_dict(), "env": {"A": "b"}, "store": ["x"]}),
        (JobRecord, json.loads(json.dumps(record.to_dict()))),
        (WorkerInfo, worker.to_dict()),
    ]

    @_seeded(seed, examples=400)
    @given(st.sampled_from(kinds), st.data())
    def read(kind: tuple[Any, dict[str, Any]], data: st.DataObject) -> None:
        made, good = kind
        name = data.draw(st.sampled_from(sorted(good)))
        try:
            found = made.from_dict({**good, name: data.draw(JSON)})
        except AdrError:
            return
        # Then it can be used as any other.
        json.dumps(found.to_dict())
        if isinstance(found, JobRecord):
            assert all(result_key(BATCH, found.index, "a", each.name) for each in found.results)
            found.tail.encode("utf-8", "surrogateescape")

    read()


def test_a_manifest_inflates_no_further_than_it_makes_sense() -> None:
    # given a manifest that would be gigabytes
    about: dict[str, Any] = {"root": "r", "created": 1.0, "bundle_bytes": 1, "unpacked_bytes": 1}
    key, body = manifest_key(BATCH), manifest_bytes([a_job()], **about)
    for hostile, reason in (
        (gzip.compress(b" " * (40 << 20), 1), "a line is longer than"),
        (body[:-12], "cut off"),
        (gzip.compress(NESTED), "recursion"),
        (manifest_bytes([a_job(), Job("other", 2, 2, "x", "run")], **about), "another batch"),
        (manifest_bytes([Job("other", 1, 1, "x", "run")], **about), "batch 'other'"),
        (manifest_bytes([Job("../../x", 1, 1, "x", "run")], **about), "name of none"),
    ):
        with pytest.raises(AdrError, match=reason) as raised:
            list(read_manifest(hostile, key).jobs())
        assert len(str(raised.value)) < 400


def test_commands_say_what_in_the_store_is_broken(shell: Shell, tmp_path: Path) -> None:
    # given a runner with a job that is done
    shell.inside = True
    shell.write({"in/case.txt": "1"})
    runner = tmp_path / "runner"
    shell("create", "--local", f"--dir={runner}")
    batch = shell("queue", "in/case.txt", "--command=cp {} out.txt").out.strip()
    shell("process", "--stop-on-empty", "--slots=1")
    store = open_runner(str(runner)).store
    newer, foreign = b'{"schema": 99}', b'{"name": "something else"}'
    heartbeat, order = f"{LIVE}{'0' * 16}.json", f"{CONTROL}cancel/{'0' * 16}.json"
    others = manifest_key("20200101-0000-x-000000")

    # when somebody puts this and that into its store
    for key, bodies in {
        heartbeat: [b"", b"\xff", b"[]", NESTED, newer, foreign],
        unaccounted_key(batch): [b"", b"[]", b'{"since": 1}', b'{"since": {"1": "x"}}', NESTED],
        order: [b"", NESTED, newer, b'{"schema": 1, "batches": [1]}'],
        others: [b"", NESTED, gzip.compress(newer), gzip.compress(foreign)],
        f"{BATCHES}{batch}~x.jsonl.gz": [b"", gzip.compress(b"[]")],
    }.items():
        for body in bodies:
            store.write(key, body)

            # then commands do without it, or name it
            done = [shell(*words, status=None) for words in (["status"], ["download", "target"])]

            for each in done:
                assert each.status in (0, 1), each.err
                assert "internal error" not in each.err, (key, body[:50], each.err)
                assert each.status == 0 or len(each.err.splitlines()) <= 2
            if key == heartbeat:
                assert done[0].status == 0
                assert f"passed over a worker: {heartbeat}" in done[0].err
        store.delete([key])

    # and also what would fill the memory
    (runner / "objects" / heartbeat).parent.mkdir(parents=True, exist_ok=True)
    with (runner / "objects" / heartbeat).open("wb") as file:
        file.truncate(1 << 40)
    assert "1,099,511,627,776 bytes, far more than" in shell("status", status=1).err


def test_what_is_broken_on_aws_costs_no_other_job(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # given a queue with jobs, and with messages that are none
    connection, aws = small_aws(monkeypatch, time.time, ceiling_s=43200)
    ledger = AwsLedger(
        MessageQueue(connection), store := S3Store(connection), Roster(store), "w", visibility_s=60
    )
    job = a_job(9).to_dict()
    for hostile in ({**job, "batch": "../../x"}, {**job, "index": "1"}, {**job, "schema": 99}, []):
        aws.put(json.dumps(hostile))
    aws.put("plain text")
    aws.put(NESTED.decode())
    # and a card, and a part of the journal, that somebody else has written
    aws.objects[card_key(BATCH, 1)] = b'{"schema": 1, "generation": "new"}', time.time()
    ledger.send([a_job(1), a_job(2), a_job(3)], again=True)

    # when a worker leases, runs and settles
    leases = ledger.receive(10, 0)
    begun = ledger.start(leases)
    aws.objects[card_key(BATCH, 2)] = NESTED, time.time()
    kept = ledger.extend(begun)
    ledger.settle([outcome_of(lease, worker="w") for lease in kept])

    # then all is done but what cannot be read, which is named and left
    assert [lease.job.index for lease in begun] == [2, 3]
    assert sorted(record.index for record in ledger.records([BATCH])) == [2, 3]
    assert len(aws.left()) == 7
    assert caplog.text.count("left a message that is not a job in the queue") == 6
    assert "left 20261120-0912-waves-18165f/case1 in the queue: the card of" in caplog.text
    aws.objects[f"{JOURNAL}{BATCH}/other-0.jsonl"] = b'{"schema": 1}\n{', time.time()
    with pytest.raises(AdrError, match=f"the journal {JOURNAL}{BATCH}/other-0.jsonl"):
        ledger.records([BATCH])
    ledger.send([a_job(4)], again=True)
    assert ledger.receive(10, 0) == []
    assert not any(record.exc_info for record in caplog.records)
