"""A server in a namespace is reachable at 127.0.0.1 from all others, unless packets are dropped on the way."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.chaos.path.namespaces import Network, entered, missing
from tests.consumers.services import ROOT

PORT = 19_999


@pytest.fixture
def network() -> Iterator[Network]:
    if (lacking := missing()) is not None:
        pytest.skip(lacking)
    network = Network({"server": [PORT], "client": []})
    try:
        yield network
    finally:
        network.close()


@pytest.fixture
def served(network: Network) -> Iterator[None]:
    with entered(network.namespace("server")):
        server = socket.create_server(("127.0.0.1", PORT))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"hello")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def ask(namespace: str, seconds: float = 10.0) -> bytes:
    with entered(namespace), socket.create_connection(("127.0.0.1", PORT), timeout=seconds) as connection:
        return connection.recv(16)


@pytest.mark.usefixtures("served")
def test_server_is_reachable_at_its_own_address_from_every_namespace(network: Network) -> None:
    for namespace in (network.namespace("client"), network.namespace("server"), network.hub):
        assert ask(namespace) == b"hello"


@pytest.mark.parametrize("node", ["server", "client"])
@pytest.mark.usefixtures("served")
def test_node_that_is_cut_off_is_unreachable_until_healed(network: Network, node: str) -> None:
    network.cut(node)
    with pytest.raises(TimeoutError):
        ask(network.namespace("client"), 0.3)
    network.heal(node)
    assert ask(network.namespace("client")) == b"hello"


@pytest.mark.usefixtures("served")
def test_packets_get_through_a_lossy_and_slow_link(network: Network) -> None:
    network.lose("client", 10)
    network.slow("client", 200, 400)
    assert ask(network.namespace("client"), 60.0) == b"hello"
    network.heal("client")
    network.heal("client")


def test_entered_returns_the_thread_to_its_namespace(network: Network) -> None:
    before = os.readlink("/proc/thread-self/ns/net")
    with entered(network.hub):
        assert os.readlink("/proc/thread-self/ns/net") != before
    assert os.readlink("/proc/thread-self/ns/net") == before


SETTLED = """
import multiprocessing, os, sys, threading
from tests.chaos.path.namespaces import settle

def fork():
    with multiprocessing.get_context("forkserver").Pool(1) as forked:
        return forked.apply(os.readlink, ["/proc/thread-self/ns/net"])

thread = threading.Thread(target=lambda: (settle(sys.argv[1]), fork()))
thread.start()
thread.join()
print(os.readlink("/proc/thread-self/ns/net") == fork())
"""


def test_processes_forked_by_others_are_not_in_the_namespace_of_a_thread_that_settled(network: Network) -> None:
    # In a process of its own: this one has a fork server already if another test forks.
    said = subprocess.run(
        [sys.executable, "-c", SETTLED, network.hub], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert said.stdout == "True\n"
