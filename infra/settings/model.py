"""Defines the settings of `headrace.toml`; only this package reads the environment.

Environment variables override every value: `HEADRACE_KAFKA__BOOTSTRAP_SERVERS` or `HEADRACE_DATABASES__MAIN__DSN`;
`HEADRACE_<MIGRATION>_ENABLED=false` disables a migration.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from infra.settings import kafka_options
from infra.settings.database_login import DatabaseLogin, Word, without_arguments
from infra.settings.declare import DeclareSettings
from infra.settings.extras.traces_settings import TracesSettings
from infra.settings.extras.web_settings import WebSettings
from infra.settings.gitserver import NODE, NODE_WORDS, GitserverSettings
from infra.settings.mistakes import close_to
from infra.settings.registry_settings import HIDDEN, RegistrySettings
from infra.settings.section import NAME_PATTERN, Name, Section
from infra.settings.storage_settings import STORAGE, STORAGE_WORDS, StorageName, VirtualStorageSettings
from infra.settings.table_patterns import EVERY_TABLE, ambiguous, divided, matches
from schemas import gitlab_schemas as labels
from schemas.errors import SettingsError, UsageError

_TABLE: Final = r"^[^.\s][^.]*\.[\s\S]+$"
_PREFIX: Final = r"^[a-zA-Z0-9][a-zA-Z0-9_-]{0,62}$"
PATTERN_WORDS: Final = {
    NAME_PATTERN: "a name has 1 to 63 lower-case letters, digits and underscores, and starts with a letter",
    _TABLE: "a table's name includes its schema, such as public.projects",
    STORAGE: STORAGE_WORDS,
    _PREFIX: "a prefix has 1 to 63 letters, digits, hyphens and underscores, and no dot",
    NODE: NODE_WORDS,
}

_OF_LABELS: Final = {"gitlab_schemas", "table_schemas", "gitlab_dictionary"}
"""The keys of a database's section that mention gitlab schemas."""

TableName = Annotated[str, StringConstraints(pattern=_TABLE)]
"""`schema.table`: everything after the first dot is the table's name; in `tables`, `*` and `?` are wildcards."""


def _one_value(value: Any) -> Any:
    # Before the union, which reports one error per type.
    if not isinstance(value, str | int | float):
        raise ValueError("must be a string, a number, true or false")
    return value


