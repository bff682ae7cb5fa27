"""What instances cost an hour, where that can be had.

A price is good to know and nothing depends on it: whatever goes wrong, there is none. Disks,
traffic and public addresses are not in it.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from adr.aws import Connection, translated
from adr.errors import AdrError

__all__ = ["hourly_usd"]

_log = logging.getLogger(__name__)

#: One of the regions that answer for all of their partition.
_HOME = {"aws": "us-east-1"}


def hourly_usd(
    connection: Connection, types: Sequence[str], spot: bool, zones: Sequence[str]
) -> float | None:
    """Return what an instance costs an hour in dollars; None where that cannot be had.

    On demand it is the cheapest of several types, since that is the one that is launched. As a
    spot instance it is the dearest of them, each in its cheapest zone: which one it will be
    depends on what EC2 has most of.
    """
    try:
        if spot:
            return _spot(connection, types, zones)
        return min((_on_demand(connection, each) for each in types), default=None)
    except (AdrError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        _log.debug("there are no prices: %s", error)
        return None


def _spot(connection: Connection, types: Sequence[str], zones: Sequence[str]) -> float:
    with translated("find", "the prices of spot instances"):
        pages = connection.service("ec2").get_paginator("describe_spot_price_history")
        history = [
            entry
            for page in pages.paginate(
                InstanceTypes=list(types),
                ProductDescriptions=["Linux/UNIX"],
                # The prices that hold at this moment.
                StartTime=datetime.now(timezone.utc),
            )
            for entry in page["SpotPriceHistory"]
        ]
    cheapest = dict.fromkeys(types, math.inf)
    for entry in history:
        name = entry["InstanceType"]
        if not zones or entry["AvailabilityZone"] in zones:
            cheapest[name] = min(cheapest[name], float(entry["SpotPrice"]))
    return max(price for price in cheapest.values() if price < math.inf)


def _on_demand(connection: Connection, instance_type: str) -> float:
    wanted = {
        "instanceType": instance_type,
        "regionCode": connection.region,
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
    }
    # Once: nobody wants to wait for a price.
    pricing = connection.service("pricing", _HOME[connection.partition], attempts=1)
    with translated("find", f"the price of {instance_type}"):
        answer = pricing.get_products(
            ServiceCode="AmazonEC2",
            Filters=[
                {"Type": "TERM_MATCH", "Field": field, "Value": value}
                for field, value in wanted.items()
            ],
        )
    prices = [price for text in answer["PriceList"] for price in _prices(json.loads(text))]
    return min(price for price in prices if price > 0)


def _prices(product: Any) -> list[float]:
    return [
        float(dimension["pricePerUnit"]["USD"])
        for term in product["terms"]["OnDemand"].values()
        for dimension in term["priceDimensions"].values()
        if dimension["unit"] == "Hrs"
    ]
