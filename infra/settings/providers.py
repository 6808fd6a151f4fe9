"""Lists who may operate a PostgreSQL server, and what an administrator can do there, for preflight and `init`.

Sources are the providers' own documents, named on the pages of docs/how-to/providers/. `{source}` in a remedy is the
database's name in the settings, `{role}` its role.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from schemas.lazy_dataclass import dataclass

ACCEPTED: Final = "accept it with databases.{source}.allow_unlimited_wal = true"
_BY_ATTRIBUTE: Final = "ALTER ROLE {role} REPLICATION;"


@dataclass(frozen=True)
class Provider:
    """Texts for the operator of one provider's server, and the signs by which the server is recognized."""

    title: str
    administrator: str
    """Who runs the administrator's script."""
    logical: str
    """How wal_level becomes logical."""
    keep_size: str
    """How the WAL that a slot retains is limited."""
    slots: str
    """How more replication slots are allowed."""
    grant: str = _BY_ATTRIBUTE
    """The statement that gives the role the right to replicate."""
    replication_role: str | None = None
    """A role that lets others replicate without the attribute REPLICATION."""
    superuser: bool = False
    """Whether the administrator is a superuser; else some grants of the script may be denied."""
    roles: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    """Roles, settings and functions that only this provider's servers have: one is enough."""

    def replicating(self, role: str) -> str:
        """Return the remedy for a role that may not replicate."""
        quoted = '"' + role.replace('"', '""') + '"'
        return f"run {self.grant.format(role=quoted).rstrip(';')} as {self.administrator}"


SELF_MANAGED: Final = "self_managed"

PROVIDERS: Final[Mapping[str, Provider]] = {
    # Before RDS, all of whose signs it has too.
    "aurora": Provider(
        title="Amazon Aurora",
        administrator="a member of rds_superuser",
        logical="set rds.logical_replication = 1 in the cluster's DB cluster parameter group, and reboot its writer",
        keep_size="set max_slot_wal_keep_size in the DB cluster parameter group where it is offered, or " + ACCEPTED,
        slots="raise max_replication_slots in the DB cluster parameter group, and reboot the writer",
        grant="GRANT rds_replication TO {role};",
        replication_role="rds_replication",
        functions=("aurora_version",),
    ),
    "rds": Provider(
        title="Amazon RDS",
        administrator="a member of rds_superuser",
        logical="set rds.logical_replication = 1 in the instance's DB parameter group, and reboot the instance",
        keep_size="set max_slot_wal_keep_size in the instance's DB parameter group, or " + ACCEPTED,
        slots="raise max_replication_slots in the instance's DB parameter group, and reboot the instance",
        grant="GRANT rds_replication TO {role};",
        replication_role="rds_replication",
        roles=("rds_superuser", "rds_replication"),
        settings=("rds.logical_replication",),
    ),
    "cloudsql": Provider(
        title="Google Cloud SQL",
        administrator="a member of cloudsqlsuperuser, such as postgres",
        logical="set the flag cloudsql.logical_decoding = on, which restarts the instance",
        keep_size="Cloud SQL has no such limit: alert on the instance's disk, and " + ACCEPTED,
        slots="raise the flag max_replication_slots, which restarts the instance",
        roles=("cloudsqlsuperuser",),
        settings=("cloudsql.logical_decoding",),
    ),
    "alloydb": Provider(
        title="Google AlloyDB",
        administrator="a member of alloydbsuperuser, such as postgres",
        logical="set the flag alloydb.logical_decoding = on, which restarts the instance",
        keep_size="AlloyDB has no such limit: alert on the cluster's storage, and " + ACCEPTED,
        slots="raise the flag max_replication_slots, which restarts the instance",
        roles=("alloydbsuperuser",),
        settings=("alloydb.logical_decoding",),
    ),
    "azure": Provider(
        title="Azure Database for PostgreSQL",
        administrator="the server's administrator, a member of azure_pg_admin",
        logical="set the server parameter wal_level to LOGICAL, and restart the server",
        keep_size="Azure fixes it at -1: alert on the server's storage, and " + ACCEPTED,
        slots="raise the server parameter max_replication_slots, and restart the server",
        roles=("azure_pg_admin",),
    ),
    "supabase": Provider(
        title="Supabase",
        administrator="postgres",
        logical="ask Supabase's support: its projects have wal_level = logical",
        keep_size="set max_slot_wal_keep_size with `supabase --experimental postgres-config update`, or " + ACCEPTED,
        slots="raise max_replication_slots with `supabase --experimental postgres-config update`, which restarts it",
        roles=("supabase_admin",),
    ),
    "neon": Provider(
        title="Neon",
        administrator="a member of neon_superuser, such as the project's default role",
        logical="enable logical replication in the project's settings, which restarts its computes",
        keep_size="Neon drops inactive slots instead: " + ACCEPTED,
        slots="drop a slot that is no longer used, or ask Neon's support",
        roles=("neon_superuser",),
        settings=("neon.timeline_id",),
    ),
    SELF_MANAGED: Provider(
        title="PostgreSQL",
        administrator="a superuser",
        logical="run ALTER SYSTEM SET wal_level = 'logical' and restart PostgreSQL",
        keep_size="set a limit, such as ALTER SYSTEM SET max_slot_wal_keep_size = '50GB', and SELECT pg_reload_conf(),"
        " or " + ACCEPTED,
        slots="raise max_replication_slots and restart PostgreSQL",
        superuser=True,
    ),
}
"""Name, as in `databases.NAME.provider` and `headrace init --provider` → provider, in the order of recognition."""
