"""Records the repositories on each virtual storage's primary that are missing in Praefect's database.

Seed 000. Reads walks of the storages (docs/how-to/storage-walks.md): a repository on a primary gets a record unless it
has one; existing records stay as they are, secondaries are ignored. A virtual storage's flag is set once a whole walk
of its primary was applied; after that its events are skipped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Final, NamedTuple

from pydantic import Field, PrivateAttr

from consumers.contract.decisions import Change, DeadLetter, Decision, Skip
from consumers.contract.migration import Cursor, Migration, Options
from consumers.praefect import records, walk_ledger
from consumers.praefect.walk_ledger import End, Latest, Standing, Walk
from infra.postgres import control
from infra.service import log
from infra.settings.model import Settings
from schemas.errors import UsageError
from schemas.events import ChangeEvent, Row

_GONE: Final = Skip("no longer in the storage")
_BEGINS: Final = Skip("start of a walk")
_UNREAD: Final = Skip("unreadable directory")
_SECONDARY: Final = Skip("not the primary storage")
_STRANGER: Final = Skip("virtual storage not in the settings")
_UNKNOWN: Final = DeadLetter("kind of row unknown to this version of headrace")
_UNNAMEABLE: Final = DeadLetter("the repository's path is not valid text in the database")
_OUTSIDE: Final = DeadLetter("the path leads out of the storage")
_TOO_LONG: Final = DeadLetter(f"the path is too long for a notification of {records.PAYLOAD_BYTES:,} bytes")
_NO_END: Final = DeadLetter("end of a walk without its counts")

_OF_KIND: Final[Mapping[tuple[object, bool], Decision]] = {
    ("start", True): _BEGINS,
    # A directory that could not be read has no time, since its content is unknown.
    ("problem", True): _UNREAD,
    ("problem", False): _UNNAMEABLE,
}
"""(kind, whether `modified_at` is null) → the decision on a row that is neither a repository nor an end."""

_HOUR_MS: Final = 3_600_000


class Primary(NamedTuple):
    """A virtual storage in the settings: the storage whose walks count, and the database that gets the records."""

    storage: str
    database: str


class MissingRecordsOptions(Options):
    """Options of missing_records.

    The virtual storages and their primaries are those of `[virtual_storages]`. If the settings have none, the walks
    determine the primaries.
    """

    not_deciding: ClassVar[tuple[str, ...]] = ("max_age_hours",)

    max_age_hours: float = Field(default=24, gt=0)
    """Repositories that a walk saw longer ago are not recorded, since they may be deleted by now."""
    _primaries: Mapping[str, Primary] = PrivateAttr(default_factory=dict)

    def model_post_init(self, context: Any) -> None:
        """Read the virtual storages from the whole settings."""
        if isinstance(context, Settings):
            self._primaries = {
                name: Primary(section.primary, section.database) for name, section in context.virtual_storages.items()
            }

    @property
    def primaries(self) -> Mapping[str, Primary]:
        """Virtual storage → its primary; empty if the settings have none."""
        return self._primaries


class Sighting(NamedTuple):
    """A repository that a walk found on a primary; both times are in milliseconds since 1970."""

    walk: Walk
    relative_path: str
    seen_ms: int
    begun_ms: int


class MissingRecords(Migration):
    """Create database records for repositories missing them."""

    name = "missing_records"
    gitlab_schema = "praefect"
    tables = ("public.storage_walk",)
    columns = (
        "virtual_storage",
        "storage",
        "relative_path",
        "kind",
        "walk_id",
        "is_primary",
        "modified_at",
        "repositories",
        "problems",
        "complete",
        "partitions",
    )
    writes = ("public.repositories", "public.storage_repositories", "public.virtual_storages")
    privileges: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "public.repositories": ("SELECT", "INSERT"),
        "public.storage_repositories": ("SELECT", "INSERT"),
        "public.virtual_storages": ("SELECT", "INSERT", "UPDATE"),
    }
    own_tables = walk_ledger.TABLES
    options_type = MissingRecordsOptions
    options: MissingRecordsOptions

    def decide(self, event: ChangeEvent) -> Decision:
        """Return Change for a repository on a primary and for the end of its walk; see Migration.decide."""
        row = event.after
        if row is None:
            return _GONE
        walk = Walk(str(row["virtual_storage"]), str(row["storage"]), int(str(row["walk_id"])))
        ignored = self._ignored(walk, row["is_primary"] is True)
        if ignored is not None:
            return ignored
        match row["kind"]:
            case "repository":
                return _found(Sighting(walk, str(row["relative_path"]), event.ts_ms, event.source.ts_ms))
            case "end":
                return _ended(walk, row, event.source.ts_ms)
        return _OF_KIND.get((row["kind"], row["modified_at"] is None), _UNKNOWN)

    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:
        """Record missing repositories and count them; set the flag after the end of a walk. See Migration.apply."""
        now = _Moment.of(cursor)
        settled = records.imported(cursor)
        found = [change.values["found"] for change in changes]
        wanted = [
            each
            for each in found
            if isinstance(each, Sighting | End) and self._ours(each, now) and each.walk.virtual_storage not in settled
        ]
        latest = walk_ledger.latest(cursor)
        oldest = now.ms - self.options.max_age_hours * _HOUR_MS
        current = [
            each
            for each in wanted
            if isinstance(each, Sighting) and each.seen_ms >= oldest and not _superseded(each, latest)
        ]
        schema = records.schema_of(cursor)
        missing = records.missing(cursor, schema, _newest(current))
        changed = sum(records.record(cursor, schema, batch) for batch in records.statements(missing))
        walks = Counter(each.walk for each in current)
        walk_ledger.count(cursor, now.run, walks)
        ends = sorted(each for each in wanted if isinstance(each, End))
        for end in ends:
            walk_ledger.alone(cursor, end.walk.virtual_storage)
            walk_ledger.reach(cursor, now.run, end)
        # A dead letter that is retried may be the last repository that its walk waits for.
        for walk in sorted(walks.keys() | {end.walk for end in ends}):
            changed += self._conclude(cursor, now.run, walk)
        # A flag that is set with the last repository of a walk is not counted as a change.
        return min(changed, len(changes))

    def remaining(self, cursor: Cursor) -> int:
        """Count the virtual storages that are not imported: those in the settings, else those in the database."""
        if self.options.primaries:
            # A database without a name has never had a consumer, and so no records of a virtual storage.
            database = control.database_name(cursor.connection)
            primaries = self.options.primaries.items()
            names = {name for name, primary in primaries if database in (None, primary.database)}
            if not names:
                raise UsageError(
                    f"{self.name} writes database {database}, which no virtual storage in the settings has",
                    remedy="correct database under [virtual_storages]",
                )
        else:
            names = records.virtual_storages(cursor) | walk_ledger.walked(cursor)
        return len(names - records.imported(cursor))

    @property
    def remaining_is_all(self) -> bool:
        """Whether the settings list the virtual storages; see Migration.remaining_is_all."""
        return bool(self.options.primaries)

    def given_up(self, cursor: Cursor) -> Sequence[tuple[str, str, datetime]]:
        """Return the virtual storages that their last walk did not import, with the reason and the walk's start."""
        imported = records.imported(cursor)
        given_up = []
        for walk, run, begun in walk_ledger.last(cursor):
            standing = walk_ledger.standing(cursor, run, walk)
            if walk.virtual_storage in imported or not standing.ended:
                continue
            if (reason := _refusal(cursor, walk, standing)) is not None:
                given_up.append((walk.virtual_storage, f"not imported by walk {walk.walk_id}: {reason}", begun))
        return given_up

    def _ignored(self, walk: Walk, is_primary: bool) -> Skip | None:
        """Return why the migration ignores a storage, or None if it does not."""
        if not is_primary:
            return _SECONDARY
        primary = self.options.primaries.get(walk.virtual_storage)
        if primary is None:
            return _STRANGER if self.options.primaries else None
        return None if primary.storage == walk.storage else _SECONDARY

    def _ours(self, found: Sighting | End, now: _Moment) -> bool:
        """Whether the database is the virtual storage's in the settings."""
        primary = self.options.primaries.get(found.walk.virtual_storage)
        return primary is None or primary.database == now.database

    def _conclude(self, cursor: Cursor, run: int, walk: Walk) -> int:
        """Set the flag once the walk was read to its end, or log why not; return how many flags were set."""
        if not walk_ledger.standing(cursor, run, walk).ended:
            return 0
        walk_ledger.alone(cursor, walk.virtual_storage)
        progress = walk_ledger.standing(cursor, run, walk)
        walk_ledger.forget_before(cursor, walk)
        lines = log.get(migration=self.name, virtual_storage=walk.virtual_storage, walk_id=walk.walk_id)
        if (reason := _refusal(cursor, walk, progress)) is not None:
            lines.warning("virtual storage not imported", reason=reason, remedy="fix the cause, then walk again")
            return 0
        lines.info("virtual storage imported", repositories=progress.applied)
        flags = records.mark_imported(cursor, walk.virtual_storage)
        for text, names in self._differences(cursor):
            lines.warning(text, virtual_storages=sorted(names))
        return flags

    def _differences(self, cursor: Cursor) -> Iterator[tuple[str, set[str]]]:
        """Yield how the virtual storages in the settings and in the database differ."""
        configured = self.options.primaries.keys()
        if not configured:
            return
        known = records.virtual_storages(cursor)
        if strangers := known - configured:
            yield "virtual storages ignored: in the database, but not in the settings", strangers
        if unknown := configured - known - walk_ledger.walked(cursor):
            yield "virtual storages in the settings not walked yet", unknown


