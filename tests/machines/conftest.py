"""A small AWS with machines that really boot, one for all tests of this tier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import REGION
from tests.machines.client import Client, require_installed
from tests.machines.cloud import Cloud
from tests.machines.gate import Gate
from tests.machines.index import PackageIndex
from tests.machines.machine import require_machines
from tests.machines.metadata import MetadataService
from tests.machines.rootfs import root_tree
from tests.network import Network, require_network
from tests.servers import start_ministack, start_moto

#: moto refuses what does not exist, as AWS does.
MOTO = {
    "MOTO_ENABLE_AMI_VALIDATION": "1",
    "MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION": "1",
    "MOTO_ENABLE_KEYPAIR_VALIDATION": "1",
}


@pytest.fixture(scope="session")
def tree() -> Path:
    require_machines()
    require_network()
    return root_tree()


@pytest.fixture(scope="session")
def network(tree: Path) -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.fixture(scope="session")
def endpoints(
    network: Network, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, str]]:
    """Serve AWS on the bridge; returns the variables that lead there."""
    ministack = start_ministack(tmp_path_factory.mktemp("ministack"), network.gateway)
    program = [str(Path(__file__).with_name("moto_server.py"))]
    moto = start_moto(tmp_path_factory.mktemp("moto"), network.gateway, MOTO, program)
    yield {
        "AWS_ENDPOINT_URL": moto.url,
        "AWS_ENDPOINT_URL_S3": ministack.url,
        "AWS_ENDPOINT_URL_SQS": ministack.url,
    }
    moto.stop()
    ministack.stop()


@pytest.fixture(scope="session")
def index(network: Network) -> Iterator[PackageIndex]:
    with PackageIndex(network.gateway) as index:
        yield index


@pytest.fixture(scope="session")
def gate(network: Network) -> Iterator[Gate]:
    with Gate(network.gateway) as gate:
        yield gate


@pytest.fixture(scope="session")
def all_machines(
    tree: Path,
    network: Network,
    endpoints: Mapping[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Cloud]:
    consoles = tmp_path_factory.mktemp("consoles")
    moto = endpoints["AWS_ENDPOINT_URL"]
    with (
        MetadataService(network) as metadata,
        Cloud(network, metadata, tree, consoles, moto, REGION, endpoints) as cloud,
    ):
        yield cloud


@pytest.fixture(scope="session")
def account(endpoints: Mapping[str, str]) -> Mapping[str, str]:
    """Return the variables that make a process a user of this AWS."""
    return {
        **endpoints,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "*",
        "no_proxy": "*",
    }


@pytest.fixture
def client(account: Mapping[str, str], tmp_path: Path) -> Client:
    require_installed()
    return Client(tmp_path / "client", account)


@pytest.fixture
def cloud(
    all_machines: Cloud,
    account: Mapping[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Cloud]:
    """Return the cloud, and let boto3, here and in child processes, find it."""
    for name, value in account.items():
        monkeypatch.setenv(name, value)
    before = set(all_machines.machines)
    yield all_machines
    for name in set(all_machines.machines) - before:
        machine = all_machines.machines[name]
        # Shown where the test has failed.
        print(f"===== console of {name} =====\n{machine.said()}")
        machine.lose()
