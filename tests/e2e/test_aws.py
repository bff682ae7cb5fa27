"""The way step by step: on SQS and S3, and the same on a local runner without boto3."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

import boto3
import pytest

from adr.models import JobRecord, new_id
from adr.runner import open_runner
from adr.worker.loop import Worker
from tests.e2e.conftest import WITHOUT_BOTO

COMMAND = "cat {} wind.csv > {/.}.csv; echo out of {/.}; test {/.} != case07"
CASES = [f"case{number:02}" for number in range(1, 13)]
COUNTS = ["jobs", "queued", "running", "succeeded", "failed", "cancelled", "lost", "unaccounted"]
NONE = dict.fromkeys(COUNTS, 0)


@pytest.fixture
def inputs(shell):
    """Lay twelve cases and what they share into the folder of the shell."""
    shell.write({f"{case}.txt": f"{case}\n" for case in CASES})
    shell.write({"wind.csv": "wind\n", "old.log": "not bundled"})
    return [f"{case}.txt" for case in CASES]


@pytest.fixture(params=["ministack", "moto", "local"])
def place(request, shell):
    """Return the words after ``adr create`` that make a runner in each kind of place."""
    if request.param == "local":
        shell.start = WITHOUT_BOTO
        return ["--local", "--dir=my/runner"]
    request.getfixturevalue("proxy" if request.param == "ministack" else "moto_env")
    shell.inside = True
    return []


@pytest.fixture(params=["ministack", "local"])
def runner(request, shell):
    """Make a runner on ministack and one in a folder, each the current one."""
    if request.param == "ministack":
        request.getfixturevalue("aws_env")
        shell.inside = True
        return shell("create").out.strip()
    shell.start = WITHOUT_BOTO
    return shell("create", "--local").out.strip()


#: For tests of what has no part in where a runner lies.
on_a_local_one = pytest.mark.parametrize("runner", ["local"], indirect=True)


def work_off(runner, jobs, folder):
    """Run so many jobs as ``adr process`` does; it would wait for more on SQS."""
    worker = new_id()
    Worker(open_runner(runner, worker=worker), worker, folder, slots=2, most_jobs=jobs).run()


@pytest.fixture
def batch(shell, runner, tmp_path):
    """Queue a batch of three jobs and run them; returns its id."""
    shell.write({"a.txt": "a", "b.txt": "b", "c.txt": "c"})
    command = "cp {} out.csv; mkdir deep; cp {} deep/{/.}.nc; echo log of {}"
    batch = shell("queue", "--command", command, "a.txt", "b.txt", "c.txt").out.strip()
    work_off(runner, 3, tmp_path)
    return batch


def listed(shell):
    """Return what ``adr list`` says of each runner, by its id."""
    return {each["runner"]: each for each in shell("list", "--json").json["runners"]}


def test_the_way_from_inputs_to_results(place, shell, inputs):
    # A new runner is empty and the current one.
    runner = shell("create", *place).out.strip()
    if place:
        assert runner == str(shell.folder / "my/runner")
        assert os.stat(runner).st_mode & 0o777 == 0o700
    else:
        assert str(uuid.UUID(runner, version=4)) == runner
    assert shell("status").lines == ["no batches"]
    assert f"* {runner}  0 waiting, 0 running" in shell("list").lines

    # Queueing prints the batch, and says what it took.
    queued = shell("queue", "--command", COMMAND, "--store", r"\.csv$", *inputs)
    [batch] = queued.lines
    assert "-work-" in batch
    assert queued.err == (
        f"bundled 13 files, 89 bytes from {shell.folder}; left out 1 file (11 bytes)\n"
    )
    assert shell("status").lines[-1] == "12 jobs wait and no worker runs"
    waiting = shell("status", "--json").json
    assert waiting["totals"] == {**NONE, "jobs": 12, "queued": 12}
    assert f"* {runner}  12 waiting, 0 running" in shell("list").lines

    # Processing ends when every job is decided.
    done = shell("process", "--stop-on-empty", "--slots=2")
    assert done.err == "11 jobs succeeded, 1 failed, 0 cancelled\n"
    assert done.out == ""
    assert sorted(os.listdir(shell.folder)) == sorted(
        [*inputs, "wind.csv", "old.log", *(["my"] if place else [])]
    ), "the worker takes its own folder away"

    # The state as programs read it.
    status = shell("status", "--jobs", "--json").json
    counts = {**NONE, "jobs": 12, "succeeded": 11, "failed": 1}
    jobs = status.pop("jobs")
    assert status == {
        "schema": 1,
        "runner": runner,
        "paused": False,
        "totals": counts,
        "batches": [{"batch": batch, **counts, "sealed": True, "destroyed": False}],
        "workers": [],
    }
    assert list(status) == ["schema", "runner", "paused", "totals", "batches", "workers"]
    assert list(status["totals"]) == COUNTS
    assert [(job["index"], job["label"]) for job in jobs] == list(enumerate(CASES, 1))
    for job in jobs:
        assert set(JobRecord.__dataclass_fields__) <= set(job)
        times = [job[f"{name}_at"] for name in ("leased", "started", "ended", "stored")]
        assert times == sorted(times)
        assert all(len(time) == len("2026-11-20T09:12:00.000Z") for time in times)
        assert (job["state"], job["exit_code"], job["reason"]) == (
            ("failed", 1, "exit code 1") if job["label"] == "case07" else ("succeeded", 0, "")
        )
        [result] = job["results"]
        assert (result["name"], result["size_bytes"]) == (f"{job['label']}.csv", 12)
        assert job["tail"] == f"out of {job['label']}\n"
        assert job["peak_memory_bytes"] > 0
    assert "jobs" not in shell("status", "--json").json
    rows = shell("status", "--jobs").out
    assert f"{batch}/case07  failed" in rows
    assert shell("logs", "case03").out == "out of case03\n"
    assert shell("logs", f"{batch}/case07").out == "out of case07\n"

    # Results, of failed jobs as well, and the second time nothing.
    fetched = shell("download", "here")
    assert fetched.err == "fetched 12 files (144 bytes)\n"
    results = {f"{batch}/{case}/{case}.csv": f"{case}\nwind\n" for case in CASES}
    assert shell.tree("here") == results
    again = shell("download", "here", "--json")
    assert again.err == "fetched 0 files (0 bytes), 12 there already\n"
    assert (again.json["fetched"], again.json["unchanged"], again.json["kept"]) == (0, 12, 0)

    # A destroyed runner keeps its results and what is known about them.
    gone = shell("destroy", "--yes")
    assert gone.err.splitlines() == [
        f"destroyed runner {runner}",
        "there is no current runner now: adr set chooses one",
    ]
    assert f"  {runner}  (results only)" in shell("list").lines
    assert shell("status", "--runner", runner, "--json").json["totals"] == counts
    assert shell("logs", "--runner", runner, "case03").out == "out of case03\n"
    shell("download", "there", runner)
    assert shell.tree("there") == results
    refused = shell("queue", "--command=true", f"--runner={runner}", inputs[0], status=2)
    assert "has been destroyed" in refused.err
    assert "has been destroyed" in shell("process", runner, status=2).err
    shell("destroy", "--yes", runner)

    # Purged, nothing is left of it.
    shell("destroy", "--yes", "--purge", runner)
    assert runner not in listed(shell)
    assert not os.path.exists(runner)
    assert shell("download", "more", runner, status=2).err.startswith("adr: ")
    assert not (shell.folder / "more").exists()


@on_a_local_one
def test_a_local_file_that_differs_is_kept_and_counted(shell, batch):
    shell("download", "d")
    changed = f"{batch}/b/out.csv"
    shell.write({f"d/{changed}": "mine"})
    (shell.folder / f"d/{batch}/c/out.csv").unlink()

    kept = shell("download", "d")

    assert kept.err == (
        "fetched 1 file (1 bytes), 4 there already, 1 there that differ and were kept "
        "(--overwrite replaces them)\n"
    )
    assert shell.read(f"d/{changed}") == "mine"
    assert shell.read(f"d/{batch}/c/out.csv") == "c"
    replaced = shell("download", "d", "--overwrite")
    assert replaced.err == "fetched 1 file (1 bytes), 5 there already\n"
    assert shell.read(f"d/{changed}") == "b"


@on_a_local_one
def test_a_download_takes_what_was_asked_for(shell, batch, runner):
    shell.write({"c.txt": "second"})
    other = shell("queue", "--command", "cp {} two.csv", "c.txt").out.strip()
    work_off(runner, 1, shell.folder)

    def names(*words):
        target = uuid.uuid4().hex
        shell("download", target, *words)
        return set(shell.tree(target))

    assert names(f"--batch={other}") == {f"{other}/c/two.csv"}
    assert names("--job=[ab]") == {
        f"{batch}/{name}" for name in ("a/out.csv", "b/out.csv", "a/deep/a.nc", "b/deep/b.nc")
    }
    assert names(f"--job={batch}/c", "--match=^out") == {f"{batch}/c/out.csv"}
    assert names("--match", r"^deep/.\.nc$", "--flat") == {
        f"{batch}/deep/{name}.nc" for name in "abc"
    }
    assert names("--match", r"two\.csv$") == {f"{other}/c/two.csv"}
    clash = shell("download", "flat", "--flat", status=2)
    assert clash.err == (
        f"adr: several jobs have a result {batch}/out.csv: download without --flat\n"
    )
    assert not (shell.folder / "flat").exists()


@on_a_local_one
def test_the_output_of_a_job_is_found_in_the_newest_batch_that_has_it(shell, batch, runner):
    second = shell("queue", "--command", "echo second {}", "c.txt").out.strip()
    waiting = shell("logs", "c", status=1)
    assert f"{second}/c is queued" in waiting.err
    work_off(runner, 1, shell.folder)

    assert shell("logs", "c").out == "second c.txt\n"
    assert shell("logs", f"{batch}/c").out == "log of c.txt\n"
    assert shell("logs", "2").out == "log of b.txt\n"


def test_of_two_runners_the_current_one_is_used_and_the_other_can_be_set(shell, runner, tmp_path):
    # given a second one, made later
    words = [] if "/" not in runner else ["--local", f"--dir={tmp_path / 'second'}"]
    second = shell("create", *words).out.strip()
    shell.write({"a.txt": "a"})
    # when one job is queued into it by default, and two into the first by the last word
    shell("queue", "--command=true", "a.txt")
    shell("queue", "--command=true", "a.txt", runner)
    queued = shell("queue", "--command=true", "--rerun", "a.txt", runner)
    again = shell("queue", "--command=true", "a.txt", runner)
    # then the same word without --rerun queues nothing, and names the newest batch
    assert again.out == queued.out
    assert again.err.splitlines()[-1] == (
        "1 job is here already (1 waiting): nothing queued; --rerun queues it again"
    )
    found = listed(shell)
    assert (found[runner]["waiting"], found[runner]["current"]) == (2, False)
    assert (found[second]["waiting"], found[second]["current"]) == (1, True)
    assert found[second]["kind"] == ("local" if words else "aws")
    # when
    shell("set", runner)
    assert shell("status", "--json").json["totals"]["queued"] == 2
    assert f"* {runner}  2 waiting, 0 running" in shell("set").lines
    # and the current one is destroyed, then none is current
    shell("destroy", "--yes")
    assert not [each for each in listed(shell).values() if each["current"]]


def test_a_destroyed_batch_is_called_off_and_its_results_are_kept(shell, batch, runner, tmp_path):
    # given a second batch, which waits
    second = shell("queue", "--command=cp {} out", "a.txt", "b.txt").out.strip()
    # when
    assert shell("destroy", "--yes", f"--batch={second}").err == (
        f"destroyed batch {second} of runner {runner}\n"
    )
    # then it will never run, and the first is as it was
    status = shell("status", "--json").json
    assert [each["cancelled"] for each in status["batches"]] == [0, 2]
    assert [each["succeeded"] for each in status["batches"]] == [3, 0]
    work_off(runner, 2, tmp_path)
    status = shell("status", "--json").json
    assert status["totals"] == {**NONE, "jobs": 5, "succeeded": 3, "cancelled": 2}
    # and a destroyed batch keeps its results until it is purged
    shell("destroy", "--yes", f"--batch={batch}")
    shell("download", "d", f"--batch={batch}")
    assert len(shell.tree("d")) == 6
    shell("destroy", "--yes", "--purge", f"--batch={batch}")
    assert [each["batch"] for each in shell("status", "--json").json["batches"]] == [second]
    assert f"there is no batch {batch}" in shell("download", "e", f"--batch={batch}", status=2).err
    keys = [entry.key for entry in open_runner(runner).store.list("")]
    assert [key for key in keys if batch in key and not key.startswith("_control/")] == []


def test_a_status_names_who_works_and_what_runs(shell, runner, wait_for):
    # given a job that runs until it may end, and one that waits
    shell.write({"a.txt": "a", "b.txt": "b"})
    end = shell.folder / "end"
    begun = shell.folder / "begun"
    command = f"echo {{}} > {begun}; until [ -e {end} ]; do sleep 0.05; done"
    shell("queue", "--command", command, "a.txt", "b.txt")
    worker = shell.begin("process", "--slots=1")
    try:
        wait_for(begun.exists)
        # when
        status = wait_for(
            lambda: (
                (found := shell("status", "--json", "--jobs").json)["totals"]["running"] and found
            ),
            every=0.5,
        )
        # then
        assert status["totals"] == {**NONE, "jobs": 2, "running": 1, "queued": 1}
        assert sorted(job["state"] for job in status["jobs"]) == ["queued", "running"]
        [told] = status["workers"]
        assert (told["pid"], told["slots"], len(told["running"])) == (worker.pid, 1, 1)
        assert shell("list", runner).lines[1].split()[-2:] == ["1/1", "0"]
        assert shell("list", runner, "--json").json["workers"][0]["worker"] == told["worker"]
        text = shell("status").out
        assert told["worker"] in text
        assert "no worker runs" not in text
    finally:
        end.touch()
        worker.terminate()
        worker.communicate(timeout=30)
    # and a worker that was ended is gone at once
    assert worker.returncode == 130
    assert shell("status", "--json").json["workers"] == []


def test_a_worker_told_to_stop_gives_its_jobs_back(shell, runner, wait_for, tmp_path):
    shell.write({"a.txt": "a"})
    command = f"echo {{}}; test -e {tmp_path}/again || {{ touch {tmp_path}/began; sleep 60; }}"
    shell("queue", "--command", command, "a.txt")
    worker = shell.begin("process")
    wait_for((tmp_path / "began").exists)

    worker.terminate()
    worker.communicate(timeout=30)

    assert worker.returncode == 130
    totals = shell("status", "--json").json["totals"]
    assert totals == {**NONE, "jobs": 1, "queued": 1}
    (tmp_path / "again").touch()
    work_off(runner, 1, tmp_path)
    assert shell("status", "--json").json["totals"] == {**NONE, "jobs": 1, "succeeded": 1}


# What only AWS has


@pytest.fixture
def on_moto(shell, moto_env):
    """Return a shell before moto."""
    shell.inside = True
    return shell


def test_a_bucket_is_private_and_encrypted_and_forgets_aborted_uploads(on_moto):
    runner = on_moto("create").out.strip()

    s3 = boto3.client("s3")
    block = s3.get_public_access_block(Bucket=runner)["PublicAccessBlockConfiguration"]
    assert set(block.values()) == {True}
    assert len(block) == 4
    encryption = s3.get_bucket_encryption(Bucket=runner)["ServerSideEncryptionConfiguration"]
    [rule] = encryption["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    [rule] = s3.get_bucket_lifecycle_configuration(Bucket=runner)["Rules"]
    assert rule["Status"] == "Enabled"
    assert rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] <= 7
    grants = s3.get_bucket_acl(Bucket=runner)["Grants"]
    assert [grant["Grantee"]["Type"] for grant in grants] == ["CanonicalUser"]


def test_a_queue_keeps_its_jobs_for_fourteen_days_and_has_one_for_broken_messages(on_moto):
    runner = on_moto("create").out.strip()

    sqs = boto3.client("sqs")
    url = sqs.get_queue_url(QueueName=runner)["QueueUrl"]
    found = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert found["MessageRetentionPeriod"] == str(14 * 24 * 3600)
    assert found["VisibilityTimeout"] == "120"
    policy = json.loads(found["RedrivePolicy"])
    assert policy["deadLetterTargetArn"].endswith(f"{runner}-dead")
    assert int(policy["maxReceiveCount"]) == 1000


def test_a_runner_in_us_east_1_is_found_from_another_region(on_moto, tmp_path):
    shell = on_moto
    # given
    runner = shell("create", "--region=us-east-1").out.strip()
    assert boto3.client("s3").get_bucket_location(Bucket=runner)["LocationConstraint"] is None
    assert boto3.client("sqs", region_name="us-east-1").get_queue_url(QueueName=runner)
    # when everything else is done without a word of the region
    assert os.environ["AWS_DEFAULT_REGION"] == "eu-central-1"
    shell.write({"a.txt": "a"})
    shell("queue", "--command=cp {} out", "a.txt")
    assert shell("status", "--json").json["totals"]["queued"] == 1
    work_off(runner, 1, tmp_path)
    shell("download", "d")
    # then
    assert list(shell.tree("d").values()) == ["a"]
    assert runner in shell("list", "--region=us-east-1").out
    shell("destroy", "--yes", "--purge")
    assert runner not in shell("list", "--region=us-east-1").out


def test_a_region_comes_from_the_option_then_the_environment_then_the_configuration(
    on_moto, monkeypatch
):
    def region_of(runner):
        location = boto3.client("s3", "us-east-1").get_bucket_location(Bucket=runner)
        return location["LocationConstraint"]

    def create(*words):
        return region_of(on_moto("create", *words).out.strip())

    settings = {"aws": {"configuration": {"region": "eu-west-3"}}}
    Path(os.environ["ADR_CONFIG"]).write_text(json.dumps(settings))
    assert create("--region=eu-north-1") == "eu-north-1"
    assert create() == "eu-central-1"
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert create() == "eu-west-3"
    Path(os.environ["ADR_CONFIG"]).unlink()
    assert create() == "eu-central-1"


@pytest.mark.parametrize("refused", ["sqs.CreateQueue", "s3.PutPublicAccessBlock"])
def test_a_runner_that_could_not_be_made_whole_is_not_made(shell, proxy, refused):
    made = []
    proxy.after("s3.CreateBucket", made.append)
    proxy.fail(refused, 403, "AccessDenied", message="Not allowed.")

    failed = shell("create", status=1)

    assert failed.out == ""
    assert f"AWS denies {refused.partition('.')[2]} to these credentials" in failed.err
    [bucket] = [call.bucket for call in made]
    buckets = boto3.client("s3").list_buckets()["Buckets"]
    assert bucket not in [each["Name"] for each in buckets]
    assert not os.path.exists(os.environ["ADR_CONFIG"])
