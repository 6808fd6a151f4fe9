"""Types of schemas/codec/extension, which exists if headrace was installed with a C compiler."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from schemas.events import Unchanged

VERSION: int

class Row(Sequence[bytes | Unchanged | None]):
    """A row of the stream, read lazily from its message; equal to the list of its values."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> bytes | Unchanged | None: ...  # type: ignore[override]
    def __iter__(self) -> Iterator[bytes | Unchanged | None]: ...

def tuple_row(data: bytes, pos: int, count: int, /) -> tuple[Row, int] | None:
    """Return the row of `count` columns at `pos` and its end; None if there is no such row of texts."""

def copy_data(buffer: bytes | bytearray, /) -> tuple[bytes, int, int]:
    """Return the lines of the complete CopyData messages at the start of `buffer`, their number, and the bytes used."""

def libpq_lines(
    functions: tuple[int, ...], connection: int, room: int, longest: int, some: bool, /
) -> tuple[bytes, int, int]:
    """Return lines of COPY that libpq has received, about a MB at most, their number, and what comes next.

    `functions` are the addresses of PQgetCopyData, PQconsumeInput and PQfreemem, and `connection` is that of the
    PGconn, which no other thread may use meanwhile. Lines end before one of more than `longest` bytes, and before one
    with which they would have more than `room`, unless it is the first; with `some` an earlier call had that one. A
    negative `room` discards all lines.

    What comes next is the size of the line before which they end, which is discarded; or 0: the result, -1: more lines,
    -2: nothing until the server sends more, -3: nothing, since the connection was lost.
    """

def libpq_messages(
    functions: tuple[int, ...], connection: int, most: int, room: int, /
) -> tuple[list[bytes], int, int, int, bytes | None]:
    """Return the data of XLogData frames that libpq has received, at most `most`, and of about `room` bytes.

    Then come the position of the last one (0: there is none), the bytes taken, what PQgetCopyData returned last, and
    the frame of another type with which they end, or None. `functions` and `connection` are those of `libpq_lines`.
    """

def topic_marks(
    records: list[Any],
    ends: dict[int, int],
    reached: dict[int, int],
    known: list[tuple[bytes, bool]],
    learn: Callable[[bytes], object],
    secret: bytes,
    /,
) -> tuple[bytes, list[Any]]:
    """Return what `topic_marks` of consumers/compare/marks.py does."""

def table_marks(keys: list[bytes], rows: list[bytes], place: int, secret: bytes, /) -> bytes:
    """Return what `table_marks` of consumers/compare/marks.py does."""

def scatter(marks: bytes, parts: list[bytearray], /) -> None:
    """Append each mark to its part, as `scatter` of consumers/compare/marks.py does."""

def differences(topic: bytes, later: bytes, table: bytes, /) -> bytes:
    """Return what `differences` of consumers/compare/marks.py does."""

def mentions(value: bytes, needles: tuple[bytes, ...], /) -> bool:
    """Return whether `value` contains one of `needles`."""

def sift(
    records: list[Any],
    start: int,
    topic: str | None,
    partition: int | None,
    next_offset: int,
    needles: tuple[bytes, ...],
    known: dict[bytes, Any],
    room: int,
    /,
) -> tuple[int, int, int, int, list[Any]]:
    """Return the Stretch of consumers/planning/prefilter.py as a plain tuple."""

class Reader:
    """Reads a migration's columns from records of one schema."""

    def __new__(cls, cells: tuple[tuple[int, str | None, Callable[[bytes], object] | None], ...], /) -> Reader:
        """`cells`: for each column its shape, its name if wanted, and its decoder.

        Without a decoder C decodes the cell: an int, a boolean, a text.
        """

    def read(
        self, value: bytes, position: int, /
    ) -> (
        tuple[
            int,
            int,
            tuple[str, ...],
            dict[str, object] | None,
            dict[str, object] | None,
            tuple[dict[str, str], dict[str, str]] | None,
        ]
        | None
    ):
        """Return the fields of the record whose ordinal is at `position`, from `ordinal` to `exact`.

        None if C leaves the bytes to Python.
        """

class Plan:
    """Encodes a table's rows; each method leaves the rows it does not handle to the Python function of its name."""

    def __new__(
        cls,
        columns: tuple[tuple[int, int, int, int, int, bool, bool, bool], ...],
        key: tuple[int, ...],
        header: bytes,
        lacking: bytes,
        names: tuple[bytes, ...],
        python: tuple[
            Callable[..., object],
            Callable[..., object],
            Callable[..., object],
            Callable[..., object],
            Callable[..., object],
        ],
        /,
    ) -> Plan:
        """`columns`: kind, low, high, precision, scale, partial, toastable, lacking of each.

        `header` precedes a key and `lacking` is the array of the lacking columns' names, both encoded, as are `names`.
        `python` are the functions for COPY, key, change, update and delete.
        """

    def copy_marks(self, data: bytes, place: int, secret: bytes, /) -> bytes | None:
        """Return what `copy_marks` of consumers/compare/marks.py does; None if C leaves a row to Python."""

    def encode_copy(self, data: bytes, value_prefix: bytes, /) -> tuple[list[bytes], list[bytes]]: ...
    def key(self, values: Sequence[bytes | Unchanged | None], /) -> bytes: ...
    def change(
        self, prefix: bytes, ordinal: int, ts_ms: int, new: Sequence[bytes | Unchanged | None], /
    ) -> tuple[bytes, bytes]: ...
    def update(
        self,
        prefix: bytes,
        ordinal: int,
        ts_ms: int,
        old: Sequence[bytes | Unchanged | None],
        new: Sequence[bytes | Unchanged | None],
        /,
    ) -> tuple[bytes, bytes]: ...
    def delete(
        self, prefix: bytes, ordinal: int, ts_ms: int, old: Sequence[bytes | Unchanged | None], /
    ) -> tuple[bytes, bytes]: ...
    def changes(
        self,
        messages: list[bytes],
        start: int,
        marker: int,
        identity: bytes,
        prefixes: tuple[bytes | None, bytes | None, bytes | None, bytes | None],
        ordinal: int,
        ts_ms: int,
        whole: bool,
        largest: int,
        records: list[dict[str, Any]],
        /,
    ) -> int:
        """Add the records of changes from `start` on; return how many of the changes, which end before one left over.

        The changes are pgoutput's messages for one relation: its oid ends at byte `marker`, and the bytes of `identity`
        say of each column whether it is in the replica identity. `prefixes` are those of an insert, of updates without
        and with a whole old row, and of a delete, after whose record comes its tombstone; None: such a change is left
        over. The changes' ordinals are consecutive.

        Left over is what C does not handle, an update of the key, a record of more than `largest` bytes and, with
        `whole`, an update that omits a value.
        """
