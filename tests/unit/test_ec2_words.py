"""What the plan of a launch on EC2 says follows from its facts alone."""

from __future__ import annotations

import pytest

from adr.fleets.ec2.requests import Order, Pool
from adr.fleets.ec2.words import Facts
from adr.fleets.specs import WorkerOptions

ORDER = Order(1, (Pool("c7i.large", "ami-1"),), "/dev/xvda", 20)


@pytest.mark.parametrize(
    ("worker", "is_prepared", "end"),
    [
        (
            WorkerOptions(),
            False,
            "when nothing is left to do, or after 10 min with nothing waiting",
        ),
        (WorkerOptions(keep=True), False, "when terminated by adr destroy"),
        (
            WorkerOptions(),
            True,
            "once its prepared worker has left, or after an hour without a sign of one",
        ),
    ],
)
def test_a_plan_says_how_instances_end(worker, is_prepared, end):
    facts = Facts(
        region="eu-west-1", order=ORDER, types=(), images=(), subnet=None, vpc="vpc-1", zones=(),
        has_public_addresses=True, volumes=(), group=None, profile=None, is_prepared=is_prepared,
        setup=None, worker=worker, hourly_usd=None,
    )  # fmt: skip

    assert dict(facts.lines())["end"] == end
