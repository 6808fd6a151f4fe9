"""The rules of a switchover: derive the next step, or a refusal, and the rows to write from the state of both sides.

Pure, so that tests/producers/switchover/test_switchover_model.py can explore every reachable state. At no moment may
two databases write a gitlab schema:

- It is first closed on the old owner, under a new id. Only the old owner's row decides whether that may still be taken
  back: once released, it may not, whichever server the other end turns out to be.
- It is released only when the other end is a promoted server that has that id, and so has all that the old side wrote.
- It is released to one server, by the claim which that server wrote after its promotion: other copies may have the same
  rows.
- It is opened only after its release, by naming the copy. That opens everything that the copy was given, so the copy
  may have nothing that the move does not name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from enum import Enum
from uuid import UUID

from infra.postgres.control import Owner
from producers.switchover.endpoints import Changes, Record, Side, Stage, View
from producers.switchover.states import CARRIED, USABLE_ENDS, EndsState, SchemaState, ends_state, others, schema_states
from schemas.gitlab_schemas import PER_DATABASE
from schemas.lazy_dataclass import dataclass

S = SchemaState


class Step(Enum):
    """The steps, in their order; the value describes the result of each."""

    CLOSE = "closed on the old owner"
    REPLAY = "replayed by the copy"
    PROMOTE = "the copy is promoted"
    SLOT = "a slot for the new owner's producer"
    CLAIM = "claimed by the promoted copy"
    RELEASE = "released by the old owner for good"
    OPEN = "named, and open on the new owner"


class Way(Enum):
    """The actions that a refusal advises; the model in the tests follows them exactly."""

    CORRECT_ENDS = "correct the dsn of one of the two"
    NAME_ALL = "name the others too"
    NAME_FEWER = "leave some out"
    TAKE_BACK = "take some back with --abort"
    RUN = "run the switchover"
    STANDBY_AGAIN = "rebuild the copy as a standby"
    OTHER_NAME = "move them to another standby, with a name of its own"
    BY_HAND = "decide by hand"


@dataclass(frozen=True)
class Course:
    """One action of a remedy, with the gitlab schemas that it concerns."""

    way: Way
    gitlab_schemas: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """The reason why no step is possible, and the remedy: as text, and as data in the same order."""

    problem: str
    remedy: str
    courses: tuple[Course, ...]


def next_step(view: View) -> Step | Refusal | None:
    """Return the next step of the move; None: it is complete."""
    if refusal := _refused_ends(view):
        return refusal
    states = schema_states(view, view.move.gitlab_schemas)
    if refusal := _refused_rows(view, states) or _refused_copy(view, states) or _refused_others(view):
        return refusal
    if ends_state(view) is EndsState.STANDBY:
        return _before_promotion(states)
    return _after_promotion(view, states)


def _before_promotion(states: Mapping[str, SchemaState]) -> Step:
    found = set(states.values())
    if S.NOT_STARTED in found:
        return Step.CLOSE
    return Step.REPLAY if S.CLOSED in found else Step.PROMOTE


def _after_promotion(view: View, states: Mapping[str, SchemaState]) -> Step | None:
    found = set(states.values())
    if found == {S.OPEN}:
        return None
    if S.PROMOTED in found and not view.slot:
        return Step.SLOT
    if pending := [each for each, state in states.items() if state in (S.PROMOTED, S.UNCONFIRMED)]:
        return Step.RELEASE if _claimed(view, pending) else Step.CLAIM
    return Step.OPEN if view.slot else Step.SLOT


def _claimed(view: View, gitlab_schemas: Iterable[str]) -> bool:
    return all((record := view.new.records.get(each)) and record.claim for each in gitlab_schemas)


def done_steps(view: View) -> frozenset[Step]:
    """Return the steps that hold for every named gitlab schema."""
    if ends_state(view) not in USABLE_ENDS:
        return frozenset()
    found = set(schema_states(view, view.move.gitlab_schemas).values())
    holds = {
        Step.CLOSE: found <= {S.CLOSED, S.REPLAYED, S.MISSED, *CARRIED},
        Step.REPLAY: found <= {S.REPLAYED, *CARRIED},
        Step.PROMOTE: found <= CARRIED,
        Step.SLOT: found <= CARRIED and (view.slot or found <= {S.OPEN, S.UNCONFIRMED}),
        Step.CLAIM: found <= CARRIED and _claimed(view, view.move.gitlab_schemas),
        Step.RELEASE: found <= {S.RELEASED, S.OPEN},
        Step.OPEN: found <= {S.OPEN, S.UNCONFIRMED},
    }
    return frozenset(step for step, held in holds.items() if held)


def refused_abort(view: View) -> Refusal | None:
    """Return why the named gitlab schemas cannot all be taken back; None: they can, or were already.

    The old side's rows alone make this safe, since they release nothing before the copy has the close; the other checks
    detect a wrong name or dsn.
    """
    if refusal := _refused_ends(view):
        return refusal
    move = view.move
    states = schema_states(view, move.gitlab_schemas)
    if given := [each for each, state in states.items() if state in CARRIED]:
        return Refusal(
            f"{_listed(given)} cannot be taken back: {move.destination} was promoted with that change of owner",
            f"complete it by running the switchover of {_listed(given)} again, without --abort",
            (Course(Way.RUN, tuple(given)),),
        )
    if refusal := _refused_rows(view, states):
        return refusal
    never = [
        each for each in states if states[each] in (S.NOT_STARTED, S.LEFT_BEHIND) and not was_taken_back(view, each)
    ]
    if never:
        return Refusal(
            f"{_listed(never)} was never closed for {move.destination}: {move.source} owns it",
            "name only gitlab schemas that a switchover to that database has closed; --status shows them",
            (Course(Way.NAME_FEWER, tuple(never)),),
        )
    return None


def was_taken_back(view: View, gitlab_schema: str) -> bool:
    """Return whether the gitlab schema's last change is that this same move was taken back."""
    record, move = view.old.record(gitlab_schema), view.move
    return (
        record is not None
        and record.stage is Stage.TAKEN_BACK
        and (record.source, record.destination) == (move.source, move.destination)
    )


