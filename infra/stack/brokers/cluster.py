"""Runs an embedded Kafka cluster of one or more brokers, each of which can be killed by its number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Final

from infra.stack.brokers.broker import Cluster, EmbeddedBroker, PortTaken, cluster_of, kafka_uuid, ports_for
from infra.stack.brokers.broker_settings import HEAP, SMALL_HEAP, of_cluster
from infra.stack.brokers.java import find_java
from infra.stack.processes.keeper import Keeper
from infra.stack.processes.ports import require_free

PORT_TRIES: Final = 5


class EmbeddedKafka:
    """A cluster with its brokers' data in `directory`, each below its number.

    It has as many brokers as `ports`; port 0 is a free one, chosen at the first start and kept with the data.
    `settings` are added to every broker's. Methods such as `kill` apply to all brokers at once; `brokers` has each by
    its number, from 1 on, its node id in Kafka.
    """

    def __init__(
        self, directory: Path, keeper: Keeper, *, ports: Sequence[int] = (0,), settings: Mapping[str, str] | None = None
    ) -> None:
        self.directory = directory
        heap = HEAP if len(ports) == 1 else SMALL_HEAP
        self._cluster = Cluster({**of_cluster(len(ports)), **(settings or {})}, heap)
        self._kept = {number: port for number, port in enumerate(ports, 1) if port}
        self.brokers: Mapping[int, EmbeddedBroker] = {
            number: EmbeddedBroker(number, directory / str(number), keeper, self._cluster)
            for number in range(1, len(ports) + 1)
        }

    @property
    def ports(self) -> tuple[int, ...]:
        """The brokers' ports, in the order of their numbers; 0 before the first start."""
        return tuple(broker.port for broker in self.brokers.values())

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(broker.bootstrap_servers for broker in self.brokers.values())

    @property
    def running(self) -> bool:
        """Whether every broker's process exists."""
        return all(broker.running for broker in self.brokers.values())

    def check(self) -> None:
        """Raise UsageError for what would prevent a start, such as a taken port."""
        find_java()
        for number, port in self._kept.items():
            if not self.brokers[number].running:
                require_free(port, "Kafka", "--kafka-port")

    def start(self) -> None:
        """Start every broker that does not run, and wait until all are in service.

        Raises BrokerUnavailable if one does not come up, UsageError if its port is taken.
        """
        down = [broker for broker in self.brokers.values() if not broker.running]
        alone = len(down) == len(self.brokers)
        for attempt in range(1, PORT_TRIES + 1):
            self.check()
            if alone:
                self._choose_ports()
            for broker in reversed(down):  # broker 1 last: `brokers_in` takes it as the mark of a complete cluster
                broker.format()
            try:
                at_once([broker.start for broker in down])
            except BaseException as error:
                at_once([broker.kill for broker in down])
                # a free port may be taken before the broker binds it: then try others
                if not alone or not isinstance(error, PortTaken) or attempt == PORT_TRIES:
                    raise
            else:
                self._kept = dict(self._cluster.ports)
                return

    def stop(self) -> None:
        """Shut all down cleanly, keeping the data."""
        at_once([broker.stop for broker in self.brokers.values()])

    def kill(self) -> None:
        """SIGKILL all, keeping the data."""
        at_once([broker.kill for broker in self.brokers.values()])

    def restart(self) -> None:
        """Stop all (unless killed already) and start them again, on the same ports, with the same data."""
        self.stop()
        self.start()

    def _choose_ports(self) -> None:
        """Choose the cluster's id and ports; only while no broker runs."""
        numbers = list(self.brokers)
        known = [found for broker in self.brokers.values() if (found := cluster_of(broker.directory)) is not None]
        self._cluster.id = known[0] if known else kafka_uuid()
        both = ports_for([*numbers, *(-number for number in numbers)], self._kept)
        self._cluster.ports = {number: both[number] for number in numbers}
        self._cluster.controller_ports = {number: both[-number] for number in numbers}


def brokers_in(directory: Path) -> int:
    """Return the number of brokers with data in a cluster's directory, 0 if there is no complete cluster."""
    if cluster_of(directory / "1") is None:
        return 0
    return sum(cluster_of(each) is not None for each in directory.iterdir())


def at_once(actions: Sequence[Callable[[], None]]) -> None:
    """Run the actions in parallel, each to its end, then raise the first error."""
    if not actions:
        return
    with ThreadPoolExecutor(len(actions)) as pool:
        running = [pool.submit(action) for action in actions]
        # inside: after a Ctrl-C here all still complete before anything is stopped
        wait(running)
    for action in running:
        action.result()
