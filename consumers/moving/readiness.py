"""What has to be so before repositories are moved: the same at a start, and for `headrace check`."""

from __future__ import annotations

from collections.abc import Iterator

from infra.gitserver_settings import GitserverSettings
from schemas.errors import HeadraceError, SettingsError


class JanitorNotConfirmed(SettingsError):
    """See "Before the start" in docs/moving-repositories.md, then set gitserver.wrong_shard_deletion."""


def missing(gitserver: GitserverSettings) -> Iterator[HeadraceError]:
    """Yield what keeps repositories from being moved, the gravest first. Changes nothing."""
    yield from _of_janitor(gitserver)


def require(gitserver: GitserverSettings) -> None:
    """Raise the first of what is missing."""
    for error in missing(gitserver):
        raise error


def _of_janitor(gitserver: GitserverSettings) -> Iterator[HeadraceError]:
    if gitserver.wrong_shard_deletion is None:
        yield JanitorNotConfirmed(
            "gitserver deletes what lies on another node than md5 gives, and so every moved repository,"
            " unless gitserver.wrong_shard_deletion says otherwise",
            remedy='switch that off on every node, then set it to "off"; or to "follows_cursor" where it asks as'
            ' readers do (docs/moving-repositories.md, "Before the start")',
        )
