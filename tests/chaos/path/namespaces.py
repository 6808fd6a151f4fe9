"""Network namespaces: one for each process of a round, joined by a bridge at which each link can be cut.

Every server listens on 127.0.0.1, and every client connects to it there, as without namespaces: nftables redirects
packets for a port that another namespace owns, and their answers. So headrace and its stack know nothing of them.

Linux only, as root, with `ip` and `tc` (Debian's iproute2) and `nft` (nftables). `missing()` reports what is missing.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Final

_CLONE_NEWNET: Final = 0x40000000
_OWN: Final = "/proc/thread-self/ns/net"
_NAMED: Final = Path("/run/netns")
_NETWORK: Final = "10.77.0"
_NAME: Final = "headrace"
_NUMBERS: Final = itertools.count(1)
_RULES: Final = """
table ip paths {{
    chain sent {{
        type nat hook output priority -100;
        {sent}
    }}
    chain come {{
        type nat hook prerouting priority -100;
        {come}
    }}
    chain leave {{
        type nat hook postrouting priority 100;
        oifname "{link}" ip saddr 127.0.0.1 masquerade
    }}
}}
"""

_NO_FAULTS: Final = """
table ip faults {}
delete table ip faults
"""
_FAULTS: Final = """
table ip faults {{
    chain come {{
        type filter hook prerouting priority -300;
        iifname "path" {verdict}
    }}
    chain leave {{
        type filter hook postrouting priority 300;
        oifname "path" {verdict}
    }}
}}
"""


@cache
def missing() -> str | None:
    """Return why namespaces cannot be used here, and how to fix it; None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    programs = {"ip": "iproute2", "tc": "iproute2", "nft": "nftables"}
    absent = sorted({package for program, package in programs.items() if shutil.which(program) is None})
    if absent:
        return f"network namespaces need Debian's {' and '.join(absent)}: apt-get install {' '.join(absent)}"
    try:
        with _trial() as name:
            _run("ip", "netns", "exec", name, "nft", "-f", "-", given=_RULES.format(sent="", come="", link="lo"))
    except (OSError, subprocess.CalledProcessError) as error:
        return f"this machine does not allow network namespaces with nftables: {error}"
    return None


@contextlib.contextmanager
def _trial() -> Iterator[str]:
    name = f"{_NAME}{os.getpid()}x0"
    _run("ip", "netns", "add", name)
    try:
        yield name
    finally:
        _run("ip", "netns", "del", name)


def enter(name: str) -> None:
    """Move the calling thread, and what it starts from now on, into a namespace."""
    with (_NAMED / name).open("rb") as place:
        _set(place.fileno())


def settle(name: str) -> None:
    """Move the calling thread into a namespace for good, except for what it forks from multiprocessing's fork server.

    There is one such server in a process: started from this thread, it would be in the namespace too, and with it all
    that any other thread forks, as long as this process runs.
    """
    forkserver.ensure_running()
    enter(name)


@contextlib.contextmanager
def entered(name: str | None) -> Iterator[None]:
    """Run the block in a namespace; None: in the current one."""
    if name is None:
        yield
        return
    with open(_OWN, "rb") as before:
        enter(name)
        try:
            yield
        finally:
            _set(before.fileno())


