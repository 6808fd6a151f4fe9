"""The base class of a migration: the tables it reads, its decisions and its writes. One migration is one file.

The runtime calls `decide` for every event, and `apply` for each event that became a Change. It handles progress,
retries, dead letters, ownership and pauses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any, ClassVar, Final

import psycopg
from pydantic import BaseModel, ConfigDict, ValidationError

from consumers.contract.decisions import Change, Decision
from consumers.contract.external import Outside, Pace, WorkStatus
from consumers.contract.suggested_index import SuggestedIndex
from infra.settings.mistakes import Location, close_to, dotted
from infra.settings.model import MigrationSettings, Settings
from schemas.errors import HeadraceError, SettingsError
from schemas.events import ChangeEvent

Cursor = psycopg.Cursor[Any]

API: Final = 1
"""The version of the API, which is what headrace.py lists; another one means that migrations have to be changed."""


class Shared(Enum):
    """How to run a migration whose tables exist in every database, such as those of `gitlab_shared`."""

    REFUSED = "refused"
    PER_DATABASE = "per database"
    """Runs once per database, on the topics of that database."""


class Options(BaseModel):
    """A migration's own settings: the keys of `[migrations.<name>]` that not every migration has.

    A validator that needs other sections finds the whole settings in pydantic's validation context.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    not_deciding: ClassVar[tuple[str, ...]] = ()
    """Options that do not affect which rows change or to what. Consumers of one run may have different values.

    All other options belong to the run, like the version: a consumer with another value is refused.
    """


class InvalidOptions(SettingsError):
    """Correct the settings file."""

    def __init__(self, found: Sequence[tuple[Location, str]]) -> None:
        self.found = tuple(found)
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        super().__init__(f"{found[0][1]}{more}")


