"""The documented helpers about instances of EC2 and the addresses that are registered of them.

They are for those who build something of their own on instances, mostly through resources of
boto3; `adr launch` works through `adr.launching`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from adr import inventory
from adr.errors import UsageError
from adr.fleets.specs import Ec2Spec
from adr.inventory import HostView
from adr.keys import WORKERS
from adr.launchoptions import launch_spec
from adr.models import new_id
from adr.runner import open_runner
from adr.version import __version__

__all__ = [
    "deregister_workers",
    "get_workers",
    "isiterable",
    "iterate_workers",
    "launch_workers",
    "register_workers",
]

#: Smallest root volume of instances that are launched here.
_LEAST_DISK_GIB = 20


def register_workers(
    s3: Any, runner_id: str, workers: str | Sequence[str], prefix: str = WORKERS
) -> None:
    """Register workers.

    A worker is registered by creating an empty file object with a prefix `prefix` and name
    equal to the public IP address of the worker in the Amazon S3 Bucket.

    Parameters
    ----------
    s3 : boto3 resource
        Boto3 S3 resource object in specified region
    runner_id : str
        Runner ID
    workers : str or list
        String or list of strings with public IP addresses of workers to be registered
    prefix : str, optional
        Prefix for generated keys

    See Also
    --------
    deregister_workers
    """
    inventory.register(open_runner(runner_id, s3=s3).store, _each(workers), prefix)


def deregister_workers(
    s3: Any, runner_id: str, workers: str | Sequence[str], prefix: str = WORKERS
) -> None:
    """Deregister workers.

    A worker is deregistered by deleting the empty file object with a prefix `prefix` and name
    equal to the public IP address of the worker in the Amazon S3 Bucket.

    Parameters
    ----------
    s3 : boto3 resource
        Boto3 S3 resource object in specified region
    runner_id : str
        Runner ID
    workers : str or list
        String or list of strings with public IP addresses of workers to be deregistered
    prefix : str, optional
        Prefix for generated keys

    See Also
    --------
    register_workers
    """
    inventory.deregister(open_runner(runner_id, s3=s3).store, _each(workers), prefix)


def launch_workers(
    ec2: Any,
    runner_id: str,
    n: int = 1,
    ami: str | None = None,
    asg: Sequence[str] = (),
    akp: str | None = None,
    ait: str | None = None,
) -> list[str]:
    """Launch Amazon workers, tag them and wait for them to be online.

    These are bare instances: `prepare` installs adr on them, and they do not end by themselves;
    who shuts one down ends it. Their root volume is encrypted.
    `launch` launches instances that do both.

    Parameters
    ----------
    ec2 : boto3 resource
        Boto3 EC2 resource object in specified region
    runner_id : str
        Runner ID
    n : int, optional
        Number of instances to launch [default: 1]
    ami : str, optional
        Amazon Machine Image [default: from the configuration]
    asg : list, optional
        List of strings with Amazon Security Groups [default: from the configuration, then
        that of the default VPC]
    akp : str, optional
        Name of Amazon Key Pair [default: from the configuration, then none]
    ait : str, optional
        Amazon Instance Type [default: from the configuration, then c7i.large]

    Returns
    -------
    list
        List with public IP addresses of workers

    See Also
    --------
    launch, register_workers

    Raises
    ------
    UsageError
        If there is no machine image.
    ServiceError
        If EC2 refuses.
    """
    from adr.fleets.ec2.images import find_images
    from adr.fleets.ec2.instances import LOGINS, PREPARE
    from adr.fleets.ec2.refusals import refusals
    from adr.fleets.ec2.requests import Order, Pool, run_instances

    spec = launch_spec("ec2", n, {"ami": ami, "asg": asg, "akp": akp, "ait": ait})
    assert isinstance(spec, Ec2Spec)
    if spec.ami is None:
        raise UsageError("no machine image is given: name one as ami, or with adr config")
    tags = {
        "Name": f"adr-{runner_id[:7]}",
        "Runner": runner_id,
        "Version": __version__,
        PREPARE: LOGINS["ubuntu"],
    }
    client = ec2.meta.client
    region = client.meta.region_name
    image = find_images(client, [spec.ami], region)[spec.ami]
    order = Order(
        n=n,
        pools=(Pool(spec.types[0], spec.ami),),
        root_device=image.root_device,
        disk_gib=max(image.size_gib, _LEAST_DISK_GIB),
        groups=spec.groups,
        key_pair=spec.key_pair,
        tags=tags,
    )
    request = run_instances(order, new_id(), n)
    with refusals("launch", f"{n} instances of {spec.types[0]}", region, spec.types):
        instances = ec2.create_instances(**request)
        for instance in instances:
            instance.wait_until_running()
            instance.reload()
    return [instance.public_ip_address for instance in instances if instance.public_ip_address]


def iterate_workers(
    runner_id: str, region_name: str | None = None, hosts: Sequence[str] | None = None
) -> Iterator[Any]:
    """Iterate over Amazon EC2 instances associated with a given runner.

    Parameters
    ----------
    runner_id : str
        Runner ID
    region_name : str
        Amazon region identifier
    hosts : list
        List of specific hosts to iterate, by id or address

    Returns
    -------
    iterator
        Boto3 EC2 instance objects associated with given runner; none of a local one
    """
    runner = open_runner(runner_id, region_name)
    if "ec2" not in runner.fleets:
        return
    from adr.aws import Connection

    views = [HostView(host) for host in runner.fleets["ec2"]().hosts()]
    connection = Connection(runner_id, region_name)
    for view in views if hosts is None else inventory.choose(views, hosts):
        # Only with it is the region of the runner certain.
        _ = connection.queue_url
        yield connection.instance(view.name)


def get_workers(runner_id: str, region_name: str | None = None, prefix: str = WORKERS) -> list[str]:
    """Get list of public IP addresses of workers for specific runner.

    Parameters
    ----------
    runner_id : str
        Runner ID
    region_name : str, optional
        Amazon region identifier
    prefix : str, optional
        Prefix used for registration of workers

    Returns
    -------
    list
        List of public IP addresses

    See Also
    --------
    get_runners, register_workers, deregister_workers
    """
    return inventory.addresses(open_runner(runner_id, region_name).store, prefix)


def isiterable(lst: object) -> bool:
    """Check if input is iterable; a string is one thing, not many.

    Parameters
    ----------
    lst : any
        What to look at
    """
    return hasattr(lst, "__iter__") and not isinstance(lst, (str, bytes))


def _each(workers: str | Sequence[str]) -> Sequence[str]:
    return workers if isiterable(workers) else [workers]  # type: ignore[list-item]
