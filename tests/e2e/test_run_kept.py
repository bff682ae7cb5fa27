"""What adr run must never do: touch files of others, or say "done" of what is not."""

from __future__ import annotations

import fcntl
import os
import sys

import pytest

from adr.decisions import visible
from adr.embedded import run_batch
from adr.errors import UsageError
from adr.joboutput import run_lines
from adr.models import JobRecord, JobState, Outcome
from adr.orders import order_destruction
from adr.queueing import queue_batch
from adr.runner import create_runner, open_runner
from adr.survey import Survey


@pytest.fixture
def inputs(tmp_path):
    """Return two inputs."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text(f"{name}\n")
    return sorted(folder.iterdir())


def run(inputs, to, command="cp {} out", **options):
    from adr import adr

    planned = adr.plan(
        inputs,
        command=command,
        avoid=[to],
        timeout=options.pop("timeout", None),
        attempts=options.pop("attempts", 1),
    )
    return run_batch(planned, to, slots=2, **options)


def test_a_file_of_the_users_own_is_kept_now_and_later(inputs, tmp_path):
    to = tmp_path / "results"
    (to / "a").mkdir(parents=True)
    (to / "a/out").write_text("mine")

    first = run(inputs, to)
    inputs[0].write_text("changed\n")
    second = run(inputs, to)

    assert (first.kept, second.kept) == (1, 1)
    assert (to / "a/out").read_text() == "mine"
    assert (to / "b/out").read_text() == "b\n"


def test_a_result_that_was_edited_is_kept_when_its_job_runs_again(inputs, tmp_path):
    to = tmp_path / "results"
    run(inputs, to)
    (to / "a/out").write_text("edited")
    inputs[0].write_text("changed\n")

    report = run(inputs, to)

    assert report.kept == 1
    assert (to / "a/out").read_text() == "edited"


def test_results_that_cannot_be_put_into_place_hide_no_failed_job(inputs, tmp_path):
    to = tmp_path / "results"
    to.mkdir()
    (to / "a").write_text("a file where a folder is to be")

    report = run(inputs, to, command="cp {} out; test {/.} != b")

    assert [record.label for record in report.failed] == ["b"]
    assert len(report.unpublished) == 1
    (to / "a").unlink()
    again = run(inputs, to, command="cp {} out; test {/.} != b")
    assert (again.skipped, again.unpublished) == (1, ())
    assert (to / "a/out").read_text() == "a\n"


def test_a_job_that_always_kills_its_worker_ends_as_failed(inputs, tmp_path):
    to = tmp_path / "results"
    run(inputs, to, command="true")
    runner = open_runner(str(to / ".adr"), worker="none")
    from adr import adr

    plan = adr.plan(inputs, command="test {/.} = b", avoid=[to])
    batch = queue_batch(runner, plan).batch
    for number in range(5):
        mortal = open_runner(str(to / ".adr"), worker=f"mortal-{number}")
        lease = next(each for each in mortal.ledger.receive(2, 0) if each.job.label == "a")
        mortal.ledger.start([lease])
        # The lock goes as it would with the process.
        fcntl.flock(mortal.ledger._locks._mine[f"mortal-{number}"], fcntl.LOCK_UN)

    report = run(inputs, to, command="test {/.} = b")

    assert [record.reason for record in report.failed] == ["lost its worker 5 times"]
    assert report.succeeded == 1
    assert visible(runner.ledger.records([batch]))[batch, 1].state is JobState.FAILED


def test_jobs_without_an_outcome_are_no_success(inputs, tmp_path):
    to = tmp_path / "results"
    runner = str(to / ".adr")

    report = run(inputs, to, command=f"test {{/.}} = b || {destroyer(runner)}; sleep 20")

    assert (report.undecided, report.cancelled) == (2, 0)
    with pytest.raises(UsageError, match="has been destroyed: remove"):
        run(inputs, to)


def test_what_is_called_off_from_elsewhere_is_counted_and_run_by_the_next(inputs, tmp_path):
    # given a job that has two others called off, one that runs and one that waits
    for name in "cd":
        inputs.append(inputs[0].with_name(f"{name}.txt"))
        inputs[-1].write_text(f"{name}\n")
    to, over = tmp_path / "results", tmp_path / "over"
    call = f"adr.cancel({str(to / '.adr')!r}, ['b', 'c'])"
    command = (
        f"cp {{}} out; test -e {over} && exit; case {{/.}} in "
        f"a) {python(call)}; until test -e {over}; do sleep 0.1; done ;; "
        f"b) trap 'touch {over}; exit' TERM; sleep 60 & wait ;; esac"
    )
    bar = Bar()
    # when
    report = run(inputs, to, command, progress=bar)
    # then it is told from what failed, and from what has no outcome, to the end of the bar
    assert (report.succeeded, report.cancelled, report.undecided) == (2, 2, 0)
    assert (report.failed, report.interrupted, bar.left) == ((), False, 0)
    assert bar.notes["cancelled"] == 2
    assert list(run_lines(report)) == ["jobs: 2 succeeded, 2 cancelled"]
    assert sorted(path.name for path in to.iterdir()) == [".adr", "a", "d"]
    # and the same command runs it
    again = run(inputs, to, command)
    assert (again.succeeded, again.skipped, again.cancelled) == (2, 2, 0)


class Bar:
    """Note how much is left of the last thing that was begun."""

    def __init__(self):
        self.left = 0
        self.notes = {}

    def start(self, what, total, unit, done=0):
        self.left = total - done

    def advance(self, amount=1):
        self.left -= amount

    def note(self, **counts):
        self.notes |= counts

    def finish(self):
        pass


def destroyer(runner):
    """Return a shell command that destroys the runner at a path."""
    return python(f"adr.destroy({runner!r})")


def python(call):
    """Return a shell command that calls adr."""
    return f'{sys.executable} -c "from adr import adr; {call}"'


def test_what_waits_is_not_run_with_an_older_time_limit(inputs, tmp_path):
    to = tmp_path / "results"
    run(inputs, to, command="true")
    from adr import adr

    old = adr.plan(inputs, command="sleep 30; : {}", avoid=[to])
    queue_batch(open_runner(str(to / ".adr")), old)

    report = run(inputs, to, command="sleep 30; : {}", timeout=0.2)

    assert {record.reason for record in report.failed} == {
        "ran longer than its time limit of 0.2 s"
    }


def test_what_was_retried_or_called_off_in_between_is_run(inputs, tmp_path):
    # given a batch that waits, whose first job has failed and was retried by hand
    to = tmp_path / "results"
    run(inputs, to, command="true")
    from adr import adr

    runner = open_runner(str(to / ".adr"), worker="hand")
    plan = adr.plan(inputs, command="cp {} out", avoid=[to])
    batch = queue_batch(runner, plan).batch
    (lease,) = runner.ledger.receive(1, 0)
    failed = JobRecord.of(lease.job, lease.attempt, JobState.FAILED, "by hand")
    runner.ledger.settle([Outcome(lease, failed)])
    (retried,) = adr.retry(runner.id, batch=batch).jobs
    assert (retried.label, retried.generation) == ("a", 1)
    # when
    report = run(inputs, to)
    # then it is gone on with
    assert (report.succeeded, report.skipped, report.failed) == (2, 0, ())
    assert {(to / name / "out").read_text() for name in "ab"} == {"a\n", "b\n"}
    assert len(Survey(runner).manifests()) == 2
    # given one of which a job was called off
    other = queue_batch(runner, adr.plan(inputs, command="cp {} two", avoid=[to])).batch
    adr.cancel(runner.id, [f"{other}/a"])
    # then that is queued anew, and not taken for done
    report = run(inputs, to, command="cp {} two")
    assert (report.succeeded, report.skipped) == (2, 0)
    assert {(to / name / "two").read_text() for name in "ab"} == {"a\n", "b\n"}


def test_a_batch_called_off_while_it_was_queued_is_not_gone_on_with(inputs, tmp_path):
    made = create_runner(local=True, directory=tmp_path / "runner")
    from adr import adr

    plan = adr.plan(inputs, command="true")
    first = queue_batch(made, plan).batch
    made.store.delete([f"_batches/{first}.seal"])
    order_destruction(made.store, first)

    second = queue_batch(made, plan)

    assert not second.resumed
    assert set(Survey(made).manifests()) == {first, second.batch}


def test_a_note_that_was_cut_off_spoils_no_other(inputs, tmp_path):
    to = tmp_path / "results"
    run(inputs, to)
    notes = to / ".adr/published.jsonl"
    notes.write_bytes(notes.read_bytes()[:-7])

    assert run(inputs, to).skipped == 2
    inputs[0].write_text("changed\n")
    inputs[1].write_text("changed\n")
    assert run(inputs, to).kept == 0
    assert {(to / name / "out").read_text() for name in "ab"} == {"changed\n"}


def test_a_folder_in_the_way_of_the_lock_is_said(tmp_path, inputs):
    to = tmp_path / "results"
    os.makedirs(to / ".adr" / "run.lock")

    with pytest.raises(UsageError, match="cannot write results"):
        run(inputs, to)