# -- refusals --------------------------------------------------------------------------------------------------------


def _refused_ends(view: View) -> Refusal | None:
    state, old, new, move = ends_state(view), view.old, view.new, view.move
    if state in USABLE_ENDS:
        return None
    problem, remedy = {
        EndsState.SAME_SERVER: (
            f"the dsns of {move.source} and {move.destination} lead to the same server",
            f"point databases.{move.destination}.dsn at the copy; if {move.source} failed over to that copy, make"
            " another standby of it and point the dsn there",
        ),
        EndsState.OTHER_CLUSTER: (
            f"{move.destination} is not a physical copy of {move.source}: their system identifiers differ",
            f"point databases.{move.destination}.dsn at a standby of {move.source}",
        ),
        EndsState.SOURCE_IS_STANDBY: (f"{move.source} is a standby", "point its dsn at the primary"),
        EndsState.SOURCE_MISNAMED: (
            f"the settings call it {move.source}, but it is recorded as {old.name}",
            "correct the dsn",
        ),
        EndsState.DESTINATION_MISNAMED: (
            f"the settings call the copy {move.destination}, but it is recorded as {new.name}",
            "correct the dsn",
        ),
        EndsState.DESTINATION_IS_STANDBY: (
            f"the dsn of {move.destination} leads to a standby of it",
            "point it at the primary",
        ),
    }[state]
    return Refusal(problem, remedy, (Course(Way.CORRECT_ENDS),))


