"""The states of a switchover: of its two ends, and of each gitlab schema that it names.

Pure: derived from the rows of both sides. docs/how-to/switchover.md describes each state under its value here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

from producers.switchover.endpoints import Record, Stage, View
from schemas.gitlab_schemas import PER_DATABASE


class EndsState(Enum):
    """The relation of the two databases; the first three allow a switchover."""

    STANDBY = "a standby"
    PROMOTED = "promoted"
    NAMED = "named"
    SAME_SERVER = "the same server"
    OTHER_CLUSTER = "another cluster"
    SOURCE_IS_STANDBY = "the source is a standby"
    SOURCE_MISNAMED = "the source has another name"
    DESTINATION_MISNAMED = "the destination has another name"
    DESTINATION_IS_STANDBY = "a standby of the new owner"


class SchemaState(Enum):
    """The progress of one gitlab schema's move, and whether it can continue."""

    NOT_STARTED = "not started"
    CLOSED = "closed"
    REPLAYED = "replayed"
    PROMOTED = "promoted"
    RELEASED = "released"
    OPEN = "open"
    UNCONFIRMED = "open, not released"
    LEFT_BEHIND = "left behind"
    MISSED = "missed"
    STALE = "stale"
    MOVED_ON = "moved on"
    ELSEWHERE = "owned by another"
    UNCLAIMED = "owned by no database"
    UNRECORDED = "not recorded"
    TWO_OWNERS = "two owners"


USABLE_ENDS = frozenset({EndsState.STANDBY, EndsState.PROMOTED, EndsState.NAMED})
CARRIED = frozenset({SchemaState.PROMOTED, SchemaState.RELEASED, SchemaState.OPEN, SchemaState.UNCONFIRMED})
"""The promoted copy was given the gitlab schema: it cannot be taken back, and the copy must be kept."""


def ends_state(view: View) -> EndsState:
    """Return the relation of the two databases, by their own records."""
    old, new, move = view.old, view.new, view.move
    checks = (
        (view.same_server, EndsState.SAME_SERVER),
        (old.system != new.system, EndsState.OTHER_CLUSTER),
        (old.standby, EndsState.SOURCE_IS_STANDBY),
        (old.name != move.source, EndsState.SOURCE_MISNAMED),
        (new.name not in (move.source, move.destination), EndsState.DESTINATION_MISNAMED),
        (new.standby and new.name == move.destination, EndsState.DESTINATION_IS_STANDBY),
        (new.standby, EndsState.STANDBY),
        (new.name == move.source, EndsState.PROMOTED),
    )
    return next((state for holds, state in checks if holds), EndsState.NAMED)


def schema_state(view: View, gitlab_schema: str) -> SchemaState:
    """Return the state of one gitlab schema, between ends that allow a switchover."""
    owner, move = view.old.owners.get(gitlab_schema), view.move
    if owner is None:
        return SchemaState.UNCLAIMED
    if owner.name not in (move.source, move.destination):
        return SchemaState.ELSEWHERE
    open_there = view.new.name == move.destination and view.new.owns(gitlab_schema)
    if owner.name == move.source:
        return _kept(view, open_there)
    record = view.old.record(gitlab_schema)
    if record is None or (record.source, record.destination) != (move.source, move.destination):
        return SchemaState.UNRECORDED
    if record.stage is Stage.CLOSED and record.claim is not None:
        return SchemaState.UNRECORDED  # the old side is itself the copy that claimed it
    return _given(view, gitlab_schema, record, open_there)


def _kept(view: View, open_there: bool) -> SchemaState:
    """Return the state of a gitlab schema that the old owner still has."""
    if open_there:
        return SchemaState.TWO_OWNERS
    return SchemaState.NOT_STARTED if view.new.standby else SchemaState.LEFT_BEHIND


def _given(view: View, gitlab_schema: str, record: Record, open_there: bool) -> SchemaState:
    """Return the state of a gitlab schema that was given to the new owner; `record` is the old side's."""
    new = view.new
    released = record.stage is not Stage.CLOSED
    theirs = new.records.get(gitlab_schema)
    same = theirs is not None and theirs.id == record.id and theirs.stage is not Stage.TAKEN_BACK
    # A server with a record of a release is the old side or a copy of it, and cannot be the one that wrote the claim.
    claimed = theirs is not None and theirs.claim == record.claim and theirs.stage is not Stage.RELEASED
    ends = ends_state(view)
    if ends is EndsState.STANDBY:
        state = SchemaState.STALE if released else SchemaState.REPLAYED if same else SchemaState.CLOSED
    elif ends is EndsState.PROMOTED:
        if released:
            state = SchemaState.RELEASED if same and claimed else SchemaState.STALE
        else:
            state = SchemaState.PROMOTED if same else SchemaState.MISSED
    elif open_there:
        # A schema that the new side owns by another move came back to it later, which the old side cannot know. But a
        # server that owns it by an earlier change of owner is an outdated copy. A release that was recorded by hand has
        # no claim, and its epoch may differ from the other side's.
        earlier = record.claim is not None and new.owners[gitlab_schema].epoch < view.old.owners[gitlab_schema].epoch
        if released:
            state = SchemaState.OPEN if not earlier and (claimed or not same) else SchemaState.STALE
        else:
            state = SchemaState.UNCONFIRMED if same else SchemaState.UNRECORDED
    else:
        state = SchemaState.MOVED_ON if released else SchemaState.MISSED
    return state


def schema_states(view: View, gitlab_schemas: Iterable[str]) -> Mapping[str, SchemaState]:
    return {each: schema_state(view, each) for each in gitlab_schemas}


def others(view: View) -> Mapping[str, SchemaState]:
    """Return the states of the gitlab schemas that one of the two databases records, but the move does not name.

    Without those that every database has.
    """
    known = view.old.owners.keys() | view.new.owners.keys()
    return schema_states(view, sorted(known - set(view.move.gitlab_schemas) - PER_DATABASE))