def _refusal(cursor: Cursor, walk: Walk, progress: Standing) -> str | None:
    """Return why a walk that was read to its end must not count as an import, or None if it may."""
    if not progress.complete:
        return "some directories could not be read; the walk's log lists them"
    if progress.problems:
        return f"{progress.problems} repositories have names that cannot be recorded; the walk's log lists them"
    if progress.promised == 0 and records.hosts_something(cursor, walk.virtual_storage, walk.storage):
        return "the walk found no repositories, but the database has some on that storage: is it mounted?"
    if progress.applied != progress.promised:
        return (
            f"{progress.applied} of {progress.promised} repositories were applied; the others became dead letters, were"
            " left out by a replay, or were seen too long ago"
        )
    return None


class _Moment(NamedTuple):
    """A transaction's context: the database's name, the run, and the time in milliseconds since 1970."""

    database: str
    run: int
    ms: int

    @classmethod
    def of(cls, cursor: Cursor) -> _Moment:
        cursor.execute(
            "SELECT d.name, coalesce(m.run, 0), (extract(epoch FROM now()) * 1000)::bigint FROM headrace.database d"
            " LEFT JOIN headrace.migrations m ON m.name = %s",
            (MissingRecords.name,),
        )
        row = cursor.fetchone()
        assert row is not None
        return cls(*row)


