"""Hosts of a test network are reached, cut off and removed."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.network import Network, require_network

# Greets whoever connects to port 22 with its first argument.
SERVER = (
    "import socket, sys\n"
    "with socket.create_server(('', 22)) as server:\n"
    "    print(flush=True)\n"
    "    while True:\n"
    "        with server.accept()[0] as one: one.sendall(sys.argv[1].encode())\n"
)


@pytest.fixture
def network():
    require_network()
    with Network() as network:
        yield network


def serve(host):
    server = subprocess.Popen(
        host.command(sys.executable, "-c", SERVER, host.name), stdout=subprocess.PIPE
    )
    server.stdout.readline()
    return server


def greeting(address, timeout=5):
    with closing(socket.create_connection((address, 22), timeout)) as connection:
        return connection.recv(100).decode()


def test_hosts_are_told_apart_by_their_addresses(network):
    one = network.host("one", public_ip="198.51.100.1")
    two = network.host("two", public_ip="198.51.100.2")

    servers = [serve(each) for each in (one, two)]

    assert greeting(one.address) == greeting("198.51.100.1") == "one"
    assert greeting(two.address) == greeting("198.51.100.2") == "two"
    for server in servers:
        server.kill()
        server.wait()


def test_a_host_reaches_the_gateway_and_no_other_address_of_this_machine(network):
    host = network.host("one")
    with socket.create_server((network.gateway, 0)) as server:
        reach = (
            "import socket, sys\n"
            "socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)\n"
            "try: socket.create_connection(('192.0.2.1', 80), 0.5)\n"
            "except OSError: print('closed')\n"
        )
        port = str(server.getsockname()[1])
        done = subprocess.run(
            host.command(sys.executable, "-c", reach, network.gateway, port),
            capture_output=True,
            text=True,
        )
    assert done.stdout == "closed\n", done.stderr


def test_a_host_that_is_cut_off_is_silent_until_it_is_restored(network):
    host = network.host("one")
    server = serve(host)

    network.cut(host)
    with pytest.raises(TimeoutError):
        greeting(host.address, timeout=0.5)

    network.restore(host)
    assert greeting(host.address, timeout=10) == "one"
    server.kill()
    server.wait()


def test_a_removed_host_is_not_there_and_its_name_is_free(network):
    host = network.host("one", public_ip="198.51.100.1")

    network.remove(host)

    assert not Path(host.path).exists()
    assert network.host("one", public_ip="198.51.100.1").address == host.address


def test_two_networks_do_not_meet(network):
    with Network() as other:
        assert other.gateway != network.gateway
        network.add_address("169.254.169.254")
        other.add_address("169.254.169.254")


def test_nothing_is_left_at_the_end():
    require_network()
    with Network() as network:
        host = network.host("one")
        server = serve(host)

    assert server.wait(10) == -signal.SIGKILL
    assert not Path(host.path).exists()
    assert not Path("/sys/class/net", network.bridge).exists()


def test_what_a_killed_process_has_left_is_removed_by_the_next(wait_for):
    require_network()
    make = (
        "from tests.network import Network; import time\n"
        "with Network() as network:\n"
        "    print(network.host('one').path, network.bridge, flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", make],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    path, bridge = process.stdout.readline().split()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert Path(path).exists()

    # One takes its number again or, where it takes another, sweeps that one.
    with Network() as network:
        assert not Path(path).exists()
        assert network.bridge == bridge or not Path("/sys/class/net", bridge).exists()
