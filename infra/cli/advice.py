"""Advice that `headrace check` prints: obstacles and possible improvements."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict

from infra.settings.model import Settings
from schemas.errors import printable
from schemas.lazy_dataclass import dataclass


@dataclass(frozen=True)
class Advice:
    """A problem, the lines that show it, and a remedy; `blocks` marks an obstacle."""

    where: str
    problem: str
    shown: tuple[str, ...]
    remedy: str
    blocks: bool = False

    def document(self) -> dict[str, object]:
        """Return the advice in the form of `check --json`."""
        return {name: value for name, value in asdict(self).items() if name != "blocks"}

    def __str__(self) -> str:
        """Return the advice as lines of text."""
        shown = (f"    {line[: len(line) - len(line.lstrip())]}{printable(line)}" for line in self.shown)
        return "\n".join([printable(f"{self.where}: {self.problem}"), *shown, f"  {printable(self.remedy)}"])


Adviser = Callable[[Settings, Collection[str]], Iterable[Advice]]
"""Called by `headrace check` for the named migrations, or for all; changes nothing."""
