"""Instances that were launched by adr and whose runner is gone: they cost money for nothing.

There are none unless somebody removed a queue by hand, or `adr destroy` was cut off: instances
end themselves. Since nobody knows where they would be, all regions are asked.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adr.aws import client, session, translated
from adr.errors import AdrError, RunnerGone
from adr.fleets.base import Host, HostState
from adr.fleets.ec2.instances import as_host, find, tags_of
from adr.fleets.ec2.refusals import refusals

if TYPE_CHECKING:
    import boto3

__all__ = ["Orphan", "orphans"]

_AT_ONCE = 16
#: Regions that cannot be reached are no reason to wait for long.
_ATTEMPTS = 2


@dataclass(frozen=True)
class Orphan:
    """Describe an instance without a runner."""

    host: Host
    region: str
    #: The runner that it was launched for.
    runner_id: str
    #: Who has launched it.
    owner: str


def orphans(source: boto3.Session | None = None) -> tuple[list[Orphan], list[str]]:
    """Return the instances without a runner of all regions, and notes on regions that failed.

    Parameters
    ----------
    source : boto3.Session, optional
        Whose account is searched; by default that of the credentials at hand.

    Raises
    ------
    ServiceError
        If the regions cannot be listed.
    """
    source = source or session()
    region = source.region_name
    with refusals("list", "the regions", region):
        answer = client(source, "ec2").describe_regions()
    regions = sorted(each["RegionName"] for each in answer["Regions"])
    making = threading.Lock()

    def service(name: str, place: str) -> Any:
        # Clients are not to be made by several threads at once.
        with making:
            return client(source, name, place, attempts=_ATTEMPTS)

    def look(place: str) -> tuple[list[Orphan], list[str]]:
        try:
            ec2 = service("ec2", place)
            found = find(ec2, place, tag_key=["Runner"])
            ours = [each for each in found if _is_ours(each)]
            known: dict[str, bool] = {}
            if ours:
                sqs = service("sqs", place)
                for runner_id in {tags_of(each)["Runner"] for each in ours}:
                    known[runner_id] = _exists(sqs, runner_id)
            return [_orphan(each, place) for each in ours if not known[tags_of(each)["Runner"]]], []
        except AdrError as error:
            return [], [f"{place} is left out: {error}"]

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        parts = list(pool.map(look, regions))
    return [each for found, _ in parts for each in found], [
        note for _, notes in parts for note in notes
    ]


def _is_ours(instance: Mapping[str, Any]) -> bool:
    return {"Runner", "Version"} <= tags_of(instance).keys() and (
        as_host(instance, "ec2").state is not HostState.ENDED
    )


def _exists(sqs: Any, runner_id: str) -> bool:
    try:
        with translated("find", f"the queue of runner {runner_id}"):
            sqs.get_queue_url(QueueName=runner_id)
    except RunnerGone:
        return False
    return True


def _orphan(instance: Mapping[str, Any], region: str) -> Orphan:
    tags = tags_of(instance)
    return Orphan(as_host(instance, "ec2"), region, tags["Runner"], tags.get("Owner", ""))
