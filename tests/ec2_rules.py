"""What EC2 and its neighbours do and moto does not, as rules of a proxy in front of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

from tests.aws_calls import Answer, Call
from tests.rules import Rule

#: Images that moto has, by what Ubuntu calls their architecture; the names of moto's mean nothing.
UBUNTU = {"amd64": "ami-785db401", "arm64": "ami-0e9271c829888680e"}
_NEWEST = "/aws/service/canonical/ubuntu/server/24.04/stable/current/{}/hvm/ebs-gp3/ami-id"
PUBLISHED = {_NEWEST.format(architecture): image for architecture, image in UBUNTU.items()}


def fields(call: Call) -> dict[str, str]:
    """Return the fields of a call to EC2, such as ``TagSpecification.1.Tag.2.Key``."""
    parsed = parse_qs(call.body.decode(), keep_blank_values=True)
    return {name: values[0] for name, values in parsed.items()}


def is_real(name: str, **wanted: str) -> Any:
    """Return a predicate on calls of that name that are no dry runs, and have these fields."""

    def chosen(call: Call) -> bool:
        if call.name != name:
            return False
        found = fields(call)
        return "DryRun" not in found and wanted.items() <= found.items()

    return chosen


def record(proxy: Any, name: str) -> list[dict[str, str]]:
    """Return a list to which the fields of each call are added that is no dry run."""
    found: list[dict[str, str]] = []
    proxy.before(is_real(name), lambda call: found.append(fields(call)))
    return found


def publish_images(proxy: Any, parameters: Mapping[str, str] = PUBLISHED) -> Rule:
    """Answer for the parameters of Canonical; those of Amazon are moto's own."""

    def answer(call: Call) -> Answer | None:
        names = call.json()["Names"]
        if not any("/canonical/" in name for name in names):
            return None
        assert len(names) <= 10, "SSM takes ten names a call"
        known = [{"Name": name, "Value": parameters[name]} for name in names if name in parameters]
        return _json({"Parameters": known, "InvalidParameters": []})

    rule: Rule = proxy.before("ssm.GetParameters", answer)
    return rule


def publish_prices(proxy: Any, prices: Mapping[str, str]) -> Rule:
    """Answer for the prices of instances on demand, in dollars."""

    def answer(call: Call) -> Answer:
        wanted = {each["Field"]: each["Value"] for each in call.json()["Filters"]}
        assert wanted["regionCode"] == "eu-central-1"
        price = prices.get(wanted["instanceType"])
        rate = {"unit": "Hrs", "pricePerUnit": {"USD": price}}
        terms = {"OnDemand": {"a": {"priceDimensions": {"b": rate}}}}
        return _json({"PriceList": [json.dumps({"terms": terms})] if price else []})

    rule: Rule = proxy.before("pricing.GetProducts", answer)
    return rule


def remember_tokens(proxy: Any) -> None:
    """Answer a repeated request with what was answered the first time, as EC2 does by its token."""
    answers: dict[str, Answer] = {}

    def again(call: Call) -> Answer | None:
        return answers.get(fields(call).get("ClientToken", ""))

    def remember(call: Call) -> None:
        token = fields(call).get("ClientToken")
        if token and call.answer and call.answer.status == 200:
            answers[token] = call.answer

    for name in ("ec2.RunInstances", "ec2.CreateFleet"):
        proxy.before(is_real(name), again)
        proxy.after(is_real(name), remember)


def xml(text: str) -> Answer:
    """Return an answer of EC2."""
    return Answer(200, text.encode(), [("Content-Type", "text/xml")])


def _json(data: Any) -> Answer:
    return Answer(200, json.dumps(data).encode(), [("Content-Type", "application/x-amz-json-1.1")])
