"""What EC2 means by its errors: one sentence, and what to do about it.

A table from codes to sentences, used for whole calls (`refusals`) and for what a fleet of EC2
reports of the instances it could not launch (`reason`). What is not in the table is worded by
`adr.aws.translated`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from botocore import exceptions as core

from adr.aws import error_code, is_uncertain, translated
from adr.errors import AdrError, Denied, ServiceError, Unavailable, UsageError

__all__ = ["is_open", "is_unknown_yet", "no_network", "reason", "refusals"]

_LACK = {
    "InsufficientCapacity",
    "InsufficientHostCapacity",
    "InsufficientInstanceCapacity",
    "UnfulfillableCapacity",
}
_QUOTA = {"InstanceLimitExceeded", "VcpuLimitExceeded"}
_SPOT_QUOTA = {"MaxSpotInstanceCountExceeded", "SpotInstanceCountLimitExceeded"}
_DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"}
_NO_NETWORK = {
    "DefaultVpcDoesNotExist",
    "MissingInput",
    "NoDefaultVpcForUser",
    "VPCIdNotSpecified",
}
_BUSY = {
    "InternalError",
    "InternalFailure",
    "RequestLimitExceeded",
    "ServiceUnavailable",
    "Unavailable",
}
_PROFILE = re.compile(r"instance.?profile", re.I)
_TYPE = re.compile(r"instance.?type", re.I)
_ACTION = re.compile(r"perform:? ([a-z0-9-]+:[A-Za-z]+)")
_ENCODED = re.compile(r"\s*Encoded authorization failure message:.*", re.S)
#: What belongs to which quota, by the letters before the generation of an instance type.
_FAMILIES = (
    (r"(dl)\d", "DL"),
    (r"(inf)\d", "Inf"),
    (r"(trn)\d", "Trn"),
    (r"(g|gr|vt)\d", "G and VT"),
    (r"(p)\d", "P"),
    (r"(f)\d", "F"),
    (r"(x)\d", "X"),
    (r"(u)-?\d", "High Memory"),
)
_STANDARD = "Standard (A, C, D, H, I, M, R, T, Z)"
#: Codes that start with these speak of a value.
_UNKNOWN = (
    ("InvalidAMIID.", "there is no such machine image in {region}", "give another --ami"),
    (
        "InvalidKeyPair.",
        "there is no such key pair in {region}",
        "give another --akp, or none",
    ),
    ("InvalidGroup", "there is no such security group here", "give another --asg, or none"),
    ("InvalidSecurityGroupID.", "there is no such security group here", "give another --asg"),
    ("InvalidSubnetID.", "there is no such subnet in {region}", "give another --subnet, or none"),
    ("InvalidSnapshot", "there is no such snapshot in {region}", "give another in --volume"),
    (
        "InvalidInstanceType",
        "there is no such instance type in {region}",
        "give another --ait; aws ec2 describe-instance-types lists them",
    ),
)
#: Codes of what was made a moment ago and is not known everywhere yet.
_NOT_YET = (
    "InvalidGroup.NotFound",
    "InvalidSecurityGroupID.NotFound",
    "InvalidLaunchTemplateId.NotFound",
    "InvalidLaunchTemplateName.NotFoundException",
)


def reason(
    code: str, said: str, operation: str, region: str, types: tuple[str, ...] = ()
) -> tuple[type[AdrError], str] | None:
    """Return the kind of an error of EC2 and what to say of it; None where that is not known.

    Parameters
    ----------
    code, said : str
        Code and message of the error.
    operation : str
        Name of the call, such as ``RunInstances``.
    region : str
        Where it was refused.
    types : tuple of str, optional
        Instance types that were asked for; the quota depends on them.
    """
    said = _ENCODED.sub("", " ".join(said.split())).rstrip(".")
    if code in _LACK:
        return ServiceError, (
            f"EC2 has not enough of that in {region} now ({code}): try again later, or give more "
            f"instance types to choose from, --ait=c7i.large,m7i.large"
        )
    if code in _QUOTA | _SPOT_QUOTA:
        quota = _quota_name(types, code in _SPOT_QUOTA)
        return ServiceError, (
            f"the quota of this account in {region} is used up ({code}): launch fewer or smaller "
            f"instances, or ask for more of {quota!r} at Service Quotas in the AWS console"
        )
    if code in _DENIED:
        return Denied, _denied(said, operation)
    if code == "AuthFailure.ServiceLinkedRoleCreationNotPermitted":
        return ServiceError, (
            "spot instances need a role of AWS that this account has not yet, and these "
            "credentials lack the permission iam:CreateServiceLinkedRole to make it: ask for it"
        )
    if code in _NO_NETWORK:
        return UsageError, no_network(region)
    if code in _BUSY:
        return Unavailable, f"EC2 is busy ({code}): try again in a few minutes"
    if code == "NoSuchEntity" or (code.startswith("InvalidParameter") and _PROFILE.search(said)):
        return UsageError, f"there is no such instance profile ({said}): give another"
    if code == "Unsupported":
        return UsageError, f"EC2 does not offer that ({said}): give another --ait or --subnet"
    if code == "InvalidParameterValue" and _TYPE.search(said):
        return UsageError, f"{said}: give another --ait or --ami"
    if code == "InsufficientFreeAddressesInSubnet":
        return ServiceError, "the subnet has no addresses left: give another --subnet"
    if code in ("VolumeLimitExceeded", "MaxIOPSLimitExceeded"):
        return ServiceError, (
            f"the quota of this account for storage in {region} is used up ({code}): give a "
            f"smaller --disk, or ask for more of 'Storage for General Purpose SSD (gp3) volumes'"
        )
    for start, what, remedy in _UNKNOWN:
        if code.startswith(start):
            return UsageError, f"{what.format(region=region)}: {remedy}"
    return None


def no_network(region: str) -> str:
    """Say that there is no network where instances could be."""
    return (
        f"there is no default VPC with subnets in {region}: give a subnet with --subnet, or make "
        f"one with aws ec2 create-default-vpc --region {region}"
    )


@contextmanager
def refusals(
    operation: str, subject: str, region: str, types: tuple[str, ...] = ()
) -> Iterator[None]:
    """Turn errors of EC2 within into one sentence; as `adr.aws.translated`, which it extends.

    Raises
    ------
    UsageError
        If EC2 refused a value.
    Unavailable, ServiceError
        If it refused for another reason, or could not be reached.
    """
    with translated(operation, subject):
        try:
            yield
        except core.ClientError as error:
            said = str(error.response.get("Error", {}).get("Message", ""))
            found = reason(error_code(error), said, error.operation_name, region, types)
            if found is None:
                raise
            kind, why = found
            raise kind(f"cannot {operation} {subject}: {why}") from error


def is_open(error: AdrError) -> bool:
    """Tell whether nobody knows what has become of a request that failed with `error`."""
    # EC2 calls a lack of capacity an error of its own.
    return is_uncertain(error) and error_code(error.__cause__) not in _LACK


def is_unknown_yet(code: str, said: str) -> bool:
    """Tell whether an error of a launch says that EC2 does not know what was just made for it."""
    is_profile = code.startswith("InvalidParameter") and _PROFILE.search(said) is not None
    return is_profile or code in _NOT_YET


def _denied(said: str, operation: str) -> str:
    found = _ACTION.search(said)
    if found:
        action = found[1]
    elif operation in ("RunInstances", "CreateFleet"):
        # The message is a riddle that only another permission solves.
        action = f"ec2:{operation}, or iam:PassRole or ec2:CreateTags, which go with it"
    else:
        action = f"ec2:{operation}"
    return (
        f"these credentials lack the permission {action}: ask for the policy in the documentation "
        f"of adr, page EC2, or use others (adr config or AWS_PROFILE)"
    )


def _quota_name(types: tuple[str, ...], spot: bool) -> str:
    family = _STANDARD
    for pattern, name in _FAMILIES:
        if types and re.match(pattern, types[0]):
            family = name
    if spot:
        return f"All {family} Spot Instance Requests"
    return f"Running On-Demand {family} instances"
