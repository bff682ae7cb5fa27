"""What is sent and stored survives the way, and every reader sees the same outcome."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adr.decisions import Decision, visible
from adr.errors import AdrError
from adr.jobtext import job_text
from adr.models import (
    SCHEMA,
    Depth,
    Job,
    JobRecord,
    JobState,
    Lease,
    Outcome,
    ResultFile,
    check_schema,
    new_id,
)
from adr.times import moment_text, parse_time, time_text
from adr.workerinfo import SlotInfo, WorkerInfo

#: Text as `os.fsdecode` gives it: any bytes that are no UTF-8 are lone surrogates.
texts = st.binary(max_size=20).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
maybe_texts = st.none() | texts
batches = st.from_regex(r"[^/\0._\ud800-\udfff][^/\0\ud800-\udfff]{0,40}", fullmatch=True)
#: Times are kept to the millisecond.
times = st.integers(0, 4_000_000_000_000).map(lambda ms: ms / 1000)
decided = st.sampled_from([JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED])

jobs = st.builds(
    Job,
    batch=batches,
    index=st.integers(1),
    count=st.integers(1),
    label=texts,
    command=texts,
    input=maybe_texts,
    preprocessing=maybe_texts,
    postprocessing=maybe_texts,
    store=st.lists(texts).map(tuple),
    env=st.dictionaries(texts, texts).map(lambda env: tuple(sorted(env.items()))),
    timeout_s=st.none() | st.floats(0.001, 1e6),
    attempts=st.integers(1, 9),
    generation=st.integers(0, 9),
    fingerprint=maybe_texts,
)
results = st.builds(
    ResultFile, texts, st.integers(0), st.text("0123456789abcdef"), st.integers(0, 0o777)
)
records = st.builds(
    JobRecord,
    batch=texts,
    index=st.integers(1),
    label=texts,
    generation=st.integers(0),
    attempt=texts,
    state=decided,
    exit_code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 64),
    reason=texts,
    leased_at=st.none() | times,
    started_at=st.none() | times,
    ended_at=st.none() | times,
    stored_at=st.none() | times,
    host=texts,
    worker=texts,
    slot=st.integers(0),
    peak_memory_bytes=st.integers(0),
    cpu_s=st.floats(0, 1e9),
    results=st.lists(results, max_size=3).map(tuple),
    tail=texts,
    log=maybe_texts,
    late=st.booleans(),
    notes=st.lists(texts, max_size=3).map(tuple),
)
workers = st.builds(
    WorkerInfo,
    texts,
    texts,
    st.integers(1),
    st.integers(1),
    times,
    texts,
    st.integers(0),
    st.lists(
        st.builds(SlotInfo, texts, st.integers(1), st.integers(0), texts, times), max_size=3
    ).map(tuple),
    texts,
    st.booleans(),
)

#: Records of few jobs, so that they compete; an attempt is late or not, and ends in one way.
rivals = st.lists(
    st.builds(
        JobRecord,
        batch=st.sampled_from("ab"),
        index=st.integers(1, 2),
        label=st.just(""),
        generation=st.integers(0, 2),
        attempt=st.integers(0, 10**6).map(str),
        state=decided,
        late=st.booleans(),
    ),
    max_size=12,
    unique_by=lambda record: record.attempt,
)


def through_json(data: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(data)
    assert text.isascii()
    return json.loads(text)  # type: ignore[no-any-return]


class TestRoundTrips:
    @given(jobs)
    def test_a_job(self, job: Job) -> None:
        assert Job.from_dict(through_json(job.to_dict())) == job
        assert json.loads(job_text(job)) == through_json(job.to_dict())

    @given(records)
    def test_a_record(self, record: JobRecord) -> None:
        assert JobRecord.from_dict(through_json(record.to_dict())) == record

    @given(workers)
    def test_a_worker(self, worker: WorkerInfo) -> None:
        assert WorkerInfo.from_dict(through_json(worker.to_dict())) == worker

    @given(times)
    def test_a_time(self, moment: float) -> None:
        assert parse_time(time_text(moment)) == moment

    def test_what_older_workers_wrote_has_no_notes(self) -> None:
        record = JobRecord("b", 1, "x", 0, "a", JobState.FAILED)
        worker = WorkerInfo("w", "h", 1, 1, 0.0, "1")
        data = {key: value for key, value in record.to_dict().items() if key != "notes"}
        beat = {k: value for k, value in worker.to_dict().items() if k not in ("note", "left")}

        assert JobRecord.from_dict(through_json(data)) == record
        assert WorkerInfo.from_dict(through_json(beat)) == worker

    def test_a_moment_for_people_is_in_utc(self) -> None:
        assert moment_text(1_795_165_920.987) == "2026-11-20T09:12:00Z"

    def test_a_time_is_text_in_utc_with_milliseconds(self) -> None:
        assert time_text(1_795_165_920.123) == "2026-11-20T09:12:00.123Z"
        assert time_text(0) == "1970-01-01T00:00:00.000Z"
        assert time_text(None) is None
        assert parse_time(None) is None

    def test_a_job_message_leaves_out_what_is_not_said(self) -> None:
        assert Job("b", 1, 2, "x", "run").to_dict() == {
            "schema": SCHEMA,
            "batch": "b",
            "index": 1,
            "count": 2,
            "label": "x",
            "command": "run",
        }

    def test_a_record_says_everything_and_its_state_in_words(self) -> None:
        record = JobRecord("b", 1, "x", 0, "a", JobState.FAILED, ended_at=0.5)

        data = record.to_dict()

        assert data["state"] == "failed"
        assert data["ended_at"] == "1970-01-01T00:00:00.500Z"
        assert data["stored_at"] is None
        assert data["results"] == ()
        assert set(data) == {"schema", *JobRecord.__dataclass_fields__}

    def test_variables_have_no_order(self) -> None:
        data = {**Job("b", 1, 1, "x", "run").to_dict(), "env": {"B": "2", "A": "1"}}

        assert Job.from_dict(data).env == (("A", "1"), ("B", "2"))


class TestSchemas:
    @pytest.mark.parametrize(
        ("kind", "whole"),
        [
            (Job, Job("b", 1, 1, "x", "run").to_dict()),
            (JobRecord, JobRecord("b", 1, "x", 0, "a", JobState.FAILED).to_dict()),
            (WorkerInfo, WorkerInfo("w", "h", 1, 1, 0.0, "1").to_dict()),
        ],
    )
    def test_a_newer_one_is_refused_and_what_is_unknown_ignored(
        self, kind: Any, whole: dict[str, Any]
    ) -> None:
        with pytest.raises(AdrError, match=rf"schema {SCHEMA + 1}.*upgrade adr"):
            kind.from_dict({**whole, "schema": SCHEMA + 1})

        assert kind.from_dict({**whole, "colour": "red"}) == kind.from_dict(whole)

    @pytest.mark.parametrize(
        "data", [{}, {"schema": "1"}, {"schema": None}, [1], "text", None, 7], ids=repr
    )
    def test_what_has_none_is_not_ours(self, data: object) -> None:
        with pytest.raises(AdrError, match="the thing is not adr's"):
            check_schema(data, "the thing")

    def test_ours_is_taken(self) -> None:
        check_schema({"schema": SCHEMA}, "the thing")


def rule(records: list[JobRecord]) -> JobRecord:
    """Choose among the records of one job, as the documentation has it, step by step."""
    newest = max(record.generation for record in records)
    left = [record for record in records if record.generation == newest]
    left = [record for record in left if not record.late] or left
    for state in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED):
        if of_state := [record for record in left if record.state is state]:
            return min(of_state, key=lambda record: record.attempt)
    raise AssertionError("a record has one of these states")


def decision(record: JobRecord) -> Decision:
    return Decision.read(*record.id, record.attempt, record.state.value, record.late)


class TestVisible:
    @given(rivals)
    def test_it_is_the_rule_for_each_job(self, records: list[JobRecord]) -> None:
        by_job: dict[tuple[str, int], list[JobRecord]] = {}
        for record in records:
            by_job.setdefault((record.batch, record.index), []).append(record)

        expected = {place: rule(each) for place, each in by_job.items()}
        assert visible(records) == expected
        # and the same for what is read of records where nothing else of them is wanted
        assert visible(map(decision, records)) == {
            place: decision(record) for place, record in expected.items()
        }

    @given(rivals, st.randoms(use_true_random=False))
    def test_the_order_and_duplicates_do_not_matter(
        self, records: list[JobRecord], chance: random.Random
    ) -> None:
        shuffled = records + [record for record in records if chance.random() < 0.5]
        chance.shuffle(shuffled)

        assert visible(shuffled) == visible(records)

    @given(rivals)
    def test_choosing_among_the_chosen_changes_nothing(self, records: list[JobRecord]) -> None:
        chosen = visible(records)

        assert visible(chosen.values()) == chosen

    @given(rivals, rivals)
    def test_parts_may_be_chosen_from_first(
        self, some: list[JobRecord], others: list[JobRecord]
    ) -> None:
        known = {record.attempt for record in some}
        others = [record for record in others if record.attempt not in known]

        assert visible([*visible(some).values(), *others]) == visible([*some, *others])

    def test_clocks_take_no_part(self) -> None:
        record = JobRecord("b", 1, "x", 0, "1", JobState.SUCCEEDED, ended_at=9.0)
        later = replace(record, attempt="2", ended_at=1.0)

        assert visible([later, record]) == {("b", 1): record}


class TestNouns:
    def test_a_job_is_named_by_batch_and_label_and_told_by_its_generation(self) -> None:
        job = Job("b", 7, 9, "deep/case", "run", generation=2)

        assert (job.id, job.name) == (("b", 7, 2), "b/deep/case")
        assert JobRecord("b", 7, "x", 2, "a", JobState.FAILED).id == job.id

    def test_a_late_outcome_is_the_same_but_for_that(self) -> None:
        lease = Lease(Job("b", 1, 1, "x", "run"), "a", "h", 0.0, 1.0)
        outcome = Outcome(lease, JobRecord("b", 1, "x", 0, "a", JobState.FAILED))

        late = outcome.marked_late()

        assert late.record.late
        assert not outcome.record.late
        assert replace(late, record=replace(late.record, late=False)) == outcome

    def test_ids_are_16_digits_and_never_the_same(self) -> None:
        ids = {new_id() for _ in range(1000)}

        assert len(ids) == 1000
        assert all(len(each) == 16 and int(each, 16) >= 0 for each in ids)

    @pytest.mark.parametrize("counts", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
    def test_a_queue_is_empty_when_nothing_is_in_it_in_any_way(
        self, counts: tuple[int, int, int]
    ) -> None:
        assert not Depth(*counts, exact=True).empty
        assert Depth(0, 0, 0, exact=True).empty

    def test_a_state_reads_as_its_word(self) -> None:
        assert f"{JobState.SUCCEEDED}" == "succeeded"