class KafkaSettings(Section):
    """Kafka's address and options; of `options`, which are librdkafka's, docs/reference/kafka-options.md has all."""

    bootstrap_servers: str = "127.0.0.1:9092"
    """Addresses of brokers, as `host:port`, separated by commas."""
    partitions: int = Field(default=4, ge=1, le=1000)
    """Number of partitions of the topics that headrace creates."""
    replication_factor: int = Field(default=-1, ge=-1)
    """Replicas of the topics that headrace creates; -1: the broker's default."""
    producer_principal: str = "User:headrace-producer"
    """The principal of producers in ACLs; `{source}` in it is the source's name."""
    consumer_principal: str = "User:headrace-consumer-{gitlab_schema}"
    """The principal of consumers in ACLs; `{gitlab_schema}` and `{migration}` in it are the migration's."""
    oauth_token_command: tuple[Word, ...] = Field(default=(), repr=False)
    """A program and its arguments that print a token for SASL OAUTHBEARER; see docs/reference/security.md."""
    # Not in the repr: it may contain sasl.password.
    options: dict[str, Annotated[str | int | float | bool, BeforeValidator(_one_value)]] = Field(
        default_factory=dict, repr=False
    )
    """Options of librdkafka, such as `"security.protocol"`; docs/reference/kafka-options.md says which."""

    @field_validator("options", mode="after")
    @classmethod
    def _checked(cls, value: dict[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
        """Environment variables have no dots: HEADRACE_KAFKA__OPTIONS__SASL_PASSWORD sets sasl.password."""
        return kafka_options.checked(value)

    @model_validator(mode="after")
    def _tokens_are_used(self) -> Self:
        protocol = str(self.options.get("security.protocol", "")).lower()
        mechanism = str(self.options.get("sasl.mechanisms", self.options.get("sasl.mechanism", ""))).lower()
        if self.oauth_token_command and not (protocol.startswith("sasl") and mechanism == "oauthbearer"):
            raise ValueError(
                'oauth_token_command: needs "security.protocol" = "SASL_SSL" and "sasl.mechanisms" = "OAUTHBEARER"'
                " under [kafka.options]"
            )
        return self

    @field_serializer("oauth_token_command", when_used="json")
    def _shown_command(self, value: tuple[str, ...]) -> tuple[str, ...]:
        return without_arguments(value)

    @field_serializer("options", when_used="json")
    def _without_secrets(self, value: dict[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
        return {name: HIDDEN if kafka_options.is_secret(name) else each for name, each in value.items()}


class MetricsSettings(Section):
    """The Prometheus endpoint of a service."""

    port: int = Field(default=0, ge=0, le=65535)
    """Its port; 0: none."""
    address: str = "127.0.0.1"
    """The address that it listens on."""


class LogSettings(Section):
    """The program's own log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The lowest level that is logged; `--verbose` logs everything, whatever this says."""


class SnapshotSettings(Section):
    """Snapshots of tables: in chunks, taking turns with the stream."""

    chunk_rows: int = Field(default=50_000, ge=1)
    """Rows that a worker has in progress, in two chunks: one is read while the other is committed. After a kill, at
    most so many rows of each worker are read again."""
    workers: int = Field(default=1, ge=1, le=32)
    """How many connections read chunks at the same time; more than one is for a source behind a network. See
    docs/explanation/parallel-snapshot.md."""
    max_retained_wal_mb: int = Field(default=256, ge=1)
    """The limit of WAL that the slot retains while its producer runs, in MiB. Well before it, the snapshot yields to
    the stream, and heartbeats become more frequent."""
    max_mb_per_second: float = Field(default=0, ge=0)
    """Maximum of MB that are read per second while tables are copied, as text; 0: no limit."""
    health_seconds: float = Field(default=10, gt=0)
    """Interval of the database health checks while tables are copied."""
    health: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Indicator → its limit, above which it throttles the snapshot, or true for its default; only those named here are
    checked, see docs/how-to/running.md."""


def _matches(table: str, patterns: tuple[str, ...]) -> bool:
    return matches(table, *divided(patterns))


class DatabaseSettings(DatabaseLogin):
    """A database: a source and, for its migrations, the target."""

    gitlab_schemas: tuple[Name, ...] = Field(min_length=1)
    """The gitlab schemas that it may own; by default one that has the database's name and all its tables."""
    tables: tuple[TableName, ...] = ()
    """The captured tables; `*` and `?` are wildcards."""
    table_schemas: dict[TableName, Name] = Field(default_factory=dict)
    """Table, or pattern of tables, → gitlab schema; see docs/reference/gitlab-schemas.md."""
    gitlab_dictionary: Path | None = None
    """GitLab's folder db/docs or its file gitlab_schemas.yml, read when a table's gitlab schema is first asked for."""
    keys: dict[TableName, tuple[str, ...]] = Field(default_factory=dict)
    """Table → the columns of its records' key and of the order of its chunks, if not its primary key."""
    slot: Name | None = None
    """The replication slot; by default the prefix and the database's name."""
    publication: Name = "headrace"
    """The publication."""
    search_path: tuple[str, ...] = ()
    """Schemas where unqualified names resolve during a migration's writes, for the application's triggers. None by
    default: a role that may create objects in such a schema could make headrace run them."""
    allow_unlimited_wal: bool = False
    """Accepts `max_slot_wal_keep_size = -1`: a stopped producer may then fill the source's disk."""
    publish_when_visible: bool = False
    """Publish a transaction only once other sessions see it, for readers that query the row; see
    docs/reference/events.md."""
    complete_rows: bool = False
    """Re-read a row after each update whose record omits a large value; see docs/reference/events.md."""
    upsert_tables: tuple[TableName, ...] = ()
    """Names and patterns of tables whose updates without a whole old row are published as `r`; see
    docs/how-to/reading-with-other-tools.md."""
    snapshot: SnapshotSettings = SnapshotSettings()
    """Snapshots of its tables."""
    spill_directory: Path | None = None
    """Directory that buffers large transactions until they commit; by default that of temporary files."""

    def captures(self, table: str) -> bool:
        """Whether `tables` names `table` (`schema.table`), in full or by a pattern.

        A pattern that matches a partition captures it only as a part of its root: see producers/source/tables.py.
        """
        return _matches(table, self.tables)

    def upserts(self, table: str) -> bool:
        """Whether `upsert_tables` names `table` (`schema.table`), in full or by a pattern."""
        return _matches(table, self.upsert_tables)

    @model_validator(mode="after")
    def _labels_are_known(self) -> Self:
        """Allow gitlab schemas of the dictionary, and custom ones that label at least one table here."""
        if self.gitlab_dictionary is not None:
            return self  # file.py asks the dictionary, whose path is relative to the settings file
        own = set(self.table_schemas.values())
        for label in self.gitlab_schemas:
            if label not in labels.KNOWN and label not in own:
                raise ValueError(
                    f"gitlab_schemas: no gitlab schema is called {label}{close_to(label, labels.KNOWN)}"
                    " (a custom one must label a table under table_schemas)"
                )
        for table, label in self.table_schemas.items():
            if label not in labels.KNOWN and label not in self.gitlab_schemas:
                known = labels.KNOWN | set(self.gitlab_schemas)
                raise ValueError(f'table_schemas."{table}": no gitlab schema is called {label}{close_to(label, known)}')
        return self

    @model_validator(mode="after")
    def _no_pattern_is_ambiguous(self) -> Self:
        if (pair := ambiguous(self.table_schemas)) is not None:
            one, other = (f'"{pattern}" ({self.table_schemas[pattern]})' for pattern in pair)
            raise ValueError(
                f"table_schemas: {one} and {other} can match the same table, and neither is more specific:"
                " narrow one, or name its tables"
            )
        return self


class MigrationSettings(BaseModel):
    """Settings of every migration; the migration's own options follow these and are checked by the migration."""

    model_config = ConfigDict(extra="allow", frozen=True)

    enabled: bool = True
    """false: its consumers end at once. `HEADRACE_<MIGRATION>_ENABLED` in the environment wins."""
    database: Name | None = None
    """The database it writes, if several are configured for its gitlab schema."""
    batch_size: int = Field(default=10_000, ge=1)
    """Events read at a time."""
    sub_batch_size: int = Field(default=100, ge=1)
    """Rows changed per transaction; if adaptive, only at first."""
    pause_ms: int = Field(default=0, ge=0)
    """Pause after each sub-batch that changed something, in milliseconds."""
    max_rate: float = Field(default=0, ge=0)
    """Maximum of rows changed per second by each consumer; 0: no limit."""
    adaptive: bool = True
    """Adapt the number of changes per transaction to its duration, starting with `sub_batch_size`."""
    transaction_ms: int = Field(default=200, ge=1)
    """Target duration of a transaction in milliseconds, if adaptive."""
    continuous: bool = False
    """Follow the topics forever: it never completes."""
    health_seconds: float = Field(default=10, gt=0)
    """Interval of the database health checks."""
    health: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Indicator → its limit, above which it throttles the migration, or false to disable it; see
    docs/how-to/running.md."""
    declare: DeclareSettings | None = None
    """The migration itself, if it has no code."""

    _whole: Settings | None = PrivateAttr(default=None)

    @property
    def options(self) -> Mapping[str, Any]:
        """The migration's own keys."""
        return self.model_extra or {}

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Hide the values of the migration's own keys: only the migration knows which are secrets."""
        for name, value in super().__repr_args__():
            yield name, HIDDEN if name in self.options else value

    @property
    def whole(self) -> Settings | None:
        """The complete settings: options may depend on other sections."""
        return self._whole


class Settings(Section):
    """The whole settings file; built by `load_settings`, which reports every mistake in one line."""

    prefix: Annotated[str, StringConstraints(pattern=_PREFIX)] = "headrace"
    """The first part of all names of topics, consumer groups and transactional ids."""
    plugin_paths: tuple[Path, ...] = ()
    """Folders with migrations of one's own. They are code: a user who may write them can run anything as headrace."""
    kafka: KafkaSettings = KafkaSettings()
    """Kafka's address and options."""
    registry: RegistrySettings = RegistrySettings()
    """A Confluent-compatible schema registry."""
    metrics: MetricsSettings = MetricsSettings()
    """The Prometheus endpoint of a service."""
    web: WebSettings = WebSettings()
    """The console, `headrace web`."""
    log: LogSettings = LogSettings()
    """The program's own log."""
    traces: TracesSettings = TracesSettings()
    """OpenTelemetry traces of consumers' transactions."""
    databases: dict[Name, DatabaseSettings] = Field(default_factory=dict)
    """The databases by name; each is a source and, for its migrations, the target."""
    virtual_storages: dict[StorageName, VirtualStorageSettings] = Field(default_factory=dict)
    """Praefect's virtual storages by name, for storage walks."""
    gitserver: GitserverSettings = GitserverSettings()
    """The nodes between which `rehash_moves` moves repositories."""
    migrations: dict[Name, MigrationSettings] = Field(default_factory=dict)
    """The settings of each migration by name: those of every migration, and its own."""

    _file: Path | None = PrivateAttr(default=None)  # what load_settings has read

    @field_validator("databases", mode="before")
    @classmethod
    def _one_gitlab_schema_by_default(cls, value: Any) -> Any:
        """Put all tables of a database that is not GitLab's into one gitlab schema, with the database's name.

        The section of such a database mentions no gitlab schema. A gitlab schema of the known systems is no default: a
        section of that name which lacks gitlab_schemas is a mistake.
        """
        if not isinstance(value, Mapping):
            return value
        return {
            name: {**section, "gitlab_schemas": [name], "table_schemas": {EVERY_TABLE: name}}
            if isinstance(section, Mapping) and not _OF_LABELS & section.keys() and name not in labels.KNOWN
            else section
            for name, section in value.items()
        }

    @field_validator("virtual_storages")
    @classmethod
    def _sources_differ(cls, value: dict[str, VirtualStorageSettings], info: ValidationInfo) -> dict[str, Any]:
        """Reject equal names: `headrace produce NAME` accepts both kinds, and one topic has the positions of both."""
        for name in sorted(value.keys() & info.data.get("databases", {}).keys()):
            raise ValueError(f"{name} is also the name of a database; rename the database")
        return value

    def database(self, name: str) -> DatabaseSettings:
        """Return the settings of database `name`; raises UsageError with the configured names."""
        try:
            return self.databases[name]
        except KeyError:
            known = ", ".join(sorted(self.databases)) or "none"
            raise UsageError(
                f"no database named {name!r} in the settings (configured: {known})",
                remedy=f"add [databases.{name}], or use one of these names",
            ) from None

    def source_of(self, table: str, option: str) -> str:
        """Return the database that captures `table`; unless one does, raises UsageError, which may name `option`."""
        found = [name for name, database in self.databases.items() if database.captures(table)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(f"{table} is captured from {', '.join(found)}", remedy=f"choose one with {option}")
        raise UsageError(
            f"{table} is captured from no database",
            remedy="name it as the settings do, such as public.projects, or list it under databases.<name>.tables",
        )

    def migration(self, name: str) -> MigrationSettings:
        """Return the settings of migration `name`, or the defaults if the file has none."""
        section = self.migrations.get(name, MigrationSettings()).model_copy()
        section._whole = self
        switch = os.environ.get(f"HEADRACE_{name.upper()}_ENABLED")
        if switch is None:
            return section
        words = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)
        if switch.strip().lower() not in words:
            raise SettingsError(
                f"HEADRACE_{name.upper()}_ENABLED is {switch!r}",
                remedy="set it to true or false, or unset it",
            )
        return section.model_copy(update={"enabled": words[switch.strip().lower()]})


def switches() -> dict[str, str]:
    """Return the environment's `HEADRACE_<MIGRATION>_ENABLED` variables, each with its migration's name."""
    found = re.compile(r"HEADRACE_(?!MIGRATIONS__)(\w+)_ENABLED")
    return {name: match[1].lower() for name in os.environ if (match := found.fullmatch(name))}
