"""A key changed to another text that its type considers equal is a delete and a create; the row exists once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.producers.folding import ops, require_order, text
from tests.producers.sources import Source, running

pytestmark = pytest.mark.stack


@dataclass(frozen=True)
class Case:
    """A key's type, and pairs of texts that are equal by the type's operator and lie in any two partitions."""

    type: str
    pairs: tuple[tuple[str, str], ...]


CASES = {
    "numerics": Case("numeric", tuple((f"{n}.50", f"{n}.5") for n in range(1, 9))),
    "floats": Case("float8", (("0", "-0"),)),
    "citexts": Case("citext", tuple((f"Ann {n}", f"ann {n}") for n in range(1, 9))),
    "intervals": Case("interval", tuple((f"{n} days", f"{n * 24}:00:00") for n in range(3, 11))),
    "jsons": Case("jsonb", tuple((f'{{"a": {n}.0}}', f'{{"a": {n}.00}}') for n in range(1, 9))),
}


def test_equal_key_with_another_text_is_a_delete_and_a_create(new_source: Callable[..., Source]) -> None:
    made = "".join(f"CREATE TABLE {name} (k {case.type} PRIMARY KEY, v int);" for name, case in CASES.items())
    source = new_source(f"CREATE EXTENSION citext; {made}", *(f"public.{name}" for name in CASES), partitions=3)
    with running(source) as producer:
        for name, case in CASES.items():
            for old, _ in case.pairs:
                source.connection.execute(f"INSERT INTO {name} VALUES ('{old}', 1)".encode())
        producer.caught_up()
        for name, case in CASES.items():
            for old, new in case.pairs:
                changed = source.connection.execute(f"UPDATE {name} SET k = '{new}', v = 2 WHERE k = '{old}'".encode())
                assert changed.rowcount == 1
        producer.caught_up()
    apart = 0
    for name, case in CASES.items():
        records = source.records(f"public.{name}")
        require_order(records)
        source.require_equal(f"public.{name}")
        by_text = {text(record.key["k"]): record for record in records}
        apart += sum(by_text[old].partition != by_text[new].partition for old, new in case.pairs if old in by_text)
        for old, new in case.pairs:
            if name != "floats":
                assert ops(records, k=old)[-2:] == ["d", "tombstone"], old
                assert ops(records, k=new) == ["c"], new
    assert apart > 0
