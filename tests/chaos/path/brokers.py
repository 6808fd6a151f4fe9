"""A replicated Kafka: brokers that are controllers too, each record on three of them, two of which have to have it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from infra.stack.kafka import EmbeddedKafka
from infra.stack.kafka import _kafka_uuid as kafka_uuid
from infra.stack.processes import Keeper

_HEAP: Final = "400m"


class Ports(NamedTuple):
    """Where a broker listens: for clients and other brokers, and as a controller."""

    broker: int
    controller: int


class ReplicatedBroker(EmbeddedKafka):
    """Broker `number`, from 0, of a cluster with these ports; it serves once most of them have started."""

    def __init__(self, directory: Path, keeper: Keeper, number: int, cluster: str, ports: Sequence[Ports]) -> None:
        super().__init__(directory, keeper, port=ports[number].broker, heap=_HEAP)
        self._number = number
        self._cluster = cluster
        self._ports = ports

    def _format(self, home: Path, java: Path) -> str:
        super()._format(home, java)
        properties = self.directory / "data" / "meta.properties"
        lines = dict(line.partition("=")[::2] for line in properties.read_text().splitlines())
        lines |= {"cluster.id": self._cluster, "node.id": str(self._number + 1)}
        properties.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
        return self._cluster

    def _configure(self, port: int, controller: int, *, into: Path | None = None, data: Path | None = None) -> None:
        super()._configure(port, controller, into=into, data=data)
        if into is not None:  # only what Kafka's own formatter needs once
            return
        copies, needed = str(min(3, len(self._ports))), str(min(2, len(self._ports)))
        own = self._ports[self._number]
        voters = ",".join(f"{number}@127.0.0.1:{ports.controller}" for number, ports in enumerate(self._ports, start=1))
        settings = {
            "node.id": str(self._number + 1),
            "controller.quorum.voters": voters,
            "listeners": f"PLAINTEXT://127.0.0.1:{own.broker},CONTROLLER://127.0.0.1:{own.controller}",
            "default.replication.factor": copies,
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.replication.factor": copies,
            "min.insync.replicas": needed,
            "transaction.state.log.min.isr": needed,
            "unclean.leader.election.enable": "false",
        }
        with (self.directory / "server.properties").open("a") as file:  # of two lines for a name the later one holds
            file.writelines(f"{name}={value}\n" for name, value in settings.items())


def new_cluster() -> str:
    """Return the id of a cluster that is to be made."""
    return kafka_uuid()
