"""What `headrace check` says of migrations: what keeps one from running, and what could be better."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass

from infra.settings.model import Settings
from schemas.errors import printable


@dataclass(frozen=True, slots=True)
class Advice:
    """Something that could be better, the lines that show it, and what would help; with `blocks`, what is missing."""

    where: str
    problem: str
    shown: tuple[str, ...]
    remedy: str
    blocks: bool = False

    def document(self) -> dict[str, object]:
        """Return the advice as `check --json` has it."""
        return {name: value for name, value in asdict(self).items() if name != "blocks"}

    def __str__(self) -> str:
        """The advice as lines for a person."""
        shown = (f"    {line[: len(line) - len(line.lstrip())]}{printable(line)}" for line in self.shown)
        return "\n".join([printable(f"{self.where}: {self.problem}"), *shown, f"  {printable(self.remedy)}"])


Adviser = Callable[[Settings, Collection[str]], Iterable[Advice]]
"""Asked by `headrace check`, of some migrations or, without names, of all; changes nothing."""
