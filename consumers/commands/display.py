"""Prints status tables, dead letters and comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from infra.cli import tables
from infra.guard import given_away
from schemas.errors import printable

if TYPE_CHECKING:
    from consumers.compare.judgement import Comparison
    from consumers.dead_letters.given_up import GivenUp
    from consumers.delivery.dead_letter_topic import Entry

_SLOTS_IN_TROUBLE: Final = ("unreserved", "lost", "missing")
_UNITS: Final = {"bytes": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}


_MIGRATIONS: Final = ("migration", "state", "read", "applied", "remaining", "events/s", "time left")
"""Seven narrow columns fit 80 characters; further details are printed below the table. `read` is the share of the
events, `remaining` counts rows.
"""
_SOURCES: Final = ("source", "WAL position", "behind", "seconds", "snapshot")


def show_status(document: Mapping[str, Any], on: Console | None = None) -> None:
    """Print the document of `status --json` as tables."""
    console = on or tables.console()
    rows = [_migration_row(one, document["migrations"]) for one in document["migrations"]]
    tables.show_table(console, "migrations", _MIGRATIONS, rows, right=_MIGRATIONS[2:])
    for one in document["migrations"]:
        for line in _details(one):
            console.print(printable(line), soft_wrap=True, highlight=False, markup=False)
    tables.show_table(console, "sources", _SOURCES, list(map(_source_row, document["sources"])))
    for one in document["sources"]:
        if one.get("slot_status") in _SLOTS_IN_TROUBLE:
            line = f"{one['name']}: slot {one['slot']} is {one['slot_status']}; see `headrace check`"
            console.print(printable(line), soft_wrap=True, highlight=False, markup=False)
        if one.get("snapshot_throttled_by"):
            line = f"{one['name']}: snapshot throttled by {one['snapshot_throttled_by']}"
            console.print(printable(line), soft_wrap=True, highlight=False, markup=False)
        if one.get("waits_for"):
            line = f"{one['name']}: its stream waits for {', '.join(one['waits_for'])}; see `headrace check`"
            console.print(printable(line), soft_wrap=True, highlight=False, markup=False)
    for one in document.get("given_away", ()):
        for line in given_away.lines(one):
            console.print(printable(line), soft_wrap=True, highlight=False, markup=False)


def _migration_row(one: Mapping[str, Any], every: Sequence[Mapping[str, Any]]) -> list[str]:
    end = sum(partition["end_offset"] for partition in one["partitions"])
    at = sum(min(partition["offset"], partition["end_offset"]) for partition in one["partitions"])
    twice = sum(other["name"] == one["name"] for other in every) > 1
    return [
        f"{one['name']} ({one['database']})" if twice else one["name"],
        "unknown" if one.get("error") and one["state"] != "failed" else one["state"],
        f"{at / end:.1%}" if end else "",
        f"{one['applied']:,}",
        "?" if one["remaining"] is None else f"{'~' if one.get('remaining_estimated') else ''}{one['remaining']:,}",
        f"{one['rate']:,.0f}",
        _duration(one["eta_seconds"]),
    ]


def _source_row(one: Mapping[str, Any]) -> list[str]:
    snapshot = one["snapshot"]
    return [
        one["name"],
        one["lsn"] or "",
        "?" if one["lag_bytes"] is None else _size(one["lag_bytes"]),
        "?" if one["lag_seconds"] is None else f"{one['lag_seconds']:,.1f}",
        f"{snapshot['table']} {snapshot['chunks_done']}/{snapshot['chunks']}" if snapshot else "",
    ]


def show_dead_letters(
    migration: str,
    entries: Sequence[Entry],
    given_up: Sequence[GivenUp] = (),
    keys: Mapping[str, Mapping[str, object]] = {},
) -> None:
    """Print the dead letters, one a line and not as a table: an operator copies the names, which may be long.

    `keys` has the key columns of the rows by event name, for events whose key can be decoded.
    """
    if not entries and not given_up:
        print(f"{migration}: no dead letters")
    for entry in entries:
        key = _key(keys.get(entry.name, {}))
        line = f"{entry.recorded_at:%Y-%m-%d %H:%M:%S}Z  {printable(entry.reason)}"
        print(f"{printable(entry.name)}  {line}{f'  {key}' if key else ''}")
    for one in given_up:
        name = one.name if one.name.isprintable() else repr(one.name)
        print(f"{name}  {one.since.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z  {printable(one.reason)}")


def show_comparisons(found: Sequence[Comparison]) -> None:
    """Print the differences between tables and their topics, one key a line."""
    for one in found:
        for what, keys in (("missing in the topic", one.missing), ("extra in the topic", one.extra)):
            for key in keys:
                print(f"{_key(key)}  {what}")
        for key, columns in zip(one.differing, one.columns, strict=True):
            print(f"{_key(key)}  differs in {printable(', '.join(columns))}")
        busy = f"; {one.unsettled:,} changed during every comparison" if one.unsettled else ""
        print(
            f"{printable(one.table)} in {one.database}: {one.rows:,} rows compared, {len(one.missing):,} missing"
            f" in the topic, {len(one.extra):,} extra, {len(one.differing):,} differing{busy}"
        )


def _key(columns: Mapping[str, object]) -> str:
    texts = ((printable(name), str(value)) for name, value in columns.items())
    return " ".join(f"{name}={text if text.isprintable() else repr(text)}" for name, text in texts)


def show_dry_run(result: Mapping[str, Any]) -> None:
    """Print the counts of a dry run."""
    console = tables.console()
    console.print(
        f"{result['migration']}: {result['changes']:,} of {result['events']:,} events ask for a change; "
        f"{result['remaining']:,} rows of {result['database']} would be changed now. Nothing was written, and its SQL"
        f" was not executed: `headrace try {result['migration']} --key …` does that for one row, and rolls it back.",
        soft_wrap=not console.is_terminal,
        highlight=False,
    )
    rows = [[reason, f"{count:,}"] for reason, count in sorted(result["skipped"].items())]
    rows += [[f"dead letter: {reason}", f"{count:,}"] for reason, count in sorted(result["dead_letters"].items())]
    if rows:
        tables.show_table(console, None, ("reason for skip or dead letter", "events"), rows, right=("events",))


def _details(one: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines about one migration that are printed below the table."""
    if one.get("error"):
        yield f"{one['name']}: {one['error']}"
    if one.get("failed"):
        yield f"{one['name']}: {one['failed']}"
    if one.get("throttled_by"):
        yield f"{one['name']}: throttled by {one['throttled_by']}"
    if one["dead_letters"]:
        letters = "1 dead letter" if one["dead_letters"] == 1 else f"{one['dead_letters']:,} dead letters"
        yield f"{one['name']}: {letters}; see `headrace dead-letters list {one['name']}`"
    reported = {"given up": one.get("given_up", 0), "with something to report": one.get("reported", 0)}
    if any(reported.values()):
        counts = ", ".join(f"{count:,} {what}" for what, count in reported.items() if count)
        yield f"{one['name']}: {counts}; see `headrace dead-letters list {one['name']}`"
    partitions: dict[str, list[str]] = {}
    for partition, far in one.get("reached", {}).items():
        partitions.setdefault(far if far.isprintable() else repr(far), []).append(partition)
    for far, those in partitions.items():
        yield f"{one['name']}: passed {far} of partition {', '.join(those)}"
    if one["skipped"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(one["skip_reasons"].items()))
        yield f"{one['name']}: {one['skipped']:,} skipped ({reasons})"
    if one["run"]:
        alive = f"consumers {', '.join(one['members'])}" if one["members"] else "no consumers"
        yield f"{one['name']}: run {one['run']} in database {one['database']}, {alive}"


def _size(count: float) -> str:
    unit = next((unit for unit, limit in _UNITS.items() if count < 1000 * limit), "GB")
    return f"{count / _UNITS[unit]:,.0f} {unit}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
