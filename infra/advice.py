"""What `headrace check` advises beside what is missing: it could be left as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from infra.settings import Settings


@dataclass(frozen=True, slots=True)
class Advice:
    """Something that could be better, the lines that show it, and what would help."""

    where: str
    problem: str
    shown: tuple[str, ...]
    remedy: str

    def document(self) -> dict[str, object]:
        """Return the advice as `check --json` has it."""
        return asdict(self)

    def __str__(self) -> str:
        """The advice as lines for a person."""
        return "\n".join([f"{self.where}: {self.problem}", *(f"    {line}" for line in self.shown), f"  {self.remedy}"])


Adviser = Callable[[Settings], Iterable[Advice]]
"""Asked by `headrace check`; changes nothing."""
