"""The contract of a migration: what it reads, what it decides, how it writes. One migration is one file.

The runtime calls `decide` for every event and `apply` for those that came out as a Change; progress, retries,
parking, ownership and pauses are its business, not the migration's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any, ClassVar

import psycopg
from pydantic import BaseModel, ConfigDict, ValidationError

from consumers.contract.decisions import Change, Decision
from consumers.contract.external import Outside, Pace, WorkStatus
from consumers.contract.suggested_index import SuggestedIndex
from infra.settings.model import MigrationSettings, Settings
from schemas.errors import HeadraceError, SettingsError
from schemas.events import ChangeEvent

Cursor = psycopg.Cursor[Any]


class Shared(Enum):
    """What becomes of a migration whose tables are `gitlab_shared`, and so exist in every database."""

    REFUSED = "refused"
    PER_DATABASE = "per database"
    """It runs once for each database, over that database's own topic."""


class Options(BaseModel):
    """A migration's own settings, the keys of `[migrations.<name>]` that are not everybody's.

    What it needs of other sections it takes from pydantic's validation context, which is the settings as a whole.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    not_deciding: ClassVar[tuple[str, ...]] = ()
    """Options that change how the work is done, not which rows change or to what: consumers may differ in these.

    All others belong to the run, as the version does: a consumer with another value is refused by name.
    """


class Migration(ABC):
    """A named unit of work over the events of some tables.

    An instance holds its options and nothing that changes: two members, or a member after a crash, must behave
    alike. Its methods are called from three threads: `decide` from one that plans the next transaction while `apply`
    is at work on the present one in another, and `remaining` from a third. No method is called twice at once.
    """

    name: ClassVar[str]
    """Unique; also the file's name, the consumer group's suffix and the key in the settings."""

    version: ClassVar[int] = 1
    """Raise it when `decide` or `apply` mean something else than before.

    A run records the version that it began with. A consumer of another one is refused by name, and ends by itself
    once `headrace replay` began a run of another: two versions never work on the same run.
    """

    gitlab_schema: ClassVar[str]
    tables: ClassVar[tuple[str, ...]]
    """What it reads, as `schema.table`; all of `gitlab_schema`."""

    columns: ClassVar[tuple[str, ...]]
    """What `decide` looks at: other columns are not decoded and not in the event."""

    writes: ClassVar[tuple[str, ...]] = ()
    """What it writes, as `schema.table`, where that is not what it reads: the health indicators look at these."""

    privileges: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """What it needs on a table, such as `{"public.notes": ("SELECT", "INSERT")}`, where that is not SELECT on what it
    reads and UPDATE on what it writes too: `headrace init --sql` grants it, `headrace check` looks for it.
    """

    optional_columns: ClassVar[tuple[str, ...]] = ()
    """Those of `columns` that events may lack: the table has got them only lately. A row has no such key then."""

    mentions: ClassVar[tuple[str, ...]] = ()
    """Texts of which an event holds at least one if it is to be decided at all; none: every event is.

    An event whose bytes have none of them, nor the name of a column in `columns` (which stands there when the
    stream left its value out), is skipped without decoding. Text stands in an event as it is in the database, so
    this holds for texts, and for nothing else. What it costs: an event that its producer wrote wrongly, and without
    the text, is skipped where it would be parked (bytes damaged later fail Kafka's checksum). It is not lost unseen:
    `remaining` counts its row, and without a zero there the migration is never complete.
    """

    suggested_indexes: ClassVar[tuple[SuggestedIndex, ...]] = ()
    """Indexes that `headrace check` offers where finding the rows that are left is slow; nothing creates them."""

    continuous: ClassVar[bool] = False
    """Whether it goes on for good, as one does that follows what an application writes: it is never complete then."""

    own_tables: ClassVar[str] = ""
    """SQL that makes tables of the migration's own, re-runnable: `CREATE TABLE IF NOT EXISTS headrace.…`, each with
    its indexes. Run when a member starts and one of them is missing; `headrace init --sql` prints it with the grants.
    """

    shared: ClassVar[Shared] = Shared.REFUSED
    options_type: ClassVar[type[Options]] = Options

    def __init__(self, options: Options) -> None:
        self.options = options

    @classmethod
    def configure(cls, settings: MigrationSettings) -> Migration:
        """Return the migration with the options of the settings.

        Raises SettingsError, naming the key, when one is unknown or has a wrong value.
        """
        try:
            return cls(cls.options_type.model_validate(dict(settings.options), context=settings.whole))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            key = ".".join(("migrations", cls.name, *map(str, first["loc"])))
            if first["type"] == "extra_forbidden":
                own = ", ".join(cls.options_type.model_fields) or "none"
                raise SettingsError(
                    f"unknown key {key}", remedy=f"remove it or correct it; options of its own: {own}"
                ) from None
            raise SettingsError(f"{key}: {first['msg']}", remedy="correct the settings file") from None

    @abstractmethod
    def decide(self, event: ChangeEvent) -> Decision:
        """Say what `event` asks for.

        Called once for each event, and again after a crash or a rollback: it does no I/O and remembers nothing.
        A column is UNCHANGED where the stream left it out: answer Change then and let the guard decide, since
        the event that had the value may be compacted away. An exception here is a bug and stops the consumer, and
        so does an answer that is no Decision.
        """

    @abstractmethod
    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:
        """Write what `changes` ask for, in their order; return how many of them changed something, none to all.

        Called within a transaction that holds the ownership, with at least one change. Every write is guarded by
        the migration's own condition on the current row, so a stale or repeated change does nothing: the same
        changes arrive again whenever the transaction is rolled back, and a key may be there twice. It must neither
        commit nor roll back. An error of the database rolls everything back, the ledger too; what then happens is in
        error_policy. Any other exception is a bug and stops the consumer, as a wrong answer does: contract_checks.
        """

    @abstractmethod
    def remaining(self, cursor: Cursor) -> int:
        """Return how many rows are left to change, asked from the database. Writes nothing: the server refuses it.

        Called now and then, beside the work, with a limit of time for each statement; one that takes longer is
        cancelled, and the migration is not complete until a count succeeds.
        """

    @property
    def remaining_is_all(self) -> bool:
        """Whether `remaining` counts even what no event told of yet: zero means complete then, whatever is unread."""
        return False

    def work(self, outside: Outside) -> Iterator[Pace]:
        """Do what lies outside of the database, in small steps; most migrations have nothing there.

        A generator, which the runtime takes a step of between batches and while nothing arrives. Each `yield` gives
        control back, within 0.2 seconds, and says whether there is more to do. It is closed when the member stops,
        the migration is paused or held, or a transaction finds that it may not write: then `finally` ends what is
        under way. After an error of the database it begins anew; so it finds out from the database and from what it
        works on where it is, and every step may be repeated. Members that run at once exclude each other by locks of
        `outside.session`. What is recorded is recorded within `outside.transaction()`. While a step is not DONE the
        migration is neither caught up nor complete.
        """
        del outside
        return iter(())

    def unready(self, settings: Settings) -> Iterator[HeadraceError]:
        """Yield what keeps `work` from starting on this machine, for `headrace check`; changes nothing.

        What it yields first is what `work` raises: an operator meets the same reasons at both.
        """
        del settings
        return iter(())

    def work_status(self, cursor: Cursor) -> WorkStatus:
        """Return what `headrace status` shows of `work`. Writes nothing."""
        return WorkStatus(given_up=len(self.given_up(cursor)))

    def given_up(self, cursor: Cursor) -> Sequence[tuple[str, str, datetime]]:
        """Return what `work` gave up, for `headrace parked list`: name, reason, and since when. Writes nothing."""
        del cursor
        return ()

    def take_up(self, cursor: Cursor, names: Sequence[str]) -> int:
        """Have `work` try again what it gave up, within a transaction that holds the ownership; return how much."""
        del cursor, names
        return 0
