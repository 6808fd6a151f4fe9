"""What the embedded brokers are configured with, alone or as several of one cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# Small and fast to start; what crash and fencing tests need to be short is short; nothing here weakens durability.
SETTINGS: Final[Mapping[str, str]] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "500",
    "group.consumer.min.session.timeout.ms": "500",
    "group.consumer.min.heartbeat.interval.ms": "100",
    # 2 s by default, and a broker that starts is in service one such later
    "broker.heartbeat.interval.ms": "300",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),  # 128 MB by default, a sixth of this heap
}

REPLICATED: Final[Mapping[str, str]] = {
    # How long the others wait for a broker that is gone, before its partitions have another leader: 9 s by default. One
    # that is alone keeps to that: taken for gone because the machine stood still, nothing would be left.
    "broker.session.timeout.ms": "2000",
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "unclean.leader.election.enable": "false",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    "share.coordinator.state.topic.replication.factor": "3",
    "share.coordinator.state.topic.min.isr": "2",
}
"""What several brokers have beside that: each record is on three of them, and on two before it counts."""

LISTENERS: Final = ("listeners", "advertised.listeners")
"""Of these a cluster's settings are added to each broker's own: more ways in, such as by TLS."""

COUNTS: Final = (1, 3, 5)
"""How many brokers a cluster may have: each is a controller too, and of an even number one more may not fail."""

HEAP: Final = ("-Xms256m", "-Xmx768m")
"""The memory for objects of a broker that is alone."""

SMALL_HEAP: Final = ("-Xms64m", "-Xmx320m")
"""The same for each of several."""

JVM_OPTIONS: Final = (
    "-XX:+UseG1GC",
    # the first compiler only: half the time to start, and a broker mostly copies bytes: 500,000 records through a
    # transaction and back cost 1.1 s of processor time with it, 2.0 s with both
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",  # it would leave a file in the system's temporary directory
    "-XX:+IgnoreUnrecognizedVMOptions",
    "-Djava.awt.headless=true",
)

LOG4J: Final = """\
status = error
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = {log}
appender.file.filePattern = {log}.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = [%d] %p %m (%c)%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 20MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 2
rootLogger.level = INFO
rootLogger.appenderRef.file.ref = file
"""


def of_cluster(brokers: int) -> dict[str, str]:
    """Return what each of so many brokers is configured with, but for its number, its ports and its directory."""
    return {**SETTINGS, **(REPLICATED if brokers > 1 else {})}
