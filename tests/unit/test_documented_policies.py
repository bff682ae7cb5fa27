"""The policies in the documentation: that they allow what adr does, and hardly more."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore import xform_name

import adr
from adr.access import worker_policy

PACKAGE = Path(adr.__file__).parent
DOCS = PACKAGE.parent / "docs"
SERVICES = ("sqs", "s3", "ec2", "iam", "sts", "ssm", "pricing")
#: Calls that are permitted under another name than their own.
CALLED = {
    "s3:CompleteMultipartUpload": "s3:PutObject",
    "s3:CreateMultipartUpload": "s3:PutObject",
    "s3:DeleteObjects": "s3:DeleteObject",
    "s3:HeadBucket": "s3:ListBucket",
    "s3:HeadObject": "s3:GetObject",
    "s3:ListBuckets": "s3:ListAllMyBuckets",
    "s3:ListObjectsV2": "s3:ListBucket",
    "s3:PutBucketEncryption": "s3:PutEncryptionConfiguration",
    "s3:PutBucketLifecycleConfiguration": "s3:PutLifecycleConfiguration",
    "s3:PutPublicAccessBlock": "s3:PutBucketPublicAccessBlock",
    "s3:UploadPart": "s3:PutObject",
}
#: What needs no permission.
FREE = {"sts:GetCallerIdentity"}
#: What is asked for on the way of a call that names it nowhere.
IMPLIED = {
    "ec2:CreateTags",
    "iam:PassRole",
    "iam:TagInstanceProfile",
    "iam:TagRole",
    "s3:AbortMultipartUpload",
}


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / name).read_text("utf-8"))
    return found


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


@cache
def operations() -> dict[str, set[str]]:
    """Return the actions of all services by the names that boto3 gives their calls."""
    found: dict[str, set[str]] = {}
    session = boto3.Session(region_name="eu-central-1")
    for service in SERVICES:
        for operation in session.client(service).meta.service_model.operation_names:
            action = f"{service}:{operation.removesuffix('Batch')}"
            found.setdefault(xform_name(operation), set()).add(CALLED.get(action, action))
    return found


def named(tree: ast.AST) -> Iterator[str]:
    """Return attributes and texts: methods of clients, names of pages and of calls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def needed() -> set[str]:
    trees = [ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))]
    found = {
        action for tree in trees for name in named(tree) for action in operations().get(name, ())
    }
    return (found | IMPLIED) - FREE


STATEMENTS = read("howto/policy.json")["Statement"]


def allowed() -> set[str]:
    return {action for statement in STATEMENTS for action in listed(statement["Action"])}


class TestPolicyOfCallers:
    def test_everything_that_adr_calls_is_found(self) -> None:
        found = needed()

        assert {"sqs:ReceiveMessage", "sqs:DeleteMessage", "s3:ListBucket"} <= found
        assert {"iam:CreateRole", "sts:AssumeRole", "iam:ListRolePolicies"} <= found

    def test_it_allows_everything_that_adr_calls(self) -> None:
        denied = {
            action
            for action in needed()
            if not any(fnmatchcase(action, pattern) for pattern in allowed())
        }

        assert denied == set()

    def test_it_changes_nothing_that_adr_does_not(self) -> None:
        harmless = ("*:Describe*", "*:Get*", "*:List*", "iam:CreateServiceLinkedRole")
        more = {
            action
            for action in allowed() - needed()
            if not any(fnmatchcase(action, pattern) for pattern in harmless)
        }

        assert more == set()

    def test_who_has_it_can_lend_the_rights_of_a_worker(self) -> None:
        """Federated users have no right that the one who made them lacks."""
        worker = worker_policy("a59fb3d2-4a0c-4ea4-92bb-1a1bd0e22b6e", "eu-west-1", "1" * 12)
        for statement in worker["Statement"]:
            for action in statement["Action"]:
                for resource in listed(statement["Resource"]):
                    assert any(
                        action in listed(each["Action"])
                        and any(
                            fnmatchcase(resource, pattern) for pattern in listed(each["Resource"])
                        )
                        for each in STATEMENTS
                    ), (action, resource)

    def test_queues_and_buckets_are_those_of_runners(self) -> None:
        mine = "arn:aws:s3:::my-thesis"
        for statement in STATEMENTS:
            if any(action.startswith(("s3:", "sqs:")) for action in listed(statement["Action"])):
                if statement["Sid"] == "Lists":
                    continue
                for pattern in listed(statement["Resource"]):
                    assert not fnmatchcase(mine, pattern)
                    assert not fnmatchcase(f"{mine}/key", pattern)
                    assert not fnmatchcase("arn:aws:sqs:eu-west-1:111111111111:mine", pattern)

    def test_roles_are_those_of_workers_and_handed_to_ec2_only(self) -> None:
        assert not any("*" in action for action in allowed() if action.startswith("iam:"))
        for statement in STATEMENTS:
            actions = listed(statement["Action"])
            if not any(action.startswith(("iam:", "sts:AssumeRole")) for action in actions):
                continue
            resources = listed(statement["Resource"])
            if "iam:CreateServiceLinkedRole" in actions:
                assert actions == ["iam:CreateServiceLinkedRole"]
                assert statement["Condition"]["StringEquals"]["iam:AWSServiceName"]
                continue
            assert not any(
                fnmatchcase("arn:aws:iam::111111111111:role/admin", each) for each in resources
            )
            if "iam:PassRole" in actions:
                assert actions == ["iam:PassRole"]
                assert statement["Condition"] == {
                    "StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}
                }

    def test_only_instances_of_adr_are_ended(self) -> None:
        [ending] = [each for each in STATEMENTS if "ec2:TerminateInstances" in each["Action"]]

        assert "aws:ResourceTag/Runner" in ending["Condition"]["StringLike"]
        assert all(
            action in ending["Action"] or action.startswith("ec2:Delete") is False
            for action in allowed()
        )

    def test_iam_accepts_its_length(self) -> None:
        # A managed policy has at most 6,144 characters, blanks not counted.
        assert len("".join(json.dumps(read("howto/policy.json")).split())) <= 6144

    @pytest.mark.parametrize("statement", STATEMENTS, ids=lambda each: str(each["Sid"]))
    def test_its_actions_are_some_of_aws(self, statement: dict[str, Any]) -> None:
        known = {action for actions in operations().values() for action in actions}
        known |= IMPLIED | {"s3:ListMultipartUploadParts"}
        for action in listed(statement["Action"]):
            assert any(fnmatchcase(each, action) for each in known), action


def test_the_policy_of_workers_is_the_one_that_they_get() -> None:
    assert read("worker-policy.json") == worker_policy(
        "a59fb3d2-4a0c-4ea4-92bb-1a1bd0e22b6e", "eu-central-1", "123456789012"
    )


@pytest.mark.parametrize(
    ("page", "policy"), [("howto/ec2.rst", "policy.json"), ("security.rst", "worker-policy.json")]
)
def test_the_pages_show_the_policies(page: str, policy: str) -> None:
    assert f".. literalinclude:: {policy}\n" in (DOCS / page).read_text("utf-8")
