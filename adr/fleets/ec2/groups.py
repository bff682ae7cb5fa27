"""The security groups that adr makes for a runner.

There are two: one that nothing gets into, and one for instances that are prepared over SSH,
which lets in SSH from the addresses of those who prepare them. So an ordinary instance never
has an open port because of others. Groups cost nothing and stay until the runner is destroyed.
"""

from __future__ import annotations

import ipaddress
import os
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

from botocore import exceptions as core

from adr.aws import error_code
from adr.clock import tries
from adr.errors import ServiceError, Unavailable
from adr.fleets.ec2.refusals import refusals
from adr.fleets.ec2.requests import tag_list

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

__all__ = ["ensure_group", "find_group", "group_name", "group_request", "let_in", "own_address"]

_ASK = "https://checkip.amazonaws.com"
_ASK_VARIABLE = "ADR_CHECKIP_URL"
_SSH = 22


def group_name(runner_id: str, ssh: bool) -> str:
    """Return the name of a runner's security group."""
    return f"adr-{runner_id}-ssh" if ssh else f"adr-{runner_id}"


def own_address() -> str:
    """Return the public address of this machine, as the internet sees it.

    Asks a service of AWS, or that of the environment variable ``ADR_CHECKIP_URL``.

    Raises
    ------
    Unavailable
        If it does not tell.
    """
    url = os.environ.get(_ASK_VARIABLE) or _ASK
    advice = "give a security group that lets you in with --asg"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read(100).decode("ascii").strip()
        return str(ipaddress.ip_address(text))
    except (OSError, HTTPException) as error:
        why = getattr(error, "reason", None) or error
        raise Unavailable(
            f"cannot ask {url} for the public address of this machine ({why}): {advice}"
        ) from error
    except ValueError as error:
        raise Unavailable(f"{url} tells no address of this machine: {advice}") from error


def find_group(ec2: EC2Client, name: str, vpc: str, region: str) -> str | None:
    """Return the id of a group of that name; None where there is none."""
    with refusals("look for", f"the security group {name}", region):
        answer = ec2.describe_security_groups(
            Filters=[
                {"Name": "group-name", "Values": [name]},
                {"Name": "vpc-id", "Values": [vpc]},
            ]
        )
    return next((group["GroupId"] for group in answer["SecurityGroups"]), None)


def group_request(name: str, vpc: str, tags: Mapping[str, str]) -> dict[str, Any]:
    """Return a CreateSecurityGroup; a new group lets out everything and nothing in."""
    return {
        "GroupName": name,
        "Description": "Workers of an adr runner",
        "VpcId": vpc,
        "TagSpecifications": [{"ResourceType": "security-group", "Tags": tag_list(tags)}],
    }


def ensure_group(
    ec2: EC2Client,
    name: str,
    vpc: str,
    tags: Mapping[str, str],
    region: str,
    address: str | None = None,
) -> str:
    """Return the id of a group, made if need be; idempotent, also side by side.

    Parameters
    ----------
    address : str, optional
        From where SSH is let in; nothing is without.

    Raises
    ------
    ServiceError
        If EC2 refuses.
    """
    group = find_group(ec2, name, vpc, region)
    if group is None:
        with refusals("make", f"the security group {name}", region):
            try:
                group = ec2.create_security_group(**group_request(name, vpc, tags))["GroupId"]
            except core.ClientError as error:
                # Another launch was faster.
                if error_code(error) != "InvalidGroup.Duplicate":
                    raise
                group = find_group(ec2, name, vpc, region)
    if group is None:
        raise ServiceError(f"the security group {name} is not to be seen yet: try again")
    if address is not None:
        _let_in(ec2, group, address, region)
    return group


def let_in(ec2: EC2Client, name: str, region: str) -> None:
    """Let SSH from this machine into the groups of that name, in whichever network they are.

    Where there are none nothing is asked or changed.
    """
    with refusals("look for", f"the security group {name}", region):
        answer = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": [name]}])
    groups = [group["GroupId"] for group in answer["SecurityGroups"]]
    address = own_address() if groups else ""
    for group in groups:
        _let_in(ec2, group, address, region)


def _let_in(ec2: EC2Client, group: str, address: str, region: str) -> None:
    rule: dict[str, Any] = {"IpProtocol": "tcp", "FromPort": _SSH, "ToPort": _SSH}
    if ipaddress.ip_address(address).version == 4:
        rule["IpRanges"] = [{"CidrIp": f"{address}/32", "Description": "adr prepare"}]
    else:
        rule["Ipv6Ranges"] = [{"CidrIpv6": f"{address}/128", "Description": "adr prepare"}]
    with refusals("let SSH into", f"the security group {group}", region):
        for last in tries():
            try:
                ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])  # type: ignore[list-item]
                return
            except core.ClientError as error:
                code = error_code(error)
                # It is let in already.
                if code == "InvalidPermission.Duplicate":
                    return
                # The group was made a moment ago, and is not known everywhere yet.
                if last or code != "InvalidGroup.NotFound":
                    raise