def _found(sighting: Sighting) -> Decision:
    path = sighting.relative_path
    if "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        return _OUTSIDE
    if not records.recordable(sighting.walk.virtual_storage, path):
        return _TOO_LONG
    return Change((sighting.walk.virtual_storage, path), {"found": sighting})


def _ended(walk: Walk, row: Row, begun_ms: int) -> Decision:
    path, partitions = str(row["relative_path"]), row["partitions"]
    repositories, problems = row["repositories"], row["problems"]
    if not (isinstance(partitions, int) and isinstance(repositories, int) and isinstance(problems, int)):
        return _NO_END
    if not path[1:].isdecimal():
        return _NO_END
    end = End(walk, int(path[1:]), partitions, repositories, problems, row["complete"] is True, begun_ms)
    return Change((walk.virtual_storage, path), {"found": end})


def _superseded(sighting: Sighting, latest: Mapping[tuple[str, str], Latest]) -> bool:
    """Whether a later walk supersedes a sighting: it sends the repository again if it is still there.

    Compares both number and time, since the numbers restart with a new topic, and clocks differ.
    """
    last = latest.get((sighting.walk.virtual_storage, sighting.walk.storage))
    return last is not None and sighting.walk.walk_id < last.walk_id and sighting.seen_ms < last.begun_ms


def _newest(sightings: Sequence[Sighting]) -> list[records.Found]:
    """Return each repository once, on the storage where it was last seen: its primary may have changed."""
    newest: dict[tuple[str, str], records.Found] = {}
    for each in sorted(sightings, key=lambda sighting: sighting.seen_ms):
        walk = each.walk
        newest[walk.virtual_storage, each.relative_path] = records.Found(
            walk.virtual_storage, each.relative_path, walk.storage
        )
    return list(newest.values())
