"""Give moto's instances a body: each is a machine that boots with its user data.

The machines and the test reach everything by the same addresses: moto, ministack and the
package index on the bridge, the metadata service at its own address, and each machine by its
public IP address.
"""

from __future__ import annotations

import base64
import re
import shutil
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from datetime import timezone
from pathlib import Path
from typing import Any

import boto3

from tests.machines.machine import Machine
from tests.machines.metadata import Credentials, InstanceData, MetadataService
from tests.network import Network

_LOOK_EVERY_S = 0.2
#: A system that has not shut down by itself is switched off.
_PATIENCE_S = 20.0
#: Requests after which a new instance knows its role.
_UNKNOWN_ROLE = 1
_UP = {"pending", "running"}
_PLENTY_BYTES = 6 << 30


class Cloud:
    """Boot, stop, start and end machines as moto's EC2 is told to; a context manager.

    A machine that shuts itself down is terminated, or stopped, in moto as its launch asked
    for. One that is lost is terminated.

    Parameters
    ----------
    network : Network
        Where the machines are.
    metadata : MetadataService
        What tells them who they are.
    tree : Path
        Their root tree.
    consoles : Path
        Folder for the output of their consoles, which is kept.
    endpoint : str
        Address of moto.
    region : str
        The only region that is looked at.
    environment : mapping
        Variables of all services of the machines.
    """

    def __init__(
        self,
        network: Network,
        metadata: MetadataService,
        tree: Path,
        consoles: Path,
        endpoint: str,
        region: str,
        environment: Mapping[str, str],
    ) -> None:
        #: Every machine there was, by the id of its instance, in the order of launch.
        self.machines: dict[str, Machine] = {}
        self._network = network
        self._metadata = metadata
        self._tree = tree
        self._consoles = consoles
        self._environment = environment
        self._region = region
        # Named after the network, so that what a killed run has left is found.
        self._disks = _place() / f"adr-machines-{network.number}"
        shutil.rmtree(self._disks, ignore_errors=True)
        self._pressed: dict[str, float] = {}
        self._seen: set[str] = set()
        self._asleep: set[str] = set()
        self._losing: list[tuple[float, str]] = []
        self._end = threading.Event()
        self._changed = threading.Condition()
        # One thread for all of their lives: they end with the thread that boots them.
        self._thread = threading.Thread(target=self._watch)
        self._trouble: list[str] = []
        session = boto3.Session("test", "test", region_name=region)
        self.ec2, self._iam, self._sts = (
            session.client(name, endpoint_url=endpoint) for name in ("ec2", "iam", "sts")
        )

    def __enter__(self) -> Cloud:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()
        for machine in self.machines.values():
            machine.lose()
        shutil.rmtree(self._disks, ignore_errors=True)
        assert not self._trouble, self._trouble

    def wait_booted(self, names: Sequence[str]) -> None:
        """Wait until the machines of these instances are switched on."""
        with self._changed:
            booted = self._changed.wait_for(lambda: set(names) <= set(self.machines), 30)
        assert booted, f"of {names} only {list(self.machines)} are there: {self._trouble}"

    def asked(self, instance_id: str) -> list[tuple[str, int]]:
        """Return what an instance has asked the metadata service for."""
        return self._metadata.instances[self.machines[instance_id].host.address].asked

    def interrupt(self, instance_id: str, seconds: float) -> None:
        """Announce to a spot instance that it is interrupted in so many seconds, and do so."""
        self._metadata.announce(self.machines[instance_id].host.address, seconds=seconds)
        self._losing.append((time.monotonic() + seconds, instance_id))

    def _watch(self) -> None:
        while not self._end.wait(_LOOK_EVERY_S):
            try:
                for instance, profile in self._instances():
                    self._follow(instance, profile)
                self._lose_the_interrupted()
            except Exception:
                self._trouble.append(traceback.format_exc())
                return

    def _instances(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Yield all instances, each with the name of its profile."""
        for page in self.ec2.get_paginator("describe_instances").paginate():
            for reservation in page["Reservations"]:
                found = reservation["Instances"]
                # Of several that were launched at once moto tells it of the first alone.
                arns = {each.get("IamInstanceProfile", {}).get("Arn", "") for each in found}
                profile = max(arns).rpartition("/")[2]
                yield from ((each, profile) for each in found)

    def _follow(self, instance: dict[str, Any], profile: str) -> None:
        """Do with the machine what has happened to its instance, or the other way round."""
        name = instance["InstanceId"]
        wanted = instance["State"]["Name"] in _UP
        machine = self.machines.get(name)
        if machine is None:
            # At first sight moto may not have told all of it.
            if wanted and name not in self._seen:
                self._seen.add(name)
            elif wanted:
                machine = self._install(instance, profile)
                machine.boot()
                with self._changed:
                    self.machines[name] = machine
                    self._changed.notify_all()
        elif machine.is_on:
            if not wanted:
                self._switch_off(machine)
        elif wanted and name in self._asleep:
            self._asleep.discard(name)
            self._network.set_public_ip(machine.host, instance.get("PublicIpAddress"))
            machine.boot()
        elif wanted:
            self._has_ended(name)
        elif name not in self._asleep:
            self._asleep.add(name)
            self._pressed.pop(name, None)
            self._network.set_public_ip(machine.host, None)
            if instance["State"]["Name"] == "terminated":
                shutil.rmtree(self._disks / name)

    def _install(self, instance: dict[str, Any], profile: str) -> Machine:
        name = instance["InstanceId"]
        found = self.ec2.describe_instance_attribute(InstanceId=name, Attribute="userData")
        user_data = base64.b64decode(found["UserData"].get("Value", ""))
        host = self._network.host(name, public_ip=instance.get("PublicIpAddress"))
        self._metadata.instances[host.address] = InstanceData(
            instance_id=name,
            region=self._region,
            type=instance["InstanceType"],
            public_ip=host.public_ip,
            user_data=user_data,
            profile=profile or None,
            role=self._role(profile)["RoleName"] if profile else None,
            lend=lambda: self._lend(profile),
            unknown=_UNKNOWN_ROLE,
        )
        console = self._consoles / f"{name}.log"
        disk = self._disks / name
        return Machine(self._tree, disk, console, host, user_data, self._environment)

    def _role(self, profile: str) -> dict[str, Any]:
        found = self._iam.get_instance_profile(InstanceProfileName=profile)
        role: dict[str, Any] = found["InstanceProfile"]["Roles"][0]
        return role

    def _lend(self, profile: str) -> Credentials:
        arn = self._role(profile)["Arn"]
        keys = self._sts.assume_role(RoleArn=arn, RoleSessionName="instance")["Credentials"]
        return Credentials(
            keys["AccessKeyId"],
            keys["SecretAccessKey"],
            keys["SessionToken"],
            keys["Expiration"].astimezone(timezone.utc),
        )

    def _switch_off(self, machine: Machine) -> None:
        pressed_at = self._pressed.get(machine.name)
        if pressed_at is None:
            self._pressed[machine.name] = time.monotonic()
            machine.press_power()
        elif time.monotonic() > pressed_at + _PATIENCE_S:
            machine.lose()

    def _has_ended(self, name: str) -> None:
        attribute = "instanceInitiatedShutdownBehavior"
        found = self.ec2.describe_instance_attribute(InstanceId=name, Attribute=attribute)
        lost = self.machines[name].was_lost
        if lost or found["InstanceInitiatedShutdownBehavior"]["Value"] == "terminate":
            self.ec2.terminate_instances(InstanceIds=[name])
        else:
            self.ec2.stop_instances(InstanceIds=[name])

    def _lose_the_interrupted(self) -> None:
        due = [each for each in self._losing if each[0] < time.monotonic()]
        for each in due:
            self._losing.remove(each)
            self.machines[each[1]].lose()


def _place() -> Path:
    """Return where disks are best: in memory, where there is plenty, since they are thrown away."""
    memory = Path("/dev/shm")
    available = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
    free = min(int(available[1]) * 1024 if available else 0, shutil.disk_usage(memory).free)
    return memory if free > _PLENTY_BYTES else Path("/var/tmp")