_ROWS: Mapping[SchemaState, tuple[str, str]] = {
    S.ELSEWHERE: ("is owned by {owner}, not by {source}", "name the database that owns it with --from"),
    S.UNCLAIMED: (
        "has no owner on {source}",
        "list it under databases.{source}.gitlab_schemas and start `headrace produce {source}` once",
    ),
    S.UNRECORDED: (
        "belongs to {destination} by the rows of {source}, but no switchover between them is on record",
        "see `not recorded` in docs/how-to/switchover.md",
    ),
    S.TWO_OWNERS: (
        "is open on both {source} and {destination}",
        "stop the writers of one of them now, then see `two owners` in docs/how-to/switchover.md",
    ),
    S.STALE: (
        "was released to {destination}, but the server at that dsn does not have it: its rows there are stale",
        "point databases.{destination}.dsn at the server that has it; a new copy needs a name of its own",
    ),
    S.MOVED_ON: (
        "was released to {destination}, which has since given it to {there}",
        "name the database that owns it with --from",
    ),
}
_ROW_WAYS: Mapping[SchemaState, Way] = {
    S.ELSEWHERE: Way.CORRECT_ENDS,
    S.UNCLAIMED: Way.BY_HAND,
    S.UNRECORDED: Way.BY_HAND,
    S.TWO_OWNERS: Way.BY_HAND,
    S.STALE: Way.CORRECT_ENDS,
    S.MOVED_ON: Way.CORRECT_ENDS,
}


def _refused_rows(view: View, states: Mapping[str, SchemaState]) -> Refusal | None:
    """Refuse for the first gitlab schema whose rows make the move impossible with any standby."""
    for each, state in states.items():
        if state in _ROWS:
            owner, there = view.old.owners.get(each), view.new.owners.get(each)
            words = {
                "source": view.move.source,
                "destination": view.move.destination,
                "owner": owner.name if owner else "no database",
                "there": there.name if there else "no database",
            }
            problem, remedy = _ROWS[state]
            course = Course(_ROW_WAYS[state], (each,))
            return Refusal(f"{each} {problem.format(**words)}", remedy.format(**words), (course,))
    return None


def _refused_copy(view: View, states: Mapping[str, SchemaState]) -> Refusal | None:
    """Refuse when the other end was promoted before it was given the named gitlab schemas."""
    late = [each for each, state in states.items() if state in (S.LEFT_BEHIND, S.MISSED)]
    if not late:
        return None
    source, destination = view.move.source, view.move.destination
    closed = [each for each in late if states[each] is S.MISSED]
    back = f"take {_listed(closed)} back with --abort; " if closed else ""
    courses = [Course(Way.TAKE_BACK, tuple(closed))] if closed else []
    carried = sorted(each for each, state in {**states, **others(view)}.items() if state in CARRIED)
    owned = sorted(owned_by_copy(view))
    if not (carried or owned):
        return Refusal(
            f"{destination} was promoted before it was given {_listed(late)}, and lacks what {source} wrote since",
            f"{back}unless {source} failed over to it, rebuild it as a standby of {source}, then run this again",
            (*courses, Course(Way.STANDBY_AGAIN, tuple(late))),
        )
    has = f"owns {_listed(owned)}" if owned else f"was given {_listed(carried)}"
    pending = [each for each in carried if each not in owned]
    first = f"complete the switchover of {_listed(pending)}; " if pending else ""
    if pending:
        courses.insert(0, Course(Way.RUN, tuple(pending)))
    return Refusal(
        f"{destination} is no longer a standby and cannot get {_listed(late)}: it {has},"
        " and has the only current rows of that",
        f"{first}{back}keep {destination} as it is, and move {_listed(late)} to another standby of {source}, with a"
        " name of its own in the settings",
        (*courses, Course(Way.OTHER_NAME, tuple(late))),
    )


def owned_by_copy(view: View) -> Iterable[str]:
    """Yield the gitlab schemas that the other end owns under its own name: only it has their current rows."""
    if view.new.name != view.move.source:
        yield from (each for each in view.new.owners if view.new.owns(each) and each not in PER_DATABASE)


def _refused_others(view: View) -> Refusal | None:
    """Refuse when opening the named gitlab schemas would open one that is not named, or leave it without a side."""
    source, destination = view.move.source, view.move.destination
    rest = others(view)
    if stale := [each for each, state in rest.items() if state in (S.STALE, S.UNRECORDED)]:
        begun = any(view.old.owners[each].name == destination for each in view.move.gitlab_schemas)
        return Refusal(
            f"{_listed(stale)} belongs to {destination} by the rows of {source}, but the server at that dsn does not"
            " have it: its rows there are stale",
            f"point databases.{destination}.dsn at the server that has it; another copy needs a name of its own in the"
            " settings",
            (Course(Way.CORRECT_ENDS, tuple(stale)) if begun else Course(Way.OTHER_NAME, view.move.gitlab_schemas),),
        )
    early = ends_state(view) is EndsState.STANDBY
    pending = {S.CLOSED, S.REPLAYED} if early else {S.PROMOTED, S.RELEASED}
    if left := [each for each, state in rest.items() if state in pending]:
        return Refusal(
            f"{_listed(left)} was closed for {destination} by an earlier switchover, and would be opened with the rest",
            f"name {_listed(left)} too" + (", or take it back with --abort" if early else ""),
            (Course(Way.NAME_ALL, tuple(left)), *((Course(Way.TAKE_BACK, tuple(left)),) if early else ())),
        )
    return None


