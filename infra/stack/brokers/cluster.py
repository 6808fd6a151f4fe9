"""An Apache Kafka of one's own: one broker, or several of one cluster, each of which can be crashed by its number."""

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
    """A cluster whose brokers' data live in `directory`, each below its number.

    It has as many brokers as `ports`; 0 chooses a free port at the first start; it is kept from then on, as the data
    is. `settings` are added to every broker's. What the whole does, such as `kill`, is done to all brokers at once;
    `brokers` has each by its number, from 1 on, which is its node id in Kafka.
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
        """Where the brokers listen, in the order of their numbers; 0 before the first start."""
        return tuple(broker.port for broker in self.brokers.values())

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(broker.bootstrap_servers for broker in self.brokers.values())

    @property
    def running(self) -> bool:
        """Whether every broker's process is there."""
        return all(broker.running for broker in self.brokers.values())

    def check(self) -> None:
        """Raise UsageError, in one line, for what is known to be in the way before anything starts."""
        find_java()
        for number, port in self._kept.items():
            if not self.brokers[number].running:
                require_free(port, "Kafka", "--kafka-port")

    def start(self) -> None:
        """Start every broker that does not run, and wait until all are in service.

        Raises BrokerUnavailable when one does not come up, UsageError when its port is taken.
        """
        down = [broker for broker in self.brokers.values() if not broker.running]
        alone = len(down) == len(self.brokers)
        for attempt in range(1, PORT_TRIES + 1):
            self.check()
            if alone:
                self._choose_ports()
            for broker in reversed(down):  # the first one last, by which `brokers_in` knows a whole cluster
                broker.format()
            try:
                at_once([broker.start for broker in down])
            except BaseException as error:
                at_once([broker.kill for broker in down])
                # a port found free may be taken before the broker binds it: then others
                if not alone or not isinstance(error, PortTaken) or attempt == PORT_TRIES:
                    raise
            else:
                self._kept = dict(self._cluster.ports)
                return

    def stop(self) -> None:
        """Shut all down in order; the data stays."""
        at_once([broker.stop for broker in self.brokers.values()])

    def kill(self) -> None:
        """SIGKILL all; the data stays as it was at that instant."""
        at_once([broker.kill for broker in self.brokers.values()])

    def restart(self) -> None:
        """Stop all (unless killed already) and start them again, on the same ports, with the same data."""
        self.stop()
        self.start()

    def _choose_ports(self) -> None:
        """Settle what the brokers have in common; only when none of them runs."""
        numbers = list(self.brokers)
        known = [found for broker in self.brokers.values() if (found := cluster_of(broker.directory)) is not None]
        self._cluster.id = known[0] if known else kafka_uuid()
        both = ports_for([*numbers, *(-number for number in numbers)], self._kept)
        self._cluster.ports = {number: both[number] for number in numbers}
        self._cluster.controller_ports = {number: both[-number] for number in numbers}


def brokers_in(directory: Path) -> int:
    """Return how many brokers have their data in a cluster's directory; 0 where there is no whole cluster."""
    if cluster_of(directory / "1") is None:
        return 0
    return sum(cluster_of(each) is not None for each in directory.iterdir())


def at_once(actions: Sequence[Callable[[], None]]) -> None:
    """Run the actions at once, each to its end, then raise the first error."""
    if not actions:
        return
    with ThreadPoolExecutor(len(actions)) as pool:
        running = [pool.submit(action) for action in actions]
        # inside: a Ctrl-C here still lets all come to their end before anything is stopped
        wait(running)
    for action in running:
        action.result()
