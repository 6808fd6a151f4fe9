"""Which of several databases owns a gitlab schema now: each is asked for its own rows, as the fence reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infra import control, postgres
from infra.settings import Settings
from schemas.errors import OwnershipMoved, SettingsError, Unavailable
from schemas.gitlab_schemas import GITLAB_SHARED


@dataclass(frozen=True, slots=True)
class Claim:
    """What a database says: the name it has on record, the owner of the gitlab schema, and whether it can write."""

    database: str
    name: str | None
    owner: str | None
    standby: bool

    @property
    def owns(self) -> bool:
        return self.name == self.database == self.owner and not self.standby


def owning_database(settings: Settings, databases: Sequence[str], gitlab_schema: str) -> str | None:
    """Return the one of `databases` that owns `gitlab_schema`; None when nobody ever claimed it, or several do.

    A database that does not answer is none. Raises OwnershipMoved, naming who says what, when those that answer
    say that another one owns it: a switchover is under way, or the one that has it now does not answer.
    """
    claims = [claim for name in databases if (claim := _claim(settings, name, gitlab_schema)) is not None]
    owning = [claim.database for claim in claims if claim.owns]
    if len(owning) == 1:
        return owning[0]
    if not owning and any(claim.owner is not None for claim in claims):
        said = ", ".join(f"{claim.database} says {claim.owner}" for claim in claims if claim.owner is not None)
        raise OwnershipMoved(
            f"no database that answers owns {gitlab_schema} at this moment ({said})",
            remedy="start again once `headrace switchover` is complete and the owner answers",
        )
    return None


def _claim(settings: Settings, database: str, gitlab_schema: str) -> Claim | None:
    dsn = settings.database(database).dsn.get_secret_value()
    try:
        with postgres.connect(dsn, name="ask for the owner") as connection, postgres.translated(dsn):
            row = connection.execute("SELECT pg_is_in_recovery()").fetchone()
            owner = control.owners(connection).get(gitlab_schema)
            return Claim(
                database,
                control.database_name(connection),
                owner.name if owner is not None else None,
                row == (True,),
            )
    except (Unavailable, SettingsError):
        return None


def require_not_elsewhere(settings: Settings, database: str, gitlab_schema: str) -> None:
    """Raise OwnershipMoved when `database`, which does not answer, was followed by another as the owner.

    For a member that waits for its database: the one that owns the gitlab schema now is not there to be waited for.
    """
    others = [
        name
        for name, section in settings.databases.items()
        if name != database and gitlab_schema in section.gitlab_schemas and gitlab_schema != GITLAB_SHARED
    ]
    try:
        owner = owning_database(settings, others, gitlab_schema)
    except OwnershipMoved:
        return
    if owner is not None:
        raise OwnershipMoved(
            f"{database} does not answer, and {gitlab_schema} is owned by {owner}",
            remedy="start it again: it follows the owner, unless its settings name a database",
        )
