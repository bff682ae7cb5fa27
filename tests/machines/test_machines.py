"""The whole: instances that really boot, install adr by their user data, work, and end.

A machine that is lost gives its job back without a word, which takes two minutes. So it is lost
before the first of these tests, and the last one looks what became of its job.
"""

from __future__ import annotations

from dataclasses import dataclass

import boto3
import pytest

from tests.machines.client import Client, require_installed

pytestmark = pytest.mark.timeout(400)

#: For what waits until machines have booted and installed adr, on a machine that is busy.
SOON_S = 180


@pytest.fixture(scope="module")
def launch(index, all_machines):
    """Return a function that launches machines for a runner; returns their instances."""
    images = all_machines.ec2.describe_images(Owners=["099720109477"])["Images"]
    ami = f"--ami={images[0]['ImageId']}"
    pip_options = f"--pip-options={index.pip_options}"

    def launch(client, runner, *words):
        done = client("launch", ami, "--ait=t3.micro", pip_options, "--json", *words, runner)
        names = [host["name"] for host in done.json["hosts"]]
        all_machines.wait_booted(names)
        return names

    return launch


@dataclass
class Crew:
    """Three machines with one job each: one is lost at once, one interrupted, one stays."""

    client: Client
    runner: str
    #: Instance at work on each case.
    at: dict[str, str]


@pytest.fixture(scope="module", autouse=True)
def crew(all_machines, account, gate, launch, tmp_path_factory):
    require_installed()
    client = Client(tmp_path_factory.mktemp("crew") / "client", account)
    runner = client("create").out.strip()
    cases = ["lost", "stubborn", "kept"]
    client.queue(runner, gate.url, *cases)
    names = launch(client, runner, "-n3", "--spot", "--slots=1")
    gate.wait_came(cases, SOON_S)
    by_address = {all_machines.machines[name].host.address: name for name in names}
    crew = Crew(client, runner, {case: by_address[gate.came[case][0]] for case in cases})

    all_machines.machines[crew.at["lost"]].lose()
    gate.open("lost")

    yield crew
    client("destroy", "--purge", "--yes", runner)


def hosts(client, runner):
    """Return what adr lists of a runner, by the name of the host."""
    return {host["name"]: host for host in client("list", "--json", runner).json["hosts"]}


def jobs(client, runner):
    """Return the jobs of a runner by their cases."""
    return {
        job["label"]: job
        for job in client("status", "--json", "--jobs", f"--runner={runner}").json["jobs"]
    }


def state(instance_id):
    found = boto3.client("ec2").describe_instances(InstanceIds=[instance_id])
    return found["Reservations"][0]["Instances"][0]["State"]["Name"]


def left(runner):
    """Return all there is of a runner, as AWS lists it."""
    ec2, iam = boto3.client("ec2"), boto3.client("iam")
    mine = [{"Name": "tag:Runner", "Values": [runner]}]
    instances = [
        each["InstanceId"]
        for reservation in ec2.describe_instances(Filters=mine)["Reservations"]
        for each in reservation["Instances"]
        if each["State"]["Name"] != "terminated"
    ]
    volumes = [each["VolumeId"] for each in ec2.describe_volumes(Filters=mine)["Volumes"]]
    groups = [
        each["GroupId"] for each in ec2.describe_security_groups(Filters=mine)["SecurityGroups"]
    ]
    templates = ec2.describe_launch_templates(Filters=mine)["LaunchTemplates"]
    roles = [each["RoleName"] for each in iam.list_roles()["Roles"]]
    profiles = iam.list_instance_profiles()["InstanceProfiles"]
    names = [*roles, *(each["InstanceProfileName"] for each in profiles)]
    queues = boto3.client("sqs").list_queues(QueueNamePrefix=runner).get("QueueUrls", [])
    return [*instances, *volumes, *groups, *templates, *queues, *(n for n in names if runner in n)]


def test_the_tour_of_the_readme(client, cloud, gate, launch, wait_for):
    # given a runner with two machines, which run a script of the user first
    client.write({"setup.sh": "#!/bin/sh\nmkdir /opt/model\n"})
    runner = client("create").out.strip()
    ids = launch(client, runner, "-n2", "--setup=setup.sh", "--slots=1")
    machines = [cloud.machines[each] for each in ids]

    # when a batch is queued
    client.queue(runner, gate.url, "one", "two", "three")
    gate.wait_came(["one", "two"], SOON_S)

    # then both work on it, as a user that has no rights on AWS
    assert {gate.came[each][0] for each in ("one", "two")} == {m.host.address for m in machines}
    listed = hosts(client, runner)
    assert set(listed) == set(ids)
    assert {(each["state"], each["market"]) for each in listed.values()} == {
        ("running", "on-demand")
    }
    assert all(each["workers"] for each in listed.values())
    for case in ("one", "two"):
        said = gate.said[case]
        assert said["user"] == "adr-job"
        assert said["aws"] == []
        assert "Permission denied" in said["metadata"]
        assert said["setup"]
    for name in ids:
        asked = [path for path, status in cloud.asked(name) if status == 200]
        assert any("/iam/security-credentials/adr-" in path for path in asked)

    # and it ends, and they end themselves
    gate.open("one", "two", "three")
    for machine in machines:
        machine.wait_off(SOON_S)
    client("download", f"--runner={runner}", "results")
    results = client.tree("results")
    assert sorted(results.values()) == ["ONE", "THREE", "TWO"]
    wait_for(lambda: {state(each) for each in ids} == {"terminated"})

    # and nothing is left
    assert left(runner)
    client("destroy", "--yes", runner)
    assert left(runner) == []


