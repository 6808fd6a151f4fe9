"""The compiled reader of events against the Python one, on whole and on broken records: the same event or error."""

from __future__ import annotations

import gc
import weakref
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.codec import implementation
from schemas.codec.projection import Project, _read_exact, _read_names, projection
from schemas.codec.row_encoder import encode_names, encode_texts
from schemas.errors import Malformed
from schemas.events import ChangeEvent, Op
from schemas.positions import Lsn
from tests.schemas.codec.rows import Sample, samples
from tests.schemas.codec.test_decoder import encoder_of, notes, same_row, written

pytestmark = pytest.mark.skipif(implementation.compiled is None, reason="installed without a C compiler")


def both(schema: Any, wanted: list[str]) -> tuple[Project, Project]:
    with patch.object(implementation, "compiled", None):
        python = projection(schema, wanted)
    return python, projection(schema, wanted)


def outcome(project: Project, value: bytes) -> ChangeEvent | str:
    try:
        return project(value)
    except Malformed as error:
        return str(error)


def assert_same(readers: tuple[Project, Project], value: bytes, *, stepped_over: bool = False) -> None:
    """With columns that are `stepped_over` what stands in them is of no interest, and Python looks at more of it."""
    python, compiled = (outcome(project, value) for project in readers)
    if stepped_over and isinstance(python, str):
        return
    if isinstance(python, str) or isinstance(compiled, str):
        assert python == compiled
        return
    assert (python.op, python.source, python.ts_ms) == (compiled.op, compiled.source, compiled.ts_ms)
    assert same_row(python.before, compiled.before)
    assert same_row(python.after, compiled.after)


@given(samples(unchanged=True, rows=2), st.data())
@settings(deadline=None)
def test_events_are_the_same(sample: Sample, data: st.DataObject) -> None:
    encoder = encoder_of(sample)
    names = [column.name for column in sample.relation.columns]
    all_of_it = both(encoder.value_schema, names)
    some = both(encoder.value_schema, data.draw(st.lists(st.sampled_from(names), unique=True)))
    for _, value in written(sample):
        assert_same(all_of_it, value)
        assert_same(some, value)
    _, value = data.draw(st.sampled_from(written(sample)))
    mutated = bytearray(value)
    for _ in range(data.draw(st.integers(1, 3))):
        mutated[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    for broken in (bytes(mutated), value[: data.draw(st.integers(0, len(value)))], value + b"\0"):
        assert_same(all_of_it, broken)
        assert_same(some, broken, stepped_over=True)


@given(st.binary(max_size=80))
@example(b"\x02\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(b"\x02\xfe\xff\xff\xff\xff\xff\xff\xff\x7f")
def test_rows_of_any_bytes_are_the_same(junk: bytes) -> None:
    encoder = notes()
    readers = both(encoder.value_schema, ["id", "note", "state"])
    value = written_note(b"open")
    start = value[: value.index(b"\0\0\x02") + 2]  # up to what follows the names and the old row
    for tail in (junk, b"\x02" + junk, b"\x02\x02" + junk, b"\x02\x02\x02\x02\x00" + junk):
        assert_same(readers, start + tail)


def written_note(state: bytes) -> bytes:
    encoder = notes()
    prefix = encoder.event_prefix(Op.CREATE, lsn=Lsn(1), xid=1, ts_ms=1)
    return encoder.change(prefix, 1, 1, [b"1", None, state])[1]


@given(st.binary(max_size=60), st.lists(st.binary(max_size=4), max_size=4))
def test_mentions_are_found_as_in_python(value: bytes, needles: list[bytes]) -> None:
    assert implementation.compiled.mentions(value, tuple(needles)) is any(needle in value for needle in needles)


def test_a_reader_is_forgotten_with_what_makes_its_values() -> None:
    class Maker:
        reader: Any = None

        def __call__(self, cell: bytes) -> object:
            return cell

    maker = Maker()
    maker.reader = implementation.compiled.Reader(((1, "id", maker),))
    gone = weakref.ref(maker)
    del maker
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), TypeError),
        ((5,), TypeError),
        (((5,),), TypeError),
        ((((9, "id", None),),), ValueError),
        ((((-1, "id", None),),), ValueError),
        ((((5, "id", None),),), ValueError),
        ((((1, True, "id", None),),), TypeError),
    ],
)
def test_reader_with_invalid_arguments_is_refused(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        implementation.compiled.Reader(*arguments)


@pytest.mark.parametrize("arguments", [(), (b"a",), ("a", 0), (b"a", "0"), (b"a", b"")])
def test_read_with_invalid_arguments_is_refused(arguments: tuple[Any, ...]) -> None:
    reader = implementation.compiled.Reader(())
    with pytest.raises(TypeError):
        reader.read(*arguments)
    assert reader.read(b"\0\0\0\0\0\0", 0) == (0, 0, (), None, None, None)
    for position in (-1, 7, 1 << 70):
        assert reader.read(b"\0\0\0\0\0\0", position) is None


@pytest.mark.parametrize("arguments", [(), (b"a",), ("a", ()), (b"a", [b"a"]), (b"a", ("a",))])
def test_mentions_with_invalid_arguments_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        implementation.compiled.mentions(*arguments)


@given(st.lists(st.text(max_size=70), max_size=5), st.data())
def test_names_of_columns_left_out_are_read_as_in_python(names: list[str], data: st.DataObject) -> None:
    written = encode_names(names)
    at = data.draw(st.integers(0, len(written)))
    broken = written[:at] + data.draw(st.binary(max_size=2)) + written[at + data.draw(st.integers(0, 2)) :]
    read = implementation.compiled.Reader(()).read
    assert read(b"\0\0" + written + b"\0\0\0", 0) == (0, 0, tuple(names), None, None, None)
    found = read(b"\0\0" + broken + b"\0\0\0", 0)
    if found is not None:
        assert found[2] == _read_names(broken + b"\0\0\0", 0)[0]


@given(st.lists(st.tuples(st.text(max_size=70), st.text(max_size=70)), max_size=4), st.data())
def test_exact_texts_are_read_as_in_python(texts: list[tuple[str, str]], data: st.DataObject) -> None:
    one = encode_texts([(name, text.encode()) for name, text in texts])
    written = b"\x02" + one + one
    at = data.draw(st.integers(0, len(written)))
    broken = written[:at] + data.draw(st.binary(max_size=2)) + written[at + data.draw(st.integers(0, 2)) :]
    read = implementation.compiled.Reader(()).read
    assert read(b"\0\0\0\0\0" + written, 0) == (0, 0, (), None, None, (dict(texts), dict(texts)))
    found = read(b"\0\0\0\0\0" + broken, 0)
    if found is not None:
        assert (found[5], len(broken)) == _read_exact(broken, 0)


def test_a_block_of_names_with_its_size_is_left_to_python() -> None:
    assert implementation.compiled.Reader(()).read(b"\0\0\x01\x04\x02a\0\0\0\0", 0) is None
    assert implementation.compiled.Reader(()).read(b"\0\0\0\0\0\x02\x01\x08\x02a\x02b\0\0", 0) is None
