"""The Python API as it was documented in 2016: the same names, parameters and order."""

from __future__ import annotations

import inspect
import time
import uuid
from inspect import Parameter

import boto3
import pytest

import adr
from adr import adr as core
from adr import config, console
from adr.errors import UsageError
from tests.ec2_rules import UBUNTU

#: Functions of the module adr with their parameters; those after ``/`` may be left out.
ADR = {
    "cache_contents": "path",
    "create": "/ region_name",
    "create_bucket": "s3 runner_id / region_name ACL",
    "create_queue": "sqs runner_id",
    "deregister_workers": "s3 runner_id workers / prefix",
    "destroy": "runner_id / region_name hosts",
    "download": "runner_id path / region_name overwrite",
    "download_batch": "s3 runner_id batch_id path",
    "find_root": "files",
    "get_job": "sqs runner_id / delay retry",
    "get_runners": "/ region_name",
    "get_workers": "runner_id / region_name prefix",
    "isiterable": "lst",
    "iterate_workers": "runner_id / region_name hosts",
    "key_exists": "s3 runner_id key",
    "launch": "runner_id n / region_name **kwargs",
    "launch_workers": "ec2 runner_id / n ami asg akp ait",
    "parse_message": "message",
    "prepare": "runner_id / region_name hosts user password key_filename warn_only timeout "
    "**kwargs",
    "process": "runner_id / workingdir region_name stop_on_empty",
    "process_job": "sqs s3 runner_id / workingdir",
    "queue": "runner_id files / region_name command preprocessing postprocessing store_patterns",
    "queue_job": "sqs runner_id batch_id command / store_patterns preprocessing postprocessing",
    "register_workers": "s3 runner_id workers / prefix",
    "restore_contents": "path",
    "start": "runner_id / region_name hosts",
    "stop": "runner_id / region_name hosts",
    "upload_batch": "s3 runner_id path / exclude_patterns",
    "upload_files": "s3 runner_id batch_id path / include_patterns overwrite",
}
CONFIG = {
    "ask_question": "cfg keys display / masked split",
    "disp_item": "val / masked",
    "get_item": "cfg keys",
    "load_config": "*keys",
    "set_item": "cfg keys val",
    "update_config": "*keys",
    "wizard": "",
    "write_aws_config": "cfg",
    "write_config": "cfg",
}
CONSOLE = [
    "config", "console", "create", "destroy", "download", "launch", "list", "prepare", "process",
    "queue", "set", "start", "stop",
]  # fmt: skip
DEFAULTS = {
    ("create_bucket", "ACL"): "private",
    ("deregister_workers", "prefix"): "_workers/",
    ("get_workers", "prefix"): "_workers/",
    ("register_workers", "prefix"): "_workers/",
    ("get_job", "delay"): 10,
    ("get_job", "retry"): 30,
    ("launch_workers", "n"): 1,
    ("prepare", "warn_only"): False,
    ("prepare", "timeout"): 600,
    ("process", "workingdir"): ".",
    ("process", "stop_on_empty"): False,
    ("process_job", "workingdir"): ".",
    ("download", "overwrite"): False,
    ("upload_files", "overwrite"): False,
    ("upload_batch", "exclude_patterns"): (r"\.log$", r"\.nc$", r"\.pyc$"),
    ("upload_files", "include_patterns"): (r"\.nc$",),
}


def documented_part(function):
    """Return the parameters that can be given by position, written as in the tables above."""
    words = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is Parameter.VAR_POSITIONAL:
            words.append(f"*{parameter.name}")
        elif parameter.kind is Parameter.VAR_KEYWORD:
            words.append(f"**{parameter.name}")
        elif parameter.kind is Parameter.POSITIONAL_OR_KEYWORD:
            if parameter.default is not Parameter.empty and "/" not in words:
                words.append("/")
            words.append(parameter.name)
        else:
            assert parameter.kind is Parameter.KEYWORD_ONLY, parameter
            assert parameter.default is not Parameter.empty, parameter
    return " ".join(words)


@pytest.mark.parametrize("name", ADR)
def test_a_function_of_adr_is_as_documented(name):
    function = getattr(core, name)
    assert documented_part(function) == ADR[name]
    assert getattr(adr, name) is function
    assert name in adr.__all__
    assert inspect.getdoc(function)


@pytest.mark.parametrize("name", CONFIG)
def test_a_function_of_config_is_as_documented(name):
    assert documented_part(getattr(config, name)) == CONFIG[name]
    assert inspect.getdoc(getattr(config, name))