class Migration(ABC):
    """A named unit of work over the events of some tables.

    An instance has its options and no other state: two consumers, or a consumer after a crash, must behave alike.
    Three threads call its methods: one calls `decide` to plan the next transaction while a second runs `apply` for the
    current one, and a third calls `remaining`. No method is called concurrently with itself.
    """

    name: ClassVar[str]
    """Unique. Also the file name, the suffix of the consumer group and the key in the settings."""

    version: ClassVar[int] = 1
    """Increase it when you change the meaning of `decide` or `apply`.

    A run records the version it was started with. A consumer with another version is refused, and a running one exits
    once `headrace replay` has started a run with another version: two versions never work on the same run.
    """

    headrace_api: ClassVar[int] = API
    """The version of headrace's API that it is written for; a headrace with another one refuses it. Optional."""

    gitlab_schema: ClassVar[str]
    tables: ClassVar[tuple[str, ...]]
    """The tables it reads, as `schema.table`. All belong to `gitlab_schema`."""

    columns: ClassVar[tuple[str, ...]]
    """The columns `decide` uses. Other columns are not decoded and not in the event."""

    writes: ClassVar[tuple[str, ...]] = ()
    """The tables it writes, as `schema.table`, if not those it reads. Health indicators watch them."""

    privileges: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Privileges it needs per table, such as `{"public.notes": ("SELECT", "INSERT")}`.

    The default is SELECT on the tables it reads, and SELECT and UPDATE on those it writes. `headrace init --sql` prints
    the grants, `headrace check` verifies them.
    """

    optional_columns: ClassVar[tuple[str, ...]] = ()
    """Those of `columns` that events may lack, because they were added later. The row then lacks the key."""

    mentions: ClassVar[tuple[str, ...]] = ()
    """Prefilter: only events that contain at least one of these strings are decided. Empty: all events are.

    An event is skipped without decoding if its bytes contain none of these strings, nor the name of a column in
    `columns` (an event names the columns whose values the stream omitted). Use it only for columns of text, which an
    event contains as in the database. The cost: an event that its producer wrote incorrectly and without the string is
    skipped instead of becoming a dead letter (Kafka's checksum detects bytes corrupted later). Its row is not lost:
    `remaining` counts it, and the migration is not complete until that count is zero.
    """

    suggested_indexes: ClassVar[tuple[SuggestedIndex, ...]] = ()
    """Indexes `headrace check` suggests if finding the remaining rows is slow. headrace never creates them."""

    continuous: ClassVar[bool] = False
    """Whether it runs forever because applications keep adding rows. It is then never complete."""

    own_tables: ClassVar[str] = ""
    """SQL that creates the migration's own tables and their indexes: `CREATE TABLE IF NOT EXISTS headrace.…`.

    It must be idempotent. It runs when a consumer starts and a table is missing; `headrace init --sql` prints it with
    the grants.
    """

    shared: ClassVar[Shared] = Shared.REFUSED
    options_type: ClassVar[type[Options]] = Options

    def __init__(self, options: Options) -> None:
        self.options = options

    @classmethod
    def configure(cls, settings: MigrationSettings) -> Migration:
        """Return the migration with the options from the settings.

        Raises InvalidOptions if an option is unknown or has an invalid value.
        """
        try:
            return cls(cls.options_type.model_validate(dict(settings.options), context=settings.whole))
        except ValidationError as error:
            known = (*cls.options_type.model_fields, *MigrationSettings.model_fields)
            own = f"; options of this migration: {', '.join(cls.options_type.model_fields) or 'none'}"
            raise InvalidOptions(
                [
                    (location, f"unknown key {dotted(location)}{close_to(str(location[-1]), known)}{own}")
                    if one["type"] == "extra_forbidden"
                    else (location, f"{dotted(location)}: {one['msg']}")
                    for one in error.errors(include_url=False, include_input=False)
                    if (location := ("migrations", cls.name, *one["loc"]))
                ]
            ) from None

    @abstractmethod
    def decide(self, event: ChangeEvent) -> Decision:
        """Return the decision for `event`: Skip, Change or DeadLetter.

        Called once per event, and again after a crash or a rollback, so it must do no I/O and keep no state. A column
        is UNCHANGED if the stream omitted its value. Return Change in that case and let the guard in `apply` decide,
        since the event with the value may have been compacted away. An exception, or any other return value, is a bug
        and stops the consumer.
        """

    @abstractmethod
    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:
        """Apply `changes` in order; return how many of them changed something.

        Called with at least one change, in a transaction that holds the ownership lock. It must be idempotent: guard
        every write by a condition on the current row, so that a stale or repeated change has no effect. The same
        changes arrive again after a rollback, and a key may occur twice. It must neither commit nor roll back. A
        database error rolls back everything, including the ledger, and is handled by error_policy. Any other
        exception, or a wrong return value, is a bug and stops the consumer (contract_checks).
        """

    @abstractmethod
    def remaining(self, cursor: Cursor) -> int:
        """Return how many rows the database still has to change. The transaction is read-only.

        Called periodically, concurrently with `apply`. A statement that exceeds the time limit is cancelled, and the
        migration is not complete until a count succeeds.
        """

    def validate(self, cursor: Cursor) -> None:
        """Raise a HeadraceError, which says what to correct, if the migration cannot run in this database.

        Called before a consumer's first transaction and by `headrace check`, in a transaction that is rolled back.
        """
        del cursor

    @property
    def remaining_is_all(self) -> bool:
        """Whether `remaining` also counts rows without an event yet. If so, zero means complete."""
        return False

    def work(self, outside: Outside) -> Iterator[Pace]:
        """Do work outside the database, in small steps. Most migrations have none.

        This is a generator. The runtime advances it between batches and while no events arrive. It must yield at least
        every 0.2 seconds; the yielded Pace says whether there is more to do. The runtime closes it when the consumer
        stops, when the migration is paused or throttled, or when a transaction is not allowed to write: use `finally`
        to end what is in progress. After a database error a new generator starts, so derive the state from the database
        and from the resource itself, and make every step idempotent. Concurrent consumers exclude each other with
        advisory locks of `outside.session`. Write records in `outside.transaction()`. Until the Pace is DONE, the
        migration is neither caught up nor complete.
        """
        del outside
        return iter(())

    def unready(self, settings: Settings) -> Iterator[HeadraceError]:
        """Yield the reasons why `work` cannot start on this machine, for `headrace check`. Must not change anything.

        `work` must raise the first of them, so that an operator sees the same reason in both places.
        """
        del settings
        return iter(())

    def work_status(self, cursor: Cursor) -> WorkStatus:
        """Return the progress of `work` for `headrace status`. Must not write."""
        return WorkStatus(given_up=len(self.given_up(cursor)))

    def given_up(self, cursor: Cursor) -> Sequence[tuple[str, str, datetime]]:
        """Return what `work` gave up as (name, reason, since), for `headrace dead-letters list`. Must not write."""
        del cursor
        return ()

    def take_up(self, cursor: Cursor, names: Sequence[str]) -> int:
        """Make `work` retry what it gave up; return how many. Runs in a transaction with the ownership lock."""
        del cursor, names
        return 0
