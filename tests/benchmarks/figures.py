"""Figures of a benchmark: a value, its peer's, and whether the project's target is met."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Target:
    """Inclusive bounds of a figure's value, or of its ratio to the peer if `ratio` is set."""

    at_least: float = -math.inf
    at_most: float = math.inf
    ratio: bool = False

    def met_by(self, number: float) -> bool:
        """Whether `number` (the value, or the ratio) is within the bounds."""
        return self.at_least <= number <= self.at_most

    def __str__(self) -> str:
        what = "ratio" if self.ratio else "value"
        bounds = [f"{what} >= {self.at_least:g}"] if math.isfinite(self.at_least) else []
        if math.isfinite(self.at_most):
            bounds.append(f"{what} <= {self.at_most:g}")
        return " and ".join(bounds)


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    `peer` is the same figure of the system compared with, or None. The ratio is value / peer, so that more is better;
    if less is better (`smaller`), peer / value.
    """

    name: str
    value: float
    unit: str
    peer: float | None = None
    target: Target | None = None
    smaller: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times better than the peer."""
        if not self.peer or not self.value:
            return None
        return self.peer / self.value if self.smaller else self.value / self.peer

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target, or without the peer that it needs."""
        if self.target is None:
            return None
        number = self.ratio if self.target.ratio else self.value
        return None if number is None else self.target.met_by(number)

    def document(self) -> dict[str, Any]:
        """Return the figure as a document of bench.json."""
        return {
            "name": self.name,
            "value": _rounded(self.value),
            "unit": self.unit,
            "peer": _rounded(self.peer),
            "ratio": _rounded(self.ratio),
            "target": str(self.target) if self.target else None,
            "met": self.met,
        }


def write(figures: Iterable[Figure], path: Path) -> None:
    """Write bench.json atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps([figure.document() for figure in figures], indent=2) + "\n", encoding="utf-8")
    new.replace(path)


def table(figures: Iterable[Figure]) -> Table:
    """Return the table for display."""
    lines = Table(title="headrace compared with its peers", title_justify="left")
    lines.add_column("name", no_wrap=True)
    for heading in ("value", "unit", "peer", "ratio"):
        lines.add_column(heading, justify="left" if heading == "unit" else "right")
    lines.add_column("target")
    lines.add_column("met")
    for figure in figures:
        lines.add_row(
            figure.name,
            displayed(figure.value),
            figure.unit,
            "" if figure.peer is None else displayed(figure.peer),
            "" if figure.ratio is None else f"{figure.ratio:.2f}",
            str(figure.target or ""),
            {None: "", True: "yes", False: "NO"}[figure.met],
        )
    return lines


def _rounded(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.5g}")


def displayed(number: float) -> str:
    """Return a number as text: whole from 1,000 on, else with three digits."""
    return f"{number:,.0f}" if abs(number) >= 999.5 else f"{number:.3g}"