def _listed(gitlab_schemas: Iterable[str]) -> str:
    return ", ".join(gitlab_schemas)


# -- what is written -------------------------------------------------------------------------------------------------


def closing(view: View, new_id: Callable[[], UUID]) -> Changes:
    """Return the old side's rows that give the named gitlab schemas to the new owner."""
    move = view.move
    states = schema_states(view, move.gitlab_schemas)
    owners = {
        each: Owner(move.destination, view.old.owners[each].epoch + 1)
        for each, state in states.items()
        if state is S.NOT_STARTED
    }
    one = new_id()
    records = {
        each: Record(one, move.source, move.destination, owner.epoch, Stage.CLOSED) for each, owner in owners.items()
    }
    return Changes(owners, records)


def taking_back(view: View) -> Changes:
    """Return the old side's rows that give back to it those gitlab schemas that are closed and not released."""
    move, old = view.move, view.old
    states = schema_states(view, move.gitlab_schemas)
    closed = [each for each, state in states.items() if state in (S.CLOSED, S.REPLAYED, S.MISSED)]
    owners = {each: Owner(move.source, old.owners[each].epoch + 1) for each in closed}
    records = {
        each: replace(old.records[each], epoch=owner.epoch, stage=Stage.TAKEN_BACK) for each, owner in owners.items()
    }
    return Changes(owners, records)


def claiming(view: View, new_id: Callable[[], UUID]) -> Changes:
    """Return the new side's rows that distinguish the promoted copy from other copies with the same rows."""
    records = {each: view.new.records[each] for each in _to_release(view)}
    one = new_id()
    return Changes({}, {each: replace(record, claim=record.claim or one) for each, record in records.items()})


def releasing(view: View) -> Changes:
    """Return the old side's rows that release the named gitlab schemas to the new owner for good."""
    records = {
        each: replace(view.old.records[each], stage=Stage.RELEASED, claim=view.new.records[each].claim)
        for each in _to_release(view)
    }
    return Changes({}, records)


def _to_release(view: View) -> list[str]:
    states = schema_states(view, view.move.gitlab_schemas)
    return [each for each, state in states.items() if state in (S.PROMOTED, S.UNCONFIRMED)]


def opening(view: View, listed: Collection[str]) -> Changes:
    """Return the new side's rows that open the named gitlab schemas, and no others.

    The name opens everything that the copy's rows give it, so rows of gitlab schemas that were taken back or closed
    again meanwhile are corrected first. Of those that every database has, the new owner gets its own of what its
    settings have `listed`.
    """
    move, old, new = view.move, view.old, view.new
    owners = {}
    for each in others(view):
        theirs, ours = new.owners.get(each), old.owners.get(each)
        if theirs is not None and theirs.name == move.destination:
            owners[each] = ours if ours and ours.name != move.destination else Owner(move.source, theirs.epoch)
    owners |= {each: old.owners[each] for each in move.gitlab_schemas}
    for each in PER_DATABASE.intersection(listed):
        if (own := new.owners.get(each)) is not None and own.name == move.source:
            owners[each] = Owner(move.destination, own.epoch + 1)
    records = {each: replace(old.records[each], stage=Stage.OPENED) for each in move.gitlab_schemas}
    return Changes(owners, records, move.destination)


def apply(side: Side, changes: Changes) -> Side:
    """Return the side with the changes applied."""
    return replace(
        side,
        name=changes.name or side.name,
        owners={**side.owners, **changes.owners},
        records={**side.records, **changes.records},
    )
