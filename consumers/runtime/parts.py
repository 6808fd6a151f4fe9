"""The parts of a consumer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field

from consumers.contract.migration import Migration
from consumers.delivery.dead_letter_topic import DeadLetterWriter
from consumers.delivery.group import Group
from consumers.ledger.progress import Ledger
from consumers.ledger.target import Connection, Target
from consumers.pace.pacing import Pacing
from consumers.planning.effect_traces import EffectTraces
from consumers.planning.planner import Planner
from consumers.runtime.circuit_breaker import CircuitBreaker
from consumers.runtime.completion import Completion
from consumers.runtime.external_driver import Working
from consumers.runtime.ledger_positions import LedgerPositions
from consumers.runtime.throttle import Throttle
from consumers.runtime.totals import Totals
from schemas.lazy_dataclass import dataclass


@dataclass(frozen=True)
class Parts:
    """The parts of one consumer of a migration in `database`; `consumers.runtime.assembly` creates them."""

    migration: Migration
    database: str
    topics: Sequence[str]
    planner: Planner
    ledger: Ledger
    group: Group
    target: Target
    positions: LedgerPositions
    dead_letter_writer: DeadLetterWriter
    pacing: Pacing
    breaker: CircuitBreaker
    throttle: Throttle
    working: Working
    completion: Completion
    prepare: Callable[[Connection], None]
    """Creates headrace's own schema where it is missing, and verifies it."""
    not_captured: Sequence[str] = ()
    """The tables that the migration reads but that these settings do not capture."""
    traces: EffectTraces | None = None
    totals: Totals = field(default_factory=Totals)