def test_a_machine_that_cannot_be_set_up_says_why_and_ends(client, cloud, launch):
    client.write({"setup.sh": "#!/bin/sh\necho there is no licence for the model >&2\nexit 3\n"})
    runner = client("create").out.strip()
    [name] = launch(client, runner, "-n1", "--setup=setup.sh")

    cloud.machines[name].wait_off(SOON_S)

    assert "setup failed" in client("list", runner).out
    log = client("logs", f"--runner={runner}", f"--worker={name}").out
    assert "there is no licence for the model" in log
    assert "the setup script failed with status 3" in log
    client("destroy", "--purge", "--yes", runner)


def test_a_worker_goes_on_after_stop_and_start_and_a_silent_one_is_ended(
    client, cloud, gate, launch, wait_for
):
    # given a machine at work
    runner = client("create").out.strip()
    client.queue(runner, gate.url, "slow")
    [name] = launch(client, runner, "-n1")
    machine = cloud.machines[name]
    gate.wait_came(["slow"], SOON_S)

    # when it is stopped and started, then its worker takes its job again by itself
    client("stop", runner)
    assert state(name) == "stopped"
    assert hosts(client, runner)[name]["state"] == "stopped"
    printed = client("start", runner).lines
    wait_for(lambda: len(gate.came["slow"]) == 2, SOON_S)
    assert printed == [machine.host.public_ip]

    # when the worker hangs, then the machine ends, though the job would go on
    machine.run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", "adr-worker.service")
    timer = "/run/systemd/system/adr-deadman.timer.d"
    often = r"mkdir -p $0 && printf '[Timer]\nOnUnitInactiveSec=2\n' >$0/often.conf"
    machine.run("sh", "-c", often, timer)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "adr-deadman.timer")
    # As the last step: from now on the machine may end at any moment.
    machine.run("sed", "-i", "s/^SILENCE_S=.*/SILENCE_S=1/", "/usr/local/lib/adr/values")
    machine.wait_off(SOON_S)
    wait_for(lambda: state(name) == "terminated")
    gate.open("slow")
    client("destroy", "--purge", "--yes", runner)


def test_the_job_of_an_interrupted_machine_goes_on_elsewhere(crew, cloud, gate, wait_for):
    case = "stubborn"
    machine = cloud.machines[crew.at[case]]
    survivor = cloud.machines[crew.at["kept"]]

    # when EC2 announces that it takes a machine away, then that is listed
    cloud.interrupt(machine.name, seconds=50)
    listed = lambda: hosts(crew.client, crew.runner)[machine.name]  # noqa: E731
    wait_for(lambda: "interrupted by EC2" in listed()["note"], 30)

    # and the machine has ended before
    machine.wait_off(60)
    assert not machine.was_lost

    # and its job goes on elsewhere, and tells of it
    gate.open("kept")
    wait_for(lambda: len(gate.came[case]) == 2, SOON_S)
    assert gate.came[case][1] == survivor.host.address
    gate.open(case)
    wait_for(lambda: jobs(crew.client, crew.runner)[case]["state"] == "succeeded", SOON_S)
    [note] = jobs(crew.client, crew.runner)[case]["notes"]
    assert "interrupted" in note
    assert machine.name in note


def test_the_job_of_a_lost_machine_has_run_elsewhere(crew, cloud, gate, wait_for):
    survivor = cloud.machines[crew.at["kept"]]
    gate.open("kept", "stubborn")
    survivor.wait_off(SOON_S)

    assert {job["state"] for job in jobs(crew.client, crew.runner).values()} == {"succeeded"}
    assert gate.came["lost"] == [
        cloud.machines[crew.at["lost"]].host.address,
        survivor.host.address,
    ], survivor.said()
    crew.client("download", f"--runner={crew.runner}", "results")
    assert sorted(crew.client.tree("results").values()) == ["KEPT", "LOST", "STUBBORN"]
