"""The only place that makes boto3 sessions and clients, and where their errors are translated.

Below it are boto3, the configuration and `adr.awserrors`, which knows what errors mean; above it
the backends on S3 and SQS, which know this module only. Importing it imports boto3, which takes
a noticeable time: import it only where AWS is really used.

Clients cost some 50 ms each, may be used by many threads but not made by several at once:
a `Connection` makes each of them once, when it is first asked for.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import boto3
from botocore import exceptions as core
from botocore.config import Config

from adr.awserrors import error_code, is_denied, is_uncertain, translated
from adr.errors import NotFound, RunnerGone, ServiceError, UsageError
from adr.version import __version__

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest
    from botocore.model import OperationModel
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient

__all__ = [
    "DEFAULT_REGION",
    "Connection",
    "client",
    "error_code",
    "has_credentials",
    "is_denied",
    "is_uncertain",
    "list_names",
    "session",
    "translated",
]

_log = logging.getLogger(__name__)

#: Region where neither the caller, nor boto3, nor adr's configuration names one.
DEFAULT_REGION = "eu-central-1"

_ATTEMPTS = 5


def session(region_name: str | None = None) -> boto3.Session:
    """Make a session that knows its region and, where there are any, its credentials.

    Both are looked for the way boto3 does (environment, profile, instance role …), then in
    adr's configuration file. Makes no client; may ask the instance metadata service.

    Parameters
    ----------
    region_name : str, optional
        Amazon region identifier; wins over all others.

    Raises
    ------
    UsageError
        If the profile or a configuration file is not usable.
    """
    from adr.config import load_config

    with translated("find", "credentials for AWS"):
        found = boto3.Session(region_name=region_name)
        own: dict[str, str | None] = {}
        if found.get_credentials() is None:
            own = load_config("aws", "credentials")
        elif found.region_name:
            # Another would look for them once more, which may run a program or ask EC2.
            return found
        region = found.region_name or load_config("aws", "configuration", "region")
        return boto3.Session(
            region_name=region or DEFAULT_REGION,
            aws_access_key_id=own.get("access_key_id") or None,
            aws_secret_access_key=own.get("secret_access_key") or None,
        )


def client(
    source: boto3.Session,
    service: str,
    region_name: str | None = None,
    attempts: int | None = None,
) -> Any:
    """Make a client with adr's time-outs and retries; not thread-safe, unlike the client.

    Five attempts in all unless `attempts` or ``AWS_MAX_ATTEMPTS`` says otherwise. An answer is
    awaited for 60 s, which is more than the longest poll of SQS (20 s).

    Raises
    ------
    UsageError
        If the region or the endpoint cannot be one.
    """
    region = region_name or source.region_name
    with translated("use", f"{service} in region {region}"):
        try:
            config = Config(
                retries={
                    "mode": "standard",
                    "total_max_attempts": attempts
                    or int(os.environ.get("AWS_MAX_ATTEMPTS", _ATTEMPTS)),
                },
                connect_timeout=10,
                read_timeout=60,
                max_pool_connections=64,
                tcp_keepalive=True,
                user_agent_extra=f"adr/{__version__}",
            )
            made = source.client(service, region_name=region, config=config)  # type: ignore[call-overload]
        except core.InvalidRegionError:
            raise
        except ValueError as error:
            # botocore raises this, and nothing of its own, for an endpoint that is no URL.
            raise UsageError(
                f"{error}: correct AWS_ENDPOINT_URL (a URL such as http://127.0.0.1:9000) "
                f"or AWS_MAX_ATTEMPTS (a number)"
            ) from error
    if ".amazonaws." in made.meta.endpoint_url:
        try:
            source.get_partition_for_region(region)
        except core.UnknownRegionError as error:
            raise UsageError(
                f"there is no AWS region {region!r}: give one such as {DEFAULT_REGION}"
            ) from error
    return made


class Connection:
    """Reach the bucket and the queue of one runner.

    Opens nothing until it is used. Thread-safe.

    Parameters
    ----------
    runner_id : str
        Name of the bucket and of the queue.
    region_name : str, optional
        Where to look first; without, the region of `session`. A runner's id does not name
        its region, so `queue_url` goes on looking where the bucket is.
    """

    def __init__(self, runner_id: str, region_name: str | None = None) -> None:
        self.runner_id = runner_id
        self._region_name = region_name
        self._lock = threading.RLock()
        self._session: boto3.Session | None = None
        self._clients: dict[str, Any] = {}
        self._queue_url: str | None = None
        self._owner_sought = False
        self._sent = threading.local()

    @classmethod
    def from_resources(cls, runner_id: str, *, s3: Any = None, sqs: Any = None) -> Connection:
        """Connect through boto3 resources that the caller has made.

        A service that is not given is reached in the same region with the same credentials.
        """
        given = s3 if s3 is not None else sqs
        region = given.meta.client.meta.region_name
        # S3 calls its region so where none is configured.
        made = cls(runner_id, None if region == "aws-global" else region)
        for service, resource in (("s3", s3), ("sqs", sqs)):
            if resource is not None:
                made._clients[service] = made._prepared(service, resource.meta.client)
        # A lone resource may speak to a service of its own, where there is no SQS to ask.
        made._owner_sought = sqs is None
        # boto3 has no public way from a client to its credentials.
        signer = getattr(given.meta.client, "_request_signer", None)
        credentials = getattr(signer, "_credentials", None)
        if credentials is not None:
            keys = credentials.get_frozen_credentials()
            made._session = boto3.Session(
                region_name=made._region_name or DEFAULT_REGION,
                aws_access_key_id=keys.access_key,
                aws_secret_access_key=keys.secret_key,
                aws_session_token=keys.token,
            )
        return made

    @property
    def s3(self) -> S3Client:
        """Return the client of S3."""
        return self._client("s3")  # type: ignore[no-any-return]

    @property
    def bucket_s3(self) -> S3Client:
        """Return the client of S3 for a bucket that is there; asks once whose it is.

        Only the queue tells the account of a runner. Where it does not, because it is gone, out
        of reach, or these credentials may not ask, calls name no owner.
        """
        if not self._owner_sought:
            with self._lock:
                if not self._owner_sought:
                    # First, so that a wrong region is said of what was asked for.
                    _ = self.s3
                    try:
                        _ = self.queue_url
                    except (RunnerGone, ServiceError) as error:
                        _log.debug("the owner of %s is not known: %s", self.runner_id, error)
                    self._owner_sought = True
        return self.s3

    @property
    def last_sent(self) -> tuple[str, Mapping[str, str | bytes]] | None:
        """Return URL and headers of what this thread has sent last through a client of S3."""
        return getattr(self._sent, "last", None)

    @property
    def sqs(self) -> SQSClient:
        """Return the client of SQS."""
        return self._client("sqs")  # type: ignore[no-any-return]

    @property
    def sqs_once(self) -> SQSClient:
        """Return a client of SQS that never repeats a call by itself."""
        if "sqs_once" not in self._clients:
            region = self.sqs.meta.region_name
            with self._lock:
                if "sqs_once" not in self._clients:
                    made = client(self._own_session(), "sqs", region, attempts=1)
                    self._clients["sqs_once"] = made
        return self._clients["sqs_once"]  # type: ignore[no-any-return]

    def service(
        self, name: str, region_name: str | None = None, attempts: int | None = None
    ) -> Any:
        """Return the client of any service, of this region or another; made once.

        What concerns the runner itself is in its own region, which is only certain once
        `queue_url` is known. How many attempts it makes is said by who asks first.
        """
        key = f"{name} in {region_name}" if region_name else name
        if key not in self._clients:
            with self._lock:
                if key not in self._clients:
                    region = region_name or self._region_name
                    self._clients[key] = client(self._own_session(), name, region, attempts)
        return self._clients[key]

    def instance(self, instance_id: str) -> Any:
        """Return an instance of EC2 as a resource of boto3; makes no call."""
        return self._own_session().resource("ec2", region_name=self.region).Instance(instance_id)

    @property
    def region(self) -> str:
        """Return the region at hand; makes no call."""
        with self._lock:
            return self._region_name or self._own_session().region_name

    @property
    def partition(self) -> str:
        """Return the partition of AWS that the region is in, such as ``aws``; makes no call."""
        return self._own_session().get_partition_for_region(self.region)

    @property
    def credentials(self) -> Any:
        """Return the credentials of the caller as botocore has them, None where there are none."""
        return self._own_session().get_credentials()

    @property
    def queue_url(self) -> str:
        """Return the URL of the queue, asking for it once.

        Raises
        ------
        RunnerGone
            If there is no such runner, or only its results are left.
        """
        with self._lock:
            if self._queue_url is None:
                self._queue_url = self._find_queue()
            return self._queue_url

    @property
    def owner(self) -> str | None:
        """Return the account of the runner, or None before `queue_url` is known; makes no call."""
        if self._queue_url is None:
            return None
        account = re.search(r"/(\d{12})/[^/]+$", self._queue_url)
        return account[1] if account else None

    def _own_session(self) -> boto3.Session:
        if self._session is None:
            self._session = session(self._region_name)
        return self._session

    def _client(self, service: str) -> Any:
        if service not in self._clients:
            with self._lock:
                if service not in self._clients:
                    made = client(self._own_session(), service, self._region_name)
                    self._clients[service] = self._prepared(service, made)
        return self._clients[service]

    def _prepared(self, service: str, made: Any) -> Any:
        if service == "s3":
            made.meta.events.register("before-parameter-build.s3", self._name_owner)
            made.meta.events.register("before-send.s3", self._note_sent)
        return made

    def _name_owner(self, params: dict[str, Any], model: OperationModel, **_: Any) -> None:
        # Bucket names are global: a destroyed runner's could by now be somebody else's.
        owner = self.owner
        if owner and params.get("Bucket") == self.runner_id:
            shape = model.input_shape
            if shape is not None and "ExpectedBucketOwner" in shape.members:
                params.setdefault("ExpectedBucketOwner", owner)

    def _note_sent(self, request: AWSPreparedRequest, **_: Any) -> None:
        # Not the request, which would keep its body in memory.
        self._sent.last = request.url, request.headers

    def _find_queue(self) -> str:
        try:
            return self._get_queue_url()
        except RunnerGone:
            home = self._bucket_region()
        if home != self.region:
            made = {name: client(self._own_session(), name, home) for name in ("s3", "sqs")}
            self._clients = {name: self._prepared(name, each) for name, each in made.items()}
            self._region_name = home
            try:
                return self._get_queue_url()
            except RunnerGone:
                pass
        raise RunnerGone(
            f"the runner {self.runner_id} has been destroyed, only its results are left: "
            f"adr download fetches them, adr destroy --purge removes them"
        )

    def _get_queue_url(self) -> str:
        with translated("find", f"the queue of runner {self.runner_id}"):
            return self.sqs.get_queue_url(QueueName=self.runner_id)["QueueUrl"]

    def _bucket_region(self) -> str:
        try:
            with translated("find", f"the bucket of runner {self.runner_id}"):
                answer = self.s3.head_bucket(Bucket=self.runner_id)
        except (NotFound, RunnerGone) as error:
            raise RunnerGone(
                f"there is no runner {self.runner_id}: adr list shows those there are"
            ) from error
        return answer.get("BucketRegion") or self.region


def has_credentials() -> bool:
    """Tell whether there are credentials for AWS; may ask the instance metadata service."""
    return session().get_credentials() is not None


def list_names(region_name: str | None = None) -> tuple[set[str], set[str]]:
    """Return the names of all queues and of all buckets in a region."""
    source = session(region_name)
    sqs, s3 = client(source, "sqs"), client(source, "s3")
    with translated("list", "the queues"):
        pages = sqs.get_paginator("list_queues").paginate(PaginationConfig={"PageSize": 1000})
        queues = {url.rpartition("/")[2] for page in pages for url in page.get("QueueUrls", ())}
    with translated("list", "the buckets"):
        pages = s3.get_paginator("list_buckets").paginate(PaginationConfig={"PageSize": 1000})
        buckets = {
            bucket["Name"]
            for page in pages
            for bucket in page.get("Buckets", ())
            if bucket.get("BucketRegion", source.region_name) == source.region_name
        }
    return queues, buckets