def _set(number: int) -> None:
    # os.setns exists from Python 3.12 on.
    if ctypes.CDLL(None, use_errno=True).setns(number, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Network:
    """The namespaces of one round; `ports` are the ports of each node's server."""

    def __init__(self, ports: Mapping[str, Sequence[int]]) -> None:
        _remove_those_of_the_dead()
        name = f"{_NAME}{os.getpid()}x{next(_NUMBERS)}"
        self.hub = f"{name}-hub"
        self.addresses = f"{_NETWORK}.0/24"
        """The source address of a node's connections, as the others see it."""
        self._name = name
        self._ports = {node: list(numbers) for node, numbers in ports.items()}
        self._addresses = {node: f"{_NETWORK}.{number}" for number, node in enumerate(ports, start=2)}
        _run("ip", "netns", "add", self.hub)
        try:
            with entered(self.hub):
                _run("ip", "link", "set", "lo", "up")
                _run("ip", "link", "add", "hub", "type", "bridge", "forward_delay", "0")
                _run("ip", "addr", "add", f"{_NETWORK}.1/24", "dev", "hub")
                _run("ip", "link", "set", "hub", "up")
            for number, node in enumerate(ports):
                self._join(number, node)
            self._route(None)
            for node in ports:
                self._route(node)
        except BaseException:
            self.close()
            raise

    def namespace(self, node: str) -> str:
        """Return the name of a node's namespace."""
        return f"{self._name}-{node}"

    def close(self) -> None:
        """Remove all namespaces; one with running processes stays until they end."""
        for name in (*map(self.namespace, self._ports), self.hub):
            if (_NAMED / name).exists():
                _run("ip", "netns", "del", name)

    def cut(self, node: str) -> None:
        """Drop every packet to and from a node."""
        self._drop(node, "drop")

    def lose(self, node: str, percent: int) -> None:
        """Drop a percentage of packets in both directions."""
        self._drop(node, f"numgen random mod 100 < {percent} drop")

    def slow(self, node: str, kilobits: int, milliseconds: int) -> None:
        """Limit both directions to a bandwidth in kbit/s: packets queue for the given time at most."""
        for name, link in self._ends(node):
            with entered(name):
                limits = ("rate", f"{kilobits}kbit", "burst", "4kb", "latency", f"{milliseconds}ms")
                _run("tc", "qdisc", "replace", "dev", link, "root", "tbf", *limits)

    def heal(self, node: str) -> None:
        """Let all packets pass again."""
        with entered(self.namespace(node)):
            _run("nft", "-f", "-", given=_NO_FAULTS)
        for name, link in self._ends(node):
            with entered(name), contextlib.suppress(subprocess.CalledProcessError):
                _run("tc", "qdisc", "del", "dev", link, "root")

    def _drop(self, node: str, verdict: str) -> None:
        with entered(self.namespace(node)):
            _run("nft", "-f", "-", given=_NO_FAULTS + _FAULTS.format(verdict=verdict))

    def _ends(self, node: str) -> tuple[tuple[str, str], tuple[str, str]]:
        """Return both ends of a node's link, each with its namespace."""
        return (self.namespace(node), "path"), (self.hub, f"node{list(self._ports).index(node)}")

    def _join(self, number: int, node: str) -> None:
        name, link = self.namespace(node), f"node{number}"
        _run("ip", "netns", "add", name)
        with entered(self.hub):
            _run("ip", "link", "add", link, "type", "veth", "peer", "name", "path", "netns", name)
            _run("ip", "link", "set", link, "master", "hub")
            _run("ip", "link", "set", link, "up")
        with entered(name):
            _run("ip", "link", "set", "lo", "up")
            _run("ip", "addr", "add", f"{self._addresses[node]}/24", "dev", "path")
            _run("ip", "link", "set", "path", "up")

    def _route(self, node: str | None) -> None:
        """Redirect what is sent to another node's port on the loopback interface to that node; None: for the hub."""
        own = self._ports[node] if node is not None else []
        link = "path" if node is not None else "hub"
        sent = "\n        ".join(
            f"ip daddr 127.0.0.1 tcp dport {port} dnat to {self._addresses[other]}"
            for other, ports in self._ports.items()
            if other != node
            for port in ports
        )
        come = "\n        ".join(f'iifname "{link}" tcp dport {port} dnat to 127.0.0.1' for port in own)
        with entered(self.hub if node is None else self.namespace(node)):
            for interface in ("all", "lo", link):
                Path(f"/proc/sys/net/ipv4/conf/{interface}/route_localnet").write_text("1")
            _run("nft", "-f", "-", given=_RULES.format(sent=sent, come=come, link=link))


def _remove_those_of_the_dead() -> None:
    """Remove the namespaces of killed processes: nothing else does."""
    for place in _NAMED.glob(f"{_NAME}*x*"):
        owner = place.name.removeprefix(_NAME).partition("x")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            _run("ip", "netns", "del", place.name)


def _run(*command: str, given: str | None = None) -> None:
    done = subprocess.run(command, input=given, text=True, capture_output=True, check=False)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
