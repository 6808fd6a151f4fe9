"""`headrace verify --rows`: finds five wrong records among all, compared with copying the same rows."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from confluent_kafka import TopicPartition

from infra.kafka import clients
from schemas.codec.varints import encode_long
from schemas.errors import HeadraceError
from schemas.wire import HEADER_BYTES
from tests.benchmarks.bench import PATIENCE, SOURCE, TABLE, Bench, Site, median
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.machine import cpu_seconds, peak_megabytes
from tests.benchmarks.producing import copied

_NOWHERE: Final = 1 << 40
"""An id that no row has."""
_STOP_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Verified:
    """One run: seconds from the process's start to its end, its peak memory in MB, its processor time in seconds."""

    seconds: float
    peak: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, peak {self.peak:.0f} MB, {self.cpu:.1f} s of the processor"


def figures(bench: Bench) -> Iterator[Figure]:
    """Measure the comparison of the whole table with its topic, five keys of which are wrong."""
    site = Site(bench, bench.database(f"rows_{bench.rows}", bench.rows), "verified")
    copying = copied(site)
    producer = bench.start("produce-verified", site.command("produce", SOURCE))
    try:
        wrong = _spoil(site)
        runs = bench.repeated(f"verify of {bench.rows:,} rows", lambda _: _verified(site, wrong), str)
    finally:
        producer.stop(signal.SIGTERM, _STOP_SECONDS)
        site.drop()
    rate = bench.rows / median(run.seconds for run in runs)
    peer = bench.rows / copying.from_start
    yield Figure("verify, five wrong among all", rate, "rows/s", peer=peer, target=Target(at_least=250_000))
    million = bench.rows / 1e6
    yield Figure("verify, processor", median(run.cpu for run in runs) / million, "s/million", smaller=True)
    yield Figure("verify, memory", median(run.peak for run in runs), "MB", target=Target(at_most=200), smaller=True)


def _spoil(site: Site) -> dict[str, set[int]]:
    """Put five wrong records into the topic; return the keys that have to be found, by kind of difference."""
    known: list[tuple[bytes, bytes, int]] = []
    with closing(clients.consumer(site.settings.kafka, f"{site.prefix}.spoiling")) as reader:
        partitions = reader.list_topics(site.topic).topics[site.topic].partitions
        reader.assign([TopicPartition(site.topic, number, 0) for number in partitions])
        for _ in site.bench.watched("the topic"):
            for record in reader.consume(1_000, timeout=1):
                if record.error() is None and len(known) < 5:
                    known.append(
                        (bytes(record.key() or b""), bytes(record.value() or b""), int(record.partition() or 0))
                    )
            if len(known) == 5:
                break
    writer = clients.producer(site.settings.kafka)
    (first, second, third, fourth, fifth) = known
    for (key, _, partition), value in ((first, None), (second, None), (third, fifth[1]), (fourth, fifth[1])):
        writer.produce(site.topic, key=key, value=value, partition=partition)
    header = first[0][:HEADER_BYTES]
    writer.produce(site.topic, key=header + encode_long(_NOWHERE), value=fifth[1], partition=fifth[2])
    if writer.flush(PATIENCE):
        raise HeadraceError("the wrong records were not written", remedy="")
    ids = {key: number for key, _, _ in known for number in [_decoded(key[HEADER_BYTES:])]}
    return {
        "missing": {ids[first[0]], ids[second[0]]},
        "differing": {ids[third[0]], ids[fourth[0]]},
        "extra": {_NOWHERE},
    }


def _decoded(varint: bytes) -> int:
    raw = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(varint))
    return raw >> 1


def _verified(site: Site, wrong: dict[str, set[int]]) -> Verified:
    bench = site.bench
    began = time.monotonic()
    process = bench.start(f"verify-{time.monotonic_ns()}", site.command("verify", TABLE, "--rows", "--json"))
    peak = cpu = 0.0
    while process.poll() is None:
        peak, cpu = max(peak, peak_megabytes(process.pid)), max(cpu, cpu_seconds(process.pid))
        time.sleep(0.02)
    seconds = time.monotonic() - began
    lines = process.log.read_text(encoding="utf-8").splitlines()
    (found,) = json.loads(next(line for line in lines if line.startswith("[")))  # surrounded by log lines
    reported = {kind: {one["id"] for one in found[kind]} for kind in wrong}
    if reported != wrong:
        raise HeadraceError(f"verify found {reported}, but {wrong} is wrong", remedy="")
    return Verified(seconds, peak, cpu)
