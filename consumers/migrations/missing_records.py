"""Records the repositories on each virtual storage's primary that Praefect's database does not know.

Seed 000. From walks of the storages (docs/storage-walks.md): a repository on a primary gets a record, unless it has
one; what exists stays as it is, secondaries are ignored. A virtual storage's flag is set once a whole walk of its
primary was applied; from then on nothing more is done for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Final, NamedTuple

from pydantic import Field, PrivateAttr

from consumers.contract.decisions import Change, Decision, Park, Skip
from consumers.contract.migration import Cursor, Migration, Options
from consumers.praefect import records, walk_ledger
from consumers.praefect.walk_ledger import End, Latest, Standing, Walk
from infra.postgres import control
from infra.service import log
from infra.settings.model import Settings
from schemas.errors import UsageError
from schemas.events import ChangeEvent, Row

_GONE: Final = Skip("not in the storage any more")
_BEGINS: Final = Skip("a walk begins")
_UNREAD: Final = Skip("a directory that could not be read")
_SECONDARY: Final = Skip("not the primary storage")
_STRANGER: Final = Skip("a virtual storage that the settings do not have")
_UNKNOWN: Final = Park("a kind of row that this version of headrace does not know")
_UNNAMEABLE: Final = Park("a repository whose path cannot be text in a database")
_OUTSIDE: Final = Park("a path that does not stay in the storage")
_TOO_LONG: Final = Park(f"a path too long for a notification of {records.PAYLOAD_BYTES:,} bytes")
_NO_END: Final = Park("an end of a walk without its figures")

_OF_KIND: Final[Mapping[tuple[object, bool], Decision]] = {
    ("start", True): _BEGINS,
    # What could not be read has no time: nobody knows what is in it.
    ("problem", True): _UNREAD,
    ("problem", False): _UNNAMEABLE,
}
"""(kind, whether `modified_at` is null) → what becomes of a row that is neither a repository nor an end."""

_HOUR_MS: Final = 3_600_000


class Primary(NamedTuple):
    """A virtual storage of the settings: the storage whose walks count, and the database that gets the records."""

    storage: str
    database: str


class MissingRecordsOptions(Options):
    """`max_age_hours`: what a walk saw longer ago than this is not recorded any more, since it may be deleted by now.

    The virtual storages and their primaries are those of `[virtual_storages]`. A settings file that has none leaves it
    to the walks to say what a primary is.
    """

    not_deciding: ClassVar[tuple[str, ...]] = ("max_age_hours",)

    max_age_hours: float = Field(default=24, gt=0)
    _primaries: Mapping[str, Primary] = PrivateAttr(default_factory=dict)

    def model_post_init(self, context: Any) -> None:
        """Take the virtual storages from the settings as a whole."""
        if isinstance(context, Settings):
            self._primaries = {
                name: Primary(section.primary, section.database) for name, section in context.virtual_storages.items()
            }

    @property
    def primaries(self) -> Mapping[str, Primary]:
        """Virtual storage → its primary, empty where the settings have none."""
        return self._primaries


class Sighting(NamedTuple):
    """A repository that a walk found on a primary, and when: both times in milliseconds since 1970."""

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
        """Change where a primary has a repository, or a walk of it ends; see Migration.decide."""
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
        """Record what is missing, and count it; set the flag behind the last of a walk. See Migration.apply."""
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
        # A repository that was parked and retried may be the last one that its walk waits for.
        for walk in sorted(walks.keys() | {end.walk for end in ends}):
            changed += self._conclude(cursor, now.run, walk)
        # A flag beside the last repository of a walk is no change of its own.
        return min(changed, len(changes))

    def remaining(self, cursor: Cursor) -> int:
        """Count the virtual storages that are not imported: those of the settings, else those that are known."""
        if self.options.primaries:
            # A database without a name has never had a member, and nothing of any virtual storage.
            database = control.database_name(cursor.connection)
            primaries = self.options.primaries.items()
            names = {name for name, primary in primaries if database in (None, primary.database)}
            if not names:
                raise UsageError(
                    f"no virtual storage in the settings has the database {database}, which {self.name} writes",
                    remedy="correct database under [virtual_storages]",
                )
        else:
            names = records.virtual_storages(cursor) | walk_ledger.walked(cursor)
        return len(names - records.imported(cursor))

    @property
    def remaining_is_all(self) -> bool:
        """Whether the settings say which virtual storages there are; see Migration.remaining_is_all."""
        return bool(self.options.primaries)

    def given_up(self, cursor: Cursor) -> Sequence[tuple[str, str, datetime]]:
        """Return the virtual storages whose last walk did not import them, why, and when it began."""
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
        """Return why the migration has no business with a storage, None where it has."""
        if not is_primary:
            return _SECONDARY
        primary = self.options.primaries.get(walk.virtual_storage)
        if primary is None:
            return _STRANGER if self.options.primaries else None
        return None if primary.storage == walk.storage else _SECONDARY

    def _ours(self, found: Sighting | End, now: _Moment) -> bool:
        """Whether the database is the one that the settings give to the virtual storage."""
        primary = self.options.primaries.get(found.walk.virtual_storage)
        return primary is None or primary.database == now.database

    def _conclude(self, cursor: Cursor, run: int, walk: Walk) -> int:
        """Set the flag, or say why not, when the walk was read to its end; return how many flags were set."""
        if not walk_ledger.standing(cursor, run, walk).ended:
            return 0
        walk_ledger.alone(cursor, walk.virtual_storage)
        standing = walk_ledger.standing(cursor, run, walk)
        walk_ledger.forget_before(cursor, walk)
        lines = log.get(migration=self.name, virtual_storage=walk.virtual_storage, walk_id=walk.walk_id)
        if (reason := _refusal(cursor, walk, standing)) is not None:
            lines.warning("not imported yet: put it right and walk again", reason=reason)
            return 0
        lines.info("all repositories of the primary have records", repositories=standing.applied)
        flags = records.mark_imported(cursor, walk.virtual_storage)
        for text, names in self._differences(cursor):
            lines.warning(text, virtual_storages=sorted(names))
        return flags

    def _differences(self, cursor: Cursor) -> Iterator[tuple[str, set[str]]]:
        """Yield in what the settings and the database differ as to which virtual storages there are."""
        configured = self.options.primaries.keys()
        if not configured:
            return
        known = records.virtual_storages(cursor)
        if strangers := known - configured:
            yield "the database knows virtual storages that the settings do not have; they are left alone", strangers
        if unknown := configured - known - walk_ledger.walked(cursor):
            yield "the settings have virtual storages of which nothing was walked yet", unknown


def _refusal(cursor: Cursor, walk: Walk, standing: Standing) -> str | None:
    """Return why a walk that was read to its end must not count as an import; None when it may."""
    if not standing.complete:
        return "some directories could not be read; the walk's log names them"
    if standing.problems:
        return f"{standing.problems} repositories cannot be recorded by their names; the walk's log names them"
    if standing.promised == 0 and records.hosts_something(cursor, walk.virtual_storage, walk.storage):
        return "it found no repository, but the database knows some on that storage: is it mounted?"
    if standing.applied != standing.promised:
        return (
            f"{standing.applied} of {standing.promised} repositories were applied; others were parked, left out by a "
            "replay, or seen too long ago"
        )
    return None


class _Moment(NamedTuple):
    """What a transaction runs in: the database by its name, the run, and the time in milliseconds since 1970."""

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
    """Whether a later walk has the last word: what it found too comes again, what it did not find is gone.

    Both by number and by time, since the numbers begin anew with a new topic, and clocks differ.
    """
    last = latest.get((sighting.walk.virtual_storage, sighting.walk.storage))
    return last is not None and sighting.walk.walk_id < last.walk_id and sighting.seen_ms < last.begun_ms


def _newest(sightings: Sequence[Sighting]) -> list[records.Found]:
    """Return each repository once, on the storage where it was seen last: its primary may have changed."""
    newest: dict[tuple[str, str], records.Found] = {}
    for each in sorted(sightings, key=lambda sighting: sighting.seen_ms):
        walk = each.walk
        newest[walk.virtual_storage, each.relative_path] = records.Found(
            walk.virtual_storage, each.relative_path, walk.storage
        )
    return list(newest.values())
