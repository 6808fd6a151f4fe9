"""Writes docs/reference/reliability.md from what was seen: what the rounds of `make chaos` added to a file."""

from __future__ import annotations

import json
import statistics
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.chaos.path.faults import CUT_OFF, FROZEN, KILLED, KINDS, LOSSY, RESTARTED, SLOW, Happened
from tests.chaos.path.round import Story
from tests.chaos.path.targets import BROKER, CONSUMER, PRIMARY, PRODUCER, REGISTRY, ROLES, STANDBY
from tests.consumers.services import ROOT

PAGE: Final = "docs/reference/reliability.md"

_PROMISED: Final[Mapping[str, str]] = {
    PRODUCER: "Each committed change is in the topic once, at its position; the next start continues there.",
    CONSUMER: "Each event is applied once; another consumer takes over from the ledger.",
    BROKER: "Nothing acknowledged is lost; producer and consumers wait for the partition's next leader.",
    PRIMARY: "Producer and consumers wait for the server, connect again and continue from what it has.",
    STANDBY: "An event whose row is not visible yet waits for it, in order; other partitions continue.",
    REGISTRY: "Only what needs a new schema waits.",
}
_HOW: Final[Mapping[str, str]] = {
    KILLED: "SIGKILL",
    FROZEN: "SIGSTOP, then SIGCONT",
    RESTARTED: "stopped in order and started",
    CUT_OFF: "every packet from and to it is dropped",
    LOSSY: "5, 15 or 40 % of its packets are dropped",
    SLOW: "its link passes 200 or 1,000 kbit/s",
}


def add(results: Path, story: Story, brokers: int) -> None:
    """Add a round to the results."""
    found: dict[str, list[float]] = defaultdict(list)
    for fault in story.faults:
        found[f"{fault.kind}/{fault.role}"].append(_until_progress(fault, story.progress))
    line = {
        "seed": story.seed,
        "brokers": brokers,
        "broken": story.verdict,
        "figures": story.figures,
        "faults": {name: [round(seconds, 1) for seconds in times] for name, times in found.items()},
    }
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _until_progress(fault: Happened, progress: Sequence[tuple[float, int]]) -> float:
    """Return how many seconds after a fault began the ledgers moved for the first time after it was over, or sooner.

    Zero where they moved while it lasted.
    """
    times = [at for at, _ in progress]
    first, last = bisect_left(times, fault.began), bisect_left(times, fault.ended)
    stood = progress[first - 1][1] if first else 0
    if last > first and progress[last - 1][1] > stood:
        return 0.0
    moved = next((at for at, total in progress[last:] if total > stood), None)
    return 0.0 if moved is None else max(0.0, moved - fault.ended)


def write(results: Path) -> None:
    """Write the page."""
    lines = [json.loads(line) for line in results.read_text().splitlines() if line.strip()]
    rounds = [line for line in lines if "seed" in line]
    planted = [line for line in lines if "planted" in line]
    (ROOT / PAGE).parent.mkdir(parents=True, exist_ok=True)
    (ROOT / PAGE).write_text("\n".join(_page(rounds, planted)) + "\n")


def _page(rounds: Sequence[Mapping[str, Any]], planted: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    total = sum(len(times) for one in rounds for times in one["faults"].values())
    broken = [one for one in rounds if one["broken"]]
    yield "# Reliability"
    yield ""
    yield "Written by `make chaos REPORT=1` from the rounds that it played; not edited by hand."
    yield ""
    yield f"{len(rounds)} rounds (seeds {', '.join(str(one['seed']) for one in rounds)}),"
    yield f"{sum(one['figures']['seconds'] for one in rounds):,} seconds, {total:,} faults,"
    yield f"{_sum(rounds, 'acknowledged'):,} acknowledged transactions, {_sum(rounds, 'in doubt'):,} in doubt,"
    yield f"{_sum(rounds, 'events'):,} records, {_sum(rounds, 'effects'):,} effects of a migration that records"
    brokers = max((one["brokers"] for one in rounds), default=0)
    yield f"each event that it applies, {brokers} brokers: **{len(broken)} broken promises**."
    yield ""
    yield "While an application writes (inserts, updates, deletes, changed keys, truncates, savepoints, transactions of"
    yield "hundreds of rows, changes of the table's form; some sessions wait at each commit for a synchronous standby),"
    yield "up to four faults at a time happen at random. An operator pauses migrations and re-snapshots the table."
    yield "In the end the gitlab schema is given to another database while consumers are frozen. The history checker"
    yield "(`tests/chaos/path/checker.py`) then compares the application's log of its transactions, a trigger's log of"
    yield "every write, the positions of all commits in the WAL, the topic's records, the effects, every move of the"
    yield "ledger, and what was seen of Kafka's offsets, the slot and status meanwhile. A commit whose answer was lost"
    yield "is in doubt: the database decides whether it has to be in the topic."
    yield ""
    yield "## Faults"
    yield ""
    yield "Seen: the violations, and how many seconds after the fault was over the ledgers moved again (median and"
    yield "longest; 0 where they moved while it lasted). Other faults happened at the same time."
    yield ""
    yield "| fault | times tried | promised | seen |"
    yield "| --- | --- | --- | --- |"
    for role in ROLES:
        for kind in KINDS:
            times = [seconds for one in rounds for seconds in one["faults"].get(f"{kind}/{role}", ())]
            if times:
                median, longest = statistics.median(times), max(times)
                seen = f"{len(broken)} violations; {median:.1f} s, at most {longest:.1f} s"
                yield f"| {role} {kind} ({_HOW[kind]}) | {len(times)} | {_PROMISED[role]} | {seen} |"
            else:
                yield f"| {role} {kind} ({_HOW[kind]}) | 0 | {_PROMISED[role]} | not tried |"
    yield ""
    yield "## The checker itself"
    yield ""
    yield "Each violation was planted in headrace's processes (`make chaos PLANTED=all`) and has to be found:"
    yield ""
    yield "| violation | found as | seconds after the application began to write |"
    yield "| --- | --- | --- |"
    for one in planted:
        yield f"| {one['planted']} | {one['found'].replace('|', '/')} | {one['seconds']} |"


def _sum(rounds: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(int(one["figures"].get(name, 0)) for one in rounds)
