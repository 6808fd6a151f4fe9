"""The switchover command: moves gitlab schemas to another database."""

from __future__ import annotations

import json as jsonlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.cli.options import Config, Json, Reason, Yes
from schemas.errors import UsageError

if TYPE_CHECKING:
    from infra.settings.model import Settings
    from infra.state.history import Actor
    from producers.switchover.endpoints import Move, View

WithoutStandby = Annotated[
    list[str] | None,
    typer.Option(
        "--without-standby",
        metavar="NAME",
        help="A standby (slot or application_name) that is never promoted; it may lack the change of owner.",
    ),
]


def switchover(
    gitlab_schemas: Annotated[
        list[str], typer.Argument(metavar="SCHEMA...", help="The schemas to move, such as gitlab_ci.")
    ],
    source: Annotated[str, typer.Option("--from", help="The database that owns them.")],
    destination: Annotated[str, typer.Option("--to", help="A physical standby of that database, the new owner.")],
    config: Config = None,
    promoted: Annotated[
        bool, typer.Option("--promoted", help="Do not promote the standby: your own tooling does it when asked.")
    ] = False,
    abort: Annotated[
        bool, typer.Option("--abort", help="Take the move back; possible until the standby is promoted.")
    ] = False,
    status: Annotated[bool, typer.Option("--status", help="Show the progress; change nothing.")] = False,
    guard: Annotated[
        bool, typer.Option("--guard", help="First make their tables reject writes where they are not owned.")
    ] = False,
    seconds: Annotated[float, typer.Option("--timeout", help="Seconds that one step may take.", min=1)] = 60.0,
    without: WithoutStandby = None,
    reason: Reason = None,
    json: Json = False,
    yes: Yes = False,
) -> None:
    """Move gitlab schemas to a physical standby and promote it.

        headrace switchover gitlab_ci --from main --to ci

    Closes them on the old owner, waits until the standby has replayed that, promotes it, creates the slot for its
    producer, and opens them there. If killed or failed, repeat the same command: it continues. Producers and migrations
    wait meanwhile, and continue with the new owner exactly where they were. docs/how-to/switchover.md has the whole
    procedure, and what to do in every state that --status shows.

    With --guard, a side that does not own a table rejects an application's writes to it (`headrace guard`).
    """
    if abort and status:
        raise UsageError("--abort and --status exclude each other")
    if guard and (abort or status):
        raise UsageError("--guard needs a move", remedy="use `headrace guard` to guard the tables only")
    from infra.service import log
    from infra.settings.file import load_settings
    from infra.state.history import operator
    from producers.switchover.endpoints import Move

    actor = operator(reason)
    settings = load_settings(config)
    move = Move(tuple(dict.fromkeys(gitlab_schemas)), source, destination)
    log.configure(settings.log)
    if not (yes or abort or status):
        typer.confirm(
            f"Move {', '.join(move.gitlab_schemas)} from {source} to {destination}? It cannot be taken back"
            " once the standby is promoted",
            abort=True,
            err=True,
        )
    _switch(
        settings, move, promoted=promoted, abort=abort, status=status, guard=guard, seconds=seconds,
        without=frozenset(without or ()), actor=actor, json=json,
    )  # fmt: skip


def _switch(
    settings: Settings,
    move: Move,
    *,
    promoted: bool,
    abort: bool,
    status: bool,
    guard: bool,
    seconds: float,
    without: frozenset[str],
    actor: Actor,
    json: bool,
) -> None:
    from infra.service.signals import stop_on_signals
    from producers.commands.guarding import install_on_both_sides
    from producers.switchover.step_limit import StepLimit
    from producers.switchover.steps import opened

    limit = StepLimit(seconds)
    with (
        stop_on_signals(limit.stop, overdue=limit.cancel, cut=limit.cut),
        opened(settings, move, limit, promote=not promoted, without=without, actor=actor) as moving,
    ):
        if guard and not (status or abort):
            moving.require_possible()  # before a table is changed
            install_on_both_sides(settings, move, seconds=seconds, stop=limit.stop, actor=actor)
        view = moving.look() if status else moving.abort() if abort else moving.run()
    _print(status_report(view), move, aborted=abort, json=json)


def _print(report: dict[str, Any], move: Move, *, aborted: bool, json: bool) -> None:
    if json:
        typer.echo(jsonlib.dumps(report))
        return
    source, destination = move.source, move.destination
    for step in report["steps"]:
        typer.echo(f"{'done' if step['done'] else 'open'}  {step['name']:8} {step['what']}")
    typer.echo(f"{destination} is {report['ends']}, seen from {source}")
    for each in report["states"]:
        typer.echo(f"{each['gitlab_schema']}: {each['state']}")
    if report["complete"]:
        typer.echo(
            f"{destination} owns {', '.join(move.gitlab_schemas)}; remove the standby from {source}"
            f" (synchronized_standby_slots, the standby's slot), or the producer of {source} waits for it"
        )
    elif not aborted and report["refused"]:
        typer.echo(f"refused: {report['refused']}; {report['remedy']}")


def status_report(view: View) -> dict[str, Any]:
    """Return what --status --json prints: `refused` is the reason why a run would do nothing, `remedy` what to do."""
    from producers.switchover import rules
    from producers.switchover.rules import Refusal, Step
    from producers.switchover.states import USABLE_ENDS, ends_state, schema_state

    move, ends, step = view.move, ends_state(view), rules.next_step(view)
    done = rules.done_steps(view)
    return {
        "gitlab_schemas": list(move.gitlab_schemas),
        "from": move.source,
        "to": move.destination,
        "complete": step is None,
        "ends": ends.value,
        "states": [
            {
                "gitlab_schema": each,
                "state": schema_state(view, each).value if ends in USABLE_ENDS else "not known",
            }
            for each in move.gitlab_schemas
        ],
        "next": step.name.lower() if isinstance(step, Step) else None,
        "refused": step.problem if isinstance(step, Refusal) else None,
        "remedy": step.remedy if isinstance(step, Refusal) else None,
        "steps": [{"name": each.name.lower(), "what": each.value, "done": each in done} for each in Step],
    }