@pytest.mark.parametrize("name", CONSOLE)
def test_a_function_of_console_can_be_called_without_anything(name):
    parameters = inspect.signature(getattr(console, f"adr_{name}")).parameters.values()
    assert all(each.default is not Parameter.empty for each in parameters)


def test_defaults_are_as_documented():
    found = {
        (name, parameter): inspect.signature(getattr(core, name)).parameters[parameter].default
        for name, parameter in DEFAULTS
    }
    assert found == DEFAULTS


def test_what_is_public_is_there():
    assert set(adr.__all__) <= set(dir(adr))
    assert all(getattr(adr, name) is not None for name in adr.__all__)
    with pytest.raises(AttributeError, match="no attribute 'launch_rockets'"):
        _ = adr.launch_rockets


# On boto3 resources


@pytest.fixture
def s3(aws_env):
    return boto3.resource("s3")


@pytest.fixture
def sqs(aws_env):
    return boto3.resource("sqs")


@pytest.fixture
def runner(s3, sqs):
    """Make a runner from its parts."""
    runner_id = str(uuid.uuid4())
    adr.create_bucket(s3, runner_id)
    adr.create_queue(sqs, runner_id)
    return runner_id


@pytest.fixture
def folder(tmp_path):
    """Lay out the input of a batch."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for name in ("case.txt", "sub/table.csv", "old.nc", "old.log"):
        (folder / name).write_text(name)
    return folder


def test_a_runner_made_from_parts_is_one(runner, s3, sqs):
    assert runner in adr.get_runners()
    assert runner in {bucket.name for bucket in s3.buckets.all()}
    assert sqs.get_queue_by_name(QueueName=runner).attributes["VisibilityTimeout"] == "120"
    assert adr.status(runner).totals.jobs == 0


def test_a_batch_is_uploaded_and_downloaded(runner, s3, folder, tmp_path):
    batch = adr.upload_batch(s3, runner, str(folder))

    assert adr.key_exists(s3, runner, f"{batch}.zip")
    assert not adr.key_exists(s3, runner, f"{batch}.zi")
    adr.download_batch(s3, runner, batch, str(tmp_path / "there"))
    top = tmp_path / "there" / batch
    found = {path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file()}
    assert found == {"case.txt", "sub/table.csv"}
    # and what is there is left alone
    (top / "case.txt").write_text("changed")
    adr.download_batch(s3, runner, batch, str(tmp_path / "there"))
    assert (top / "case.txt").read_text() == "changed"


def test_the_patterns_of_a_batch_decide_what_is_left_out(runner, s3, folder, tmp_path):
    batch = adr.upload_batch(s3, runner, str(folder), exclude_patterns=["^sub/"])

    adr.download_batch(s3, runner, batch, str(tmp_path))
    assert {path.name for path in (tmp_path / batch).rglob("*") if path.is_file()} == {
        "case.txt",
        "old.nc",
        "old.log",
    }


def test_results_that_match_are_uploaded_and_not_replaced_unasked(runner, s3, folder):
    def stored():
        return s3.Object(runner, "b/old.nc").get()["Body"].read().decode()

    adr.upload_files(s3, runner, "b", str(folder))
    assert adr.key_exists(s3, runner, "b/old.nc")
    assert not adr.key_exists(s3, runner, "b/case.txt")
    (folder / "old.nc").write_text("newer")
    adr.upload_files(s3, runner, "b", str(folder))
    assert stored() == "old.nc"
    adr.upload_files(s3, runner, "b", str(folder), [r"\.nc$", "^b/sub/"], overwrite=True)
    assert stored() == "newer"
    assert adr.key_exists(s3, runner, "b/sub/table.csv")


def test_workers_are_registered_by_their_addresses(runner, s3):
    adr.register_workers(s3, runner, "10.0.0.1")
    adr.register_workers(s3, runner, ["10.0.0.2", "10.0.0.3"])
    assert adr.get_workers(runner) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]

    adr.deregister_workers(s3, runner, "10.0.0.2")
    adr.deregister_workers(s3, runner, ["10.0.0.1"])

    assert adr.get_workers(runner) == ["10.0.0.3"]


def test_a_job_is_queued_looked_at_and_processed(runner, s3, sqs, folder, tmp_path):
    # given
    batch = adr.upload_batch(s3, runner, str(folder))
    adr.queue_job(sqs, runner, batch, "cp case.txt $MODE.nc", [r"\.nc$"], "MODE=fine", "echo over")
    # when somebody looks at it, it stays in the queue
    job = adr.get_job(sqs, runner, delay=1, retry=1)
    assert (job["batch"], job["command"], job["store"]) == (
        batch,
        "cp case.txt $MODE.nc",
        (r"\.nc$",),
    )
    assert (job["preprocessing"], job["postprocessing"], job["receives"]) == (
        "MODE=fine",
        "echo over",
        1,
    )
    assert adr.get_job(sqs, runner, delay=0, retry=1) is None
    queue = sqs.get_queue_by_name(QueueName=runner)
    entry = {"Id": "1", "ReceiptHandle": job["receipt_handle"], "VisibilityTimeout": 0}
    queue.change_message_visibility_batch(Entries=[entry])
    # then it can still be processed, and has its results and its record
    assert adr.process_job(sqs, s3, runner, str(tmp_path / "work"))
    [view] = adr.status(runner).jobs
    assert (view.state, view.record.results[0].name) == ("succeeded", "fine.nc")
    assert b"".join(adr.logs(runner, "1")) == b"over\n"
    adr.download(runner, tmp_path / "results")
    assert (tmp_path / "results" / batch / "1" / "fine.nc").read_text() == "case.txt"
    # and nothing is left
    began = time.monotonic()
    assert not adr.process_job(sqs, s3, runner, str(tmp_path / "work"))
    assert time.monotonic() - began < 10
    assert list((tmp_path / "work").iterdir()) == []


def test_jobs_queued_one_by_one_are_counted_each(runner, s3, sqs, folder, tmp_path):
    batch = adr.upload_batch(s3, runner, str(folder))
    for code in (0, 3):
        adr.queue_job(sqs, runner, batch, f"exit {code}")

    assert adr.process_job(sqs, s3, runner, str(tmp_path))
    assert adr.process_job(sqs, s3, runner, str(tmp_path))

    totals = adr.status(runner).totals
    assert (totals.jobs, totals.succeeded, totals.failed) == (2, 1, 1)


# On runner ids


def test_the_documented_example_runs(aws_env, folder, tmp_path):
    runner = adr.create(region_name="eu-west-1")
    case = folder / "case.txt"
    batch = adr.queue(runner, [str(case)], "eu-west-1", "cp {} out.nc", None, None, [r"\.nc$"])
    report = adr.process(runner, str(tmp_path), "eu-west-1", True)
    adr.download(runner, str(tmp_path / "results"), "eu-west-1", overwrite=True)

    assert report.succeeded == 1
    assert (tmp_path / "results" / batch / "case" / "out.nc").read_text() == "case.txt"
    adr.destroy(runner, "eu-west-1")
    assert runner not in adr.get_runners("eu-west-1")


def test_workers_are_registered_only_where_they_have_addresses(tmp_path):
    runner = adr.create(local=True, directory=tmp_path / "runner")

    assert adr.launch(runner, 2, slots=1, keep=True) == ["local-1", "local-2"]

    assert adr.get_workers(runner) == []
    assert list(adr.iterate_workers(runner)) == []
    assert [view.name for view in adr.list_hosts(runner)] == ["local-1", "local-2"]
    adr.destroy(runner, hosts=["local-1"])
    [left] = adr.stop(runner)
    assert (left.name, left.state) == ("local-2", "stopped")
    assert adr.start(runner)[0].state == "running"
    adr.destroy(runner, purge=True)
    assert not (tmp_path / "runner").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rockets": 1}, "a launch has no option 'rockets': it has ait, akp, "),
        ({"spot": True}, "--spot means nothing for workers on this machine"),
        ({"slots": 0}, "--slots takes a number from 1 to 1,000, not 0"),
    ],
)
def test_options_of_a_launch_are_checked_as_on_the_command_line(tmp_path, options, sentence):
    runner = adr.create(local=True, directory=tmp_path / "runner")

    with pytest.raises(UsageError, match=sentence):
        adr.launch(runner, 1, **options)
    assert adr.list_hosts(runner) == []


# On instances


@pytest.fixture
def ec2(strict_moto):
    return boto3.resource("ec2")


@pytest.fixture
def key_pair(ec2):
    """Make a key pair that nobody else uses."""
    return ec2.create_key_pair(KeyName=f"key-{uuid.uuid4()}").name


def tags_of(instance):
    return {tag["Key"]: tag["Value"] for tag in instance.tags}


def test_instances_are_launched_and_found_by_their_runner(ec2, key_pair, group):
    runner, other = adr.create(), adr.create()

    addresses = adr.launch_workers(ec2, runner, 2, UBUNTU["amd64"], [group], key_pair, "m5.large")
    adr.launch_workers(ec2, other, ami=UBUNTU["amd64"])

    found = list(adr.iterate_workers(runner))
    assert sorted(each.public_ip_address for each in found) == sorted(addresses)
    for each in found:
        assert each.state["Name"] == "running"
        assert (each.instance_type, each.key_name) == ("m5.large", key_pair)
        assert [each["GroupId"] for each in each.security_groups] == [group]
        assert tags_of(each)["Runner"] == runner
        assert tags_of(each)["Name"] == f"adr-{runner[:7]}"
        assert all(tags_of(volume)["Runner"] == runner for volume in each.volumes.all())
        assert all(volume.encrypted for volume in each.volumes.all())
        assert each.metadata_options["HttpTokens"] == "required"
        ending = each.describe_attribute(Attribute="instanceInitiatedShutdownBehavior")
        assert ending["InstanceInitiatedShutdownBehavior"]["Value"] == "terminate"
    [first] = adr.iterate_workers(runner, hosts=[addresses[0]])
    assert first.public_ip_address == addresses[0]
    for each in (runner, other):
        adr.destroy(each, purge=True)


def test_an_image_has_to_come_from_somewhere(ec2):
    with pytest.raises(UsageError, match="no machine image is given"):
        adr.launch_workers(ec2, str(uuid.uuid4()))


@pytest.fixture
def group(ec2):
    """Return the id of a security group of the default network."""
    [network] = ec2.vpcs.filter(Filters=[{"Name": "is-default", "Values": ["true"]}])
    return next(iter(network.security_groups.all())).id


def test_instances_are_launched_rest_and_end(key_pair, group):
    # given
    runner = adr.create()
    addresses = adr.launch(runner, 2, akp=key_pair, asg=[group], ait="m5.large", prepare=True)
    assert sorted(adr.get_workers(runner)) == sorted(addresses)
    ids = [view.name for view in adr.list_hosts(runner)]
    # when one rests
    adr.stop(runner, hosts=[addresses[0]])
    assert adr.get_workers(runner) == [addresses[1]]
    # and goes on
    [again] = adr.start(runner)
    assert again.state == "running"
    assert sorted(adr.get_workers(runner)) == sorted([addresses[1], again.address])
    # and one is destroyed
    adr.destroy(runner, hosts=[again.name])
    assert [view.name for view in adr.list_hosts(runner)] == [
        each for each in ids if each != again.name
    ]
    assert adr.get_workers(runner) == [addresses[1]]
    assert runner in adr.get_runners()
    # then the rest goes with its runner
    adr.destroy(runner)
    states = {
        each.state["Name"] for each in boto3.resource("ec2").instances.filter(InstanceIds=ids)
    }
    assert states == {"terminated"}
    assert adr.get_workers(runner) == []


def test_instances_are_ended_where_their_queue_is_gone(ec2, key_pair, group):
    runner = adr.create()
    adr.launch(runner, 1, asg=group, akp=key_pair, prepare=True)
    boto3.resource("sqs").get_queue_by_name(QueueName=runner).delete()

    adr.destroy(runner)

    tagged = ec2.instances.filter(Filters=[{"Name": "tag:Runner", "Values": [runner]}])
    assert {each.state["Name"] for each in tagged} == {"terminated"}


def test_the_same_calls_work_on_a_local_runner(folder, tmp_path):
    runner = adr.create(local=True, directory=tmp_path / "runner")
    batch = adr.queue(runner, [folder / "case.txt"], command="cp {} out.nc")
    report = adr.process(runner, tmp_path, stop_on_empty=True)
    adr.download(runner, tmp_path / "results")

    assert report.succeeded == 1
    assert (tmp_path / "results" / batch / "case" / "out.nc").read_text() == "case.txt"
    assert adr.get_workers(runner) == []
    adr.destroy(runner, purge=True)
    assert not (tmp_path / "runner").exists()


def test_a_command_comes_from_the_configuration(folder, tmp_path):
    config.update_config("command", "command", "cp {} out; echo $WHO >> out")
    config.update_config("command", "preprocessing", "WHO=me")

    adr.run([folder / "case.txt"], tmp_path / "results")

    assert (tmp_path / "results" / "case" / "out").read_text() == "case.txtme\n"
