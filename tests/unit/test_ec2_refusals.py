"""Every error that EC2 is known to give becomes one sentence that says what to do."""

import pytest
from botocore.exceptions import ClientError

from adr.errors import ServiceError, Unavailable, UsageError
from adr.fleets.ec2.refusals import is_unknown_yet, reason, refusals


def refused(code, said="", operation="RunInstances", types=("c7i.large",), status=400):
    answer = {
        "Error": {"Code": code, "Message": said},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    with (
        pytest.raises(Exception) as caught,  # noqa: PT011
        refusals("launch", "2 instances", "eu-central-1", types),
    ):
        raise ClientError(answer, operation)
    return caught.value


@pytest.mark.parametrize(
    ("code", "said", "kind", "words"),
    [
        ("InsufficientInstanceCapacity", "none", ServiceError, "not enough of that in eu-central"),
        ("UnfulfillableCapacity", "none", ServiceError, "more instance types to choose from"),
        ("VcpuLimitExceeded", "limit", ServiceError, "Running On-Demand Standard"),
        ("InstanceLimitExceeded", "limit", ServiceError, "Service Quotas"),
        (
            "MaxSpotInstanceCountExceeded",
            "",
            ServiceError,
            "All Standard .* Spot Instance",
        ),
        ("InvalidInstanceType", "", UsageError, "no such instance type in eu-central-1"),
        ("InvalidParameterValue", "Invalid value 'x' for InstanceType.", UsageError, "--ait"),
        (
            "InvalidParameterValue",
            "The architecture 'arm64' of the specified instance type does not match",
            UsageError,
            "'arm64' .* --ait or --ami",
        ),
        ("Unsupported", "not supported in your requested zone", UsageError, "--ait or --subnet"),
        ("InvalidAMIID.NotFound", "", UsageError, "no such machine image .* --ami"),
        ("InvalidAMIID.Malformed", "", UsageError, "no such machine image .* --ami"),
        ("InvalidKeyPair.NotFound", "", UsageError, "no such key pair .* --akp"),
        ("InvalidGroup.NotFound", "", UsageError, "no such security group .* --asg"),
        ("InvalidGroupId.Malformed", "", UsageError, "no such security group .* --asg"),
        ("InvalidSubnetID.NotFound", "", UsageError, "no such subnet .* --subnet"),
        ("InvalidSnapshot.NotFound", "", UsageError, "no such snapshot .* --volume"),
        ("VPCIdNotSpecified", "", UsageError, "no default VPC .* create-default-vpc"),
        ("MissingInput", "", UsageError, "no default VPC"),
        ("RequestLimitExceeded", "", Unavailable, "EC2 is busy .* try again"),
        ("VolumeLimitExceeded", "", ServiceError, "quota .* for storage"),
        ("InsufficientFreeAddressesInSubnet", "", ServiceError, "no addresses left"),
        (
            "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
            "",
            ServiceError,
            "iam:CreateServiceLinkedRole",
        ),
        ("NoSuchEntity", "Instance profile x not found", UsageError, "no such instance profile"),
        (
            "InvalidParameterValue",
            "Value (x) for parameter iamInstanceProfile.name is invalid",
            UsageError,
            "no such instance profile",
        ),
    ],
)
def test_an_error_of_ec2_is_one_sentence_with_a_remedy(code, said, kind, words):
    error = refused(code, said)

    assert type(error) is kind
    assert str(error).startswith("cannot launch 2 instances: ")
    assert error.__cause__.response["Error"]["Code"] == code
    with pytest.raises(kind, match=words):
        raise error


@pytest.mark.parametrize(
    ("operation", "said", "action"),
    [
        ("RunInstances", "u is not authorized to perform: iam:PassRole on r", "iam:PassRole: "),
        ("CreateSecurityGroup", "You are not authorized.", "ec2:CreateSecurityGroup: "),
        (
            "RunInstances",
            "You are not authorized to perform this operation. "
            "Encoded authorization failure message: iam:Nothing",
            "ec2:RunInstances, or iam:PassRole or ec2:CreateTags",
        ),
    ],
)
def test_the_missing_permission_is_named(operation, said, action):
    error = refused("UnauthorizedOperation", said, operation)

    assert f"lack the permission {action}" in str(error)


@pytest.mark.parametrize(
    ("name", "quota"),
    [
        ("c7i.large", "Standard (A, C, D, H, I, M, R, T, Z)"),
        ("g5.xlarge", "G and VT"),
        ("vt1.3xlarge", "G and VT"),
        ("p4d.24xlarge", "P"),
        ("inf2.xlarge", "Inf"),
        ("i4i.large", "Standard (A, C, D, H, I, M, R, T, Z)"),
        ("x2idn.32xlarge", "X"),
        ("u-6tb1.metal", "High Memory"),
        ("trn1.2xlarge", "Trn"),
        ("dl1.24xlarge", "DL"),
        ("d3.xlarge", "Standard (A, C, D, H, I, M, R, T, Z)"),
    ],
)
def test_the_quota_is_that_of_the_instance_type(name, quota):
    assert f"'Running On-Demand {quota} instances'" in str(
        refused("VcpuLimitExceeded", "", "", (name,))
    )


def test_what_is_not_known_is_told_as_it_is():
    assert reason("Strange", "new", "RunInstances", "eu-central-1") is None
    assert "Strange (new)" in str(refused("Strange", "new"))
    assert type(refused("Strange", "new", status=503)) is Unavailable


def test_only_what_was_just_made_can_be_unknown_yet():
    assert is_unknown_yet("InvalidParameterValue", "Invalid IAM Instance Profile name")
    assert is_unknown_yet("InvalidGroup.NotFound", "sg-1")
    assert not is_unknown_yet("InvalidParameterValue", "Invalid value for instanceType")
    assert not is_unknown_yet("InvalidAMIID.NotFound", "ami-1")
