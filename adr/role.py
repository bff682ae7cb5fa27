"""What a worker may do on AWS: the policy, and the role of a runner that carries it.

Whoever has the role reads the bucket, takes jobs from the queue and writes what workers write;
nothing else. Instances have it by an instance profile of the same name, `adr.access` lends it
to other machines.

IAM answers from several places that agree only after some seconds, and two launches may make
the same role at once. So making and removing are loops that look at what is there and do the
rest; what another was faster with is found to be there at the next look.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from botocore import exceptions as core

from adr.aws import Connection, error_code, is_denied, translated
from adr.clock import tries
from adr.errors import ServiceError
from adr.keys import CARDS, JOURNAL, LIVE, LOGS, SETUP
from adr.version import __version__

__all__ = ["ROLE_SESSION_S", "WorkerRole", "worker_policy"]

_log = logging.getLogger(__name__)


#: SQS asks for the permission of the single call also where ten are made at once.
_QUEUE_ACTIONS = (
    "sqs:ReceiveMessage",
    "sqs:DeleteMessage",
    "sqs:ChangeMessageVisibility",
    "sqs:GetQueueAttributes",
    "sqs:GetQueueUrl",
)
_WRITE_ACTIONS = ("s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts")
#: The ids of batches begin with the year, and only results have a slash after one: so this is
#: none of the bundles, which lie beside the results.
_RESULTS = "2*/"
_WRITTEN = (_RESULTS, JOURNAL, CARDS, LOGS, LIVE, SETUP)

#: The longest session that IAM lets a role have.
ROLE_SESSION_S = 12 * 3600
_POLICY_NAME = "adr-worker"

#: Answers that tell of another who does the same, or of a place that does not know it yet.
_MEANWHILE = {
    "ConcurrentModification",
    "DeleteConflict",
    "EntityAlreadyExists",
    "EntityTemporarilyUnmodifiable",
    "LimitExceeded",
    "NoSuchEntity",
}


def worker_policy(
    runner_id: str, region: str, account: str, partition: str = "aws"
) -> dict[str, Any]:
    """Return the policy that allows what a worker does, on one queue and one bucket.

    A worker cannot delete objects, write orders, bundles or manifests, send or purge messages,
    or delete the queue. The queue itself moves jobs that were received too often to the
    dead-letter queue, for which a worker needs no right.

    Parameters
    ----------
    runner_id : str
        Id of the runner.
    region : str
        Region of the queue.
    account : str
        Account that owns the queue, twelve digits.
    partition : str, optional
        Partition of AWS, such as ``aws-cn``.
    """
    queue = f"arn:{partition}:sqs:{region}:{account}:{runner_id}"
    bucket = f"arn:{partition}:s3:::{runner_id}"
    return {
        "Version": "2012-10-17",
        "Statement": [
            _allow(_QUEUE_ACTIONS, queue),
            _allow(("s3:ListBucket", "s3:GetBucketLocation"), bucket),
            _allow(("s3:GetObject",), f"{bucket}/*"),
            _allow(_WRITE_ACTIONS, [f"{bucket}/{prefix}*" for prefix in _WRITTEN]),
        ],
    }


class WorkerRole:
    """Make and remove the role of one runner's workers, and its instance profile.

    The constructor makes no call. Methods are idempotent, also side by side, and block for some
    seconds where others do the same.

    Parameters
    ----------
    connection : Connection
        To the runner.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        #: Name of the role and of the instance profile.
        self.name = f"adr-{connection.runner_id}"

    @cached_property
    def arn(self) -> str:
        """Return the address of the role, whether it is there or not."""
        return f"arn:{self._connection.partition}:iam::{self._account}:role/{self.name}"

    @cached_property
    def policy(self) -> dict[str, Any]:
        """Return what the role allows."""
        # The account first: the region is certain only once the queue is found.
        account, connection = self._account, self._connection
        return worker_policy(connection.runner_id, connection.region, account, connection.partition)

    def make(self, advice: str, *, profile: bool) -> bool:
        """Make the role, or complete it; tell whether there was none.

        Parameters
        ----------
        advice : str
            What to do where these credentials may not, after a semicolon.
        profile : bool
            Make or complete the instance profile as well.

        Raises
        ------
        ServiceError
            If these credentials may not: which permission is missing.
        RunnerGone
            If there is no such runner.
        """
        is_new = False

        def step() -> None:
            nonlocal is_new
            if _found(self._iam.get_role, RoleName=self.name) is None:
                is_new = True
                self._make_role()
            self._complete_policy()
            if profile:
                self._complete_profile()

        self._until_settled(step, "make", advice)
        return is_new

    def remove(self, advice: str) -> None:
        """Remove both, or what is left of them, with what somebody else attached to the role.

        The runner itself may be gone.

        Parameters
        ----------
        advice : str
            What to do where these credentials may not, after a semicolon.

        Raises
        ------
        ServiceError
            If these credentials may not: which permission is missing.
        """
        self._until_settled(self._remove, "remove", advice)

    def left(self) -> list[str]:
        """Return what there is of both, in words."""
        left = []
        with translated("look for", f"the role {self.name} of the workers"):
            if _found(self._iam.get_instance_profile, InstanceProfileName=self.name):
                left.append(f"instance profile {self.name}")
            if _found(self._iam.get_role, RoleName=self.name):
                left.append(f"role {self.name}")
        return left

    @property
    def _iam(self) -> Any:
        return self._connection.service("iam")

    @cached_property
    def _account(self) -> str:
        _ = self._connection.queue_url
        # The URL of a queue tells it wherever it looks like one of AWS.
        if self._connection.owner is not None:
            return self._connection.owner
        with translated("ask for", "the account of these credentials"):
            return str(self._connection.service("sts").get_caller_identity()["Account"])

    @property
    def _trust(self) -> dict[str, Any]:
        """Return who may take on the role: instances, and whom the account itself allows it."""
        account = f"arn:{self._connection.partition}:iam::{self._account}:root"
        return {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Principal": {"Service": "ec2.amazonaws.com", "AWS": account},
                    "Action": "sts:AssumeRole",
                }
            ],
        }

    @property
    def _tags(self) -> list[dict[str, str]]:
        tags = {"Runner": self._connection.runner_id, "Version": __version__}
        return [{"Key": key, "Value": value} for key, value in tags.items()]

    def _make_role(self) -> None:
        self._iam.create_role(
            RoleName=self.name,
            AssumeRolePolicyDocument=json.dumps(self._trust),
            Description="Workers of an adr runner",
            MaxSessionDuration=ROLE_SESSION_S,
            Tags=self._tags,
        )

    def _complete_policy(self) -> None:
        names = {"RoleName": self.name, "PolicyName": _POLICY_NAME}
        there = _found(self._iam.get_role_policy, **names)
        if there is None or there["PolicyDocument"] != self.policy:
            self._iam.put_role_policy(**names, PolicyDocument=json.dumps(self.policy))

    def _complete_profile(self) -> None:
        there = _found(self._iam.get_instance_profile, InstanceProfileName=self.name)
        if there is None:
            self._iam.create_instance_profile(InstanceProfileName=self.name, Tags=self._tags)
        if there is None or not there["InstanceProfile"]["Roles"]:
            self._iam.add_role_to_instance_profile(
                InstanceProfileName=self.name, RoleName=self.name
            )

    def _remove(self) -> None:
        iam, name = self._iam, self.name
        there = _found(iam.get_instance_profile, InstanceProfileName=name)
        if there is not None:
            for role in there["InstanceProfile"]["Roles"]:
                iam.remove_role_from_instance_profile(
                    InstanceProfileName=name, RoleName=role["RoleName"]
                )
            iam.delete_instance_profile(InstanceProfileName=name)
        if _found(iam.get_role, RoleName=name) is None:
            return
        for page in iam.get_paginator("list_role_policies").paginate(RoleName=name):
            for policy in page["PolicyNames"]:
                iam.delete_role_policy(RoleName=name, PolicyName=policy)
        for page in iam.get_paginator("list_attached_role_policies").paginate(RoleName=name):
            for policy in page["AttachedPolicies"]:
                iam.detach_role_policy(RoleName=name, PolicyArn=policy["PolicyArn"])
        iam.delete_role(RoleName=name)

    def _until_settled(self, step: Callable[[], None], verb: str, advice: str) -> None:
        """Repeat a step that looks at what is there, as long as others get in its way."""
        what = f"the role {self.name} for the workers"
        for last in tries():
            try:
                with translated(verb, what):
                    step()
                return
            except ServiceError as error:
                if is_denied(error):
                    action = getattr(error.__cause__, "operation_name", "")
                    raise ServiceError(
                        f"cannot {verb} {what}: AWS denies iam:{action} to these credentials; "
                        f"{advice}"
                    ) from error.__cause__
                if last or error_code(error.__cause__) not in _MEANWHILE:
                    raise
                _log.debug("%s; looking again", error)


def _allow(actions: Sequence[str], resource: str | Sequence[str]) -> dict[str, Any]:
    return {
        "Effect": "Allow",
        "Action": list(actions),
        "Resource": resource if isinstance(resource, str) else list(resource),
    }


def _found(call: Callable[..., Mapping[str, Any]], **names: str) -> Mapping[str, Any] | None:
    """Return what a call of IAM answers, None where there is no such thing."""
    try:
        return call(**names)
    except core.ClientError as error:
        if error_code(error) == "NoSuchEntity":
            return None
        raise
