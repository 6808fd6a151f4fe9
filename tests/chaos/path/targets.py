"""What can be disturbed: each server and each of headrace's processes, in its namespace if there are any."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing import util
from pathlib import Path
from typing import Final, Protocol

from infra.stack.processes import Guarded
from tests.chaos.forked import Command, Service
from tests.chaos.path import build
from tests.chaos.path.namespaces import entered
from tests.consumers.services import ROOT

PRODUCER: Final = "producer"
CONSUMER: Final = "consumer"
BROKER: Final = "broker"
PRIMARY: Final = "primary"
STANDBY: Final = "standby"
REGISTRY: Final = "registry"
# What headrace's processes are forked by listens on a socket: one with a name, which every namespace can reach.
vars(util)["abstract_sockets_supported"] = False

ROLES: Final = (PRODUCER, CONSUMER, BROKER, PRIMARY, STANDBY, REGISTRY)


class Target(ABC):
    """A process of the path. `busy` is held by who disturbs it; `node` names its place in the network."""

    def __init__(self, role: str, node: str) -> None:
        self.role = role
        self.node = node
        self.busy = threading.Lock()
        self._frozen: list[int] = []

    @abstractmethod
    def kill(self) -> None:
        """End it with all that belongs to it, by SIGKILL."""

    @abstractmethod
    def end(self) -> None:
        """Ask it to end, and wait until it has."""

    @abstractmethod
    def begin(self) -> None:
        """Start it again, and wait until it serves; nothing for what is started again by itself."""

    @abstractmethod
    def pids(self) -> Iterable[int]:
        """Return its processes, the one that starts others first."""

    def freeze(self) -> None:
        """Have none of its processes run."""
        self._frozen = list(self.pids())
        # What was started before the first one was stopped.
        for number in (*self._frozen, *self.pids()):
            _send(number, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it run again."""
        for number in {*self._frozen, *self.pids()}:
            _send(number, signal.SIGCONT)
        self._frozen = []


class ServiceTarget(Target):
    """A command of headrace's that is started again whenever it ends."""

    def __init__(self, role: str, node: str, service: Service) -> None:
        super().__init__(role, node)
        self.service = service

    def kill(self) -> None:
        self.service.kill()

    def end(self) -> None:
        if (command := self._command) is not None:
            command.send(signal.SIGTERM)
            if command.wait(30.0) is None:
                command.send(signal.SIGKILL)

    def begin(self) -> None:
        pass

    def pids(self) -> Iterable[int]:
        command = self._command
        return [] if command is None or command.poll() is not None else [command.pid]

    @property
    def _command(self) -> Command | None:
        return self.service.command


class Stoppable(Protocol):
    """A server of the embedded stack."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    @property
    def process(self) -> Guarded: ...


class ServerTarget(Target):
    """A server of the embedded stack."""

    def __init__(self, role: str, node: str, server: Stoppable, namespace: str | None) -> None:
        super().__init__(role, node)
        self.server = server
        self._namespace = namespace

    def kill(self) -> None:
        self.server.kill()

    def end(self) -> None:
        self.server.stop()

    def begin(self) -> None:
        with entered(self._namespace):
            self.server.start()

    def pids(self) -> Iterable[int]:
        process = self.server.process
        return [process.pid, *(child.pid for child in process.children())]


class Registry:
    """The process of registry.py; started and stopped as a server is."""

    def __init__(self, port: int, file: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, "-m", "tests.chaos.path.registry", str(port), str(file)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, cwd=ROOT, stdin=subprocess.DEVNULL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def pids(self) -> list[int]:
        return [] if self._process is None else [self._process.pid]

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None


class RegistryTarget(Target):
    """The schema registry."""

    def __init__(self, registry: Registry, namespace: str | None) -> None:
        super().__init__(REGISTRY, REGISTRY)
        self.registry = registry
        self._namespace = namespace

    def kill(self) -> None:
        self.registry.kill()

    def end(self) -> None:
        self.registry.stop()

    def begin(self) -> None:
        with entered(self._namespace):
            self.registry.start()

    def pids(self) -> Iterable[int]:
        return self.registry.pids()


def preparing(namespace: str | None, violation: str | None) -> Callable[[], None]:
    """Return what makes a process one of the test build."""
    return partial(build.prepare, namespace, violation)


def _send(number: int, which: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(number, which)
