"""Targets of faults: each server and each of headrace's processes, in its namespace if there are any."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing import util
from pathlib import Path
from typing import Final, Protocol

from infra.stack.processes.keeper import Guarded, Keeper
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
# The fork server of headrace's processes listens on a socket with a file name, which every namespace can reach.
vars(util)["abstract_sockets_supported"] = False

_STOP_SECONDS: Final = 10.0

ROLES: Final = (PRODUCER, CONSUMER, BROKER, PRIMARY, STANDBY, REGISTRY)


class Target(ABC):
    """A process of the path. The thread that disturbs it holds `busy`; `node` is its name in the network."""

    def __init__(self, role: str, node: str) -> None:
        self.role = role
        self.node = node
        self.busy = threading.Lock()
        self._frozen: list[int] = []

    @abstractmethod
    def kill(self) -> None:
        """Kill it and all its processes by SIGKILL."""

    @abstractmethod
    def end(self) -> None:
        """Stop it in order, and wait until it has ended."""

    @abstractmethod
    def begin(self) -> None:
        """Start it again, and wait until it serves; a no-op for a service that restarts by itself."""

    @abstractmethod
    def pids(self) -> Iterable[int]:
        """Return its processes, the parent first."""

    def freeze(self) -> None:
        """Stop all its processes with SIGSTOP."""
        self._frozen = list(self.pids())
        # Processes that were started before the first one was stopped.
        for number in (*self._frozen, *self.pids()):
            _send(number, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it continue."""
        for number in {*self._frozen, *self.pids()}:
            _send(number, signal.SIGCONT)
        self._frozen = []


class ServiceTarget(Target):
    """A headrace command that is restarted whenever it ends."""

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
    """A server that can be started and stopped."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    @property
    def process(self) -> Guarded: ...


class ServerTarget(Target):
    """A server, in a namespace."""

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
    """The schema registry: the process of registry.py."""

    def __init__(self, directory: Path, keeper: Keeper, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._keeper = keeper
        self._log = directory / "registry.log"
        file = directory / "registry.json"
        self._command = [sys.executable, "-m", "tests.chaos.path.registry", str(port), str(file)]
        self._process: Guarded | None = None

    @property
    def process(self) -> Guarded:
        assert self._process is not None, "the registry is not running"
        return self._process

    def start(self) -> None:
        self._process = self._keeper.start(self._command, log=self._log, cwd=ROOT)

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop(signal.SIGTERM, _STOP_SECONDS)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()


def preparing(namespace: str | None, violation: str | None) -> Callable[[], None]:
    """Return the function that makes a process part of the test build."""
    return partial(build.prepare, namespace, violation)


def _send(number: int, which: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(number, which)
