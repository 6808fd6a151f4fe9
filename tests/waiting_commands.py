"""The commands that ask a server, and settings whose servers are all at one port."""

from __future__ import annotations

from tests.shells import Shell

WAITING = [
    "check",
    "cleanup main",
    "consume skip_resets",
    "consume skip_resets --dry-run",
    "dead-letters discard skip_resets --all --yes",
    "dead-letters list skip_resets",
    "dead-letters retry skip_resets",
    "finalize skip_resets",
    "guard gitlab_main --database main --yes",
    "history",
    "init --acls --apply",
    "new backfill lower_names --table public.container_repositories --set name=lower(name) --where name<>lower(name)",
    "pace skip_resets --max-rate 5",
    "pause skip_resets",
    "produce main",
    "replay skip_resets",
    "report skip_resets",
    "resume skip_resets",
    "route github.com/a/b --database main",
    "schema expand status_backfills",
    "schema-registry --listen 127.0.0.1:0",
    "snapshot public.container_repositories",
    "status",
    "status --watch",
    "switchover gitlab_main --from main --to other --yes",
    "try skip_resets --key 5",
    "verify public.container_repositories --rows",
    "verify skip_resets",
]
"""Every command that asks a server, with what it needs to come so far."""


def configure(shell: Shell, port: int) -> None:
    sections = (
        f'[databases.{name}]\ndsn = "postgresql://u@127.0.0.1:{port}/d"\ngitlab_schemas = ["gitlab_main", "registry"]\n'
        f"tables = {tables}\n"
        for name, tables in {"main": '["public.container_repositories"]', "other": "[]"}.items()
    )
    pinned = '[migrations.skip_resets]\ndatabase = "main"\n[migrations.status_backfills]\ndatabase = "main"\n'
    shell.write(f'[kafka]\nbootstrap_servers = "127.0.0.1:{port}"\n{"".join(sections)}{pinned}')
