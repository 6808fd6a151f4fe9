"""Configuration of the embedded brokers, single or in a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# Small and fast to start, with short timeouts for crash and fencing tests; nothing here weakens durability.
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
    # 2 s by default; a starting broker is in service one interval later
    "broker.heartbeat.interval.ms": "300",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),  # 128 MB by default, a sixth of this heap
}

REPLICATED: Final[Mapping[str, str]] = {
    # How long until the partitions of a lost broker get another leader: 9 s by default. A single broker keeps that: if
    # a stalled machine fenced it, no broker would be left.
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
"""Further settings of several brokers: each record has three replicas and is acknowledged by two."""

LISTENERS: Final = ("listeners", "advertised.listeners")
"""A cluster's values of these are appended to each broker's own: further listeners, such as TLS."""

COUNTS: Final = (1, 3, 5)
"""Allowed numbers of brokers: each is also a controller, and an even number tolerates no more failures."""

HEAP: Final = ("-Xms256m", "-Xmx768m")
"""The heap of a single broker."""

SMALL_HEAP: Final = ("-Xms64m", "-Xmx320m")
"""The heap of each of several brokers."""

JVM_OPTIONS: Final = (
    "-XX:+UseG1GC",
    # C1 only: half the start time, and a broker mostly copies bytes: 500,000 records through a transaction and back
    # take 1.1 s of CPU time with C1, 2.0 s with both compilers
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
    """Return the configuration of each of `brokers` brokers, without its number, ports and directory."""
    return {**SETTINGS, **(REPLICATED if brokers > 1 else {})}
