"""The settings file `headrace.toml`, read by pydantic-settings: the only room that reads the environment.

Every value may also come from the environment, which wins: `HEADRACE_KAFKA__BOOTSTRAP_SERVERS` or
`HEADRACE_DATABASES__MAIN__DSN`; a migration's off switch is `HEADRACE_<MIGRATION>_ENABLED=false`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self

import psycopg
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    StringConstraints,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from infra.settings import kafka_options
from infra.settings.gitserver import NODE, NODE_WORDS, GitserverSettings
from infra.settings.mistakes import close_to
from infra.settings.section import Section
from schemas import gitlab_schemas as labels
from schemas.errors import SettingsError, UsageError

HIDDEN: Final = "**********"
"""What stands for a secret where settings are shown, as pydantic writes it for its own."""

NAME_PATTERN: Final = r"^[a-z][a-z0-9_]{0,62}$"
_TABLE: Final = r"^[^.\s][^.]*\.[\s\S]+$"
_PREFIX: Final = r"^[a-zA-Z0-9][a-zA-Z0-9_-]{0,62}$"
_STORAGE: Final = r"^[^/\x00-\x1f\x7f]+$"
PATTERN_WORDS: Final = {
    NAME_PATTERN: "a name has 1 to 63 lower-case letters, digits and underscores, and begins with a letter",
    _TABLE: "a table is named with its schema, such as public.projects",
    _STORAGE: "a storage's name has at least one character, and no slash",
    _PREFIX: "a prefix has 1 to 63 letters, digits, hyphens and underscores, and no dot",
    NODE: NODE_WORDS,
}

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""A name that is safe in a topic, a slot, a transactional id and a file: what databases and migrations have."""

TableName = Annotated[str, StringConstraints(pattern=_TABLE)]
"""`schema.table`: behind the first dot is the table's name, whatever it has; where tables are chosen, `*` and `?` stand
for any characters."""

StorageName = Annotated[str, StringConstraints(pattern=_STORAGE)]
"""Gitaly's and Praefect's own names; no slash, since `virtual storage/storage` names what a walk reads."""


def _one_value(value: Any) -> Any:
    # Before the union, whose own complaint is one for each of its types.
    if not isinstance(value, str | int | float):
        raise ValueError("must be a string, a number, true or false")
    return value


class KafkaSettings(Section):
    """How to reach the broker; `options` are librdkafka's own, as infra/settings/kafka_options.py allows."""

    bootstrap_servers: str = "127.0.0.1:9092"
    partitions: int = Field(default=4, ge=1, le=1000)
    replication_factor: int = Field(default=-1, ge=-1)
    producer_principal: str = "User:headrace-producer"
    """Whom ACLs let produce; `{source}` in it is the source's name, for a principal each."""
    consumer_principal: str = "User:headrace-consumer-{gitlab_schema}"
    """Whom ACLs let consume; `{gitlab_schema}` and `{migration}` in it are the migration's."""
    options: dict[str, Annotated[str | int | float | bool, BeforeValidator(_one_value)]] = Field(
        default_factory=dict, repr=False
    )
    """Not in the repr: there may be a sasl.password among them."""

    @field_validator("options", mode="after")
    @classmethod
    def _checked(cls, value: dict[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
        """An environment variable's name has no dots: HEADRACE_KAFKA__OPTIONS__SASL_PASSWORD is sasl.password."""
        return kafka_options.checked(value)

    # As JSON alone, which is for people: pydantic-settings builds Settings from its sections' dumps as Python.
    @field_serializer("options", when_used="json")
    def _without_secrets(self, value: dict[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
        return {name: HIDDEN if kafka_options.is_secret(name) else each for name, each in value.items()}


class RegistrySettings(Section):
    """A Confluent-compatible registry; with no url, schemas are kept in a compacted topic."""

    url: str = Field(default="", repr=False)
    """Not in the repr: it may have a user and a password."""
    user: str = ""
    password: SecretStr = SecretStr("")

    @field_serializer("url", when_used="json")
    def _without_credentials(self, value: str) -> str:
        return re.sub(r"(?<=://)[^/]*@", f"{HIDDEN}@", value)


class MetricsSettings(Section):
    """Where a service answers Prometheus; port 0: nowhere."""

    port: int = Field(default=0, ge=0, le=65535)
    address: str = "127.0.0.1"


class SnapshotSettings(Section):
    """How a table is first read: in chunks, taking turns with the stream."""

    chunk_rows: int = Field(default=50_000, ge=1)
    max_retained_wal_mb: int = Field(default=256, ge=1)
    """The most log that the slot is to hold back while its producer works, in MiB.

    Well before it copying gives way to the stream, and heartbeats come sooner.
    """


class DatabaseSettings(Section):
    """A database that is read as a source and that, for its migrations, is written as the target."""

    dsn: SecretStr
    gitlab_schemas: tuple[Name, ...] = Field(min_length=1)
    tables: tuple[TableName, ...] = ()
    table_schemas: dict[TableName, Name] = Field(default_factory=dict)
    keys: dict[TableName, tuple[str, ...]] = Field(default_factory=dict)
    slot: Name | None = None
    publication: Name = "headrace"
    search_path: tuple[str, ...] = ()
    """Schemas in which a migration's writes look up bare names, for the sake of the application's own triggers.

    By default none: whoever may create in such a schema could have headrace run what they made there.
    """
    allow_unlimited_wal: bool = False
    """Confirms that `max_slot_wal_keep_size = -1` is meant: a stopped producer may then fill the source's disk."""
    publish_when_visible: bool = False
    """Whether a transaction is published only when others see it, for readers that look at the row; see events.md."""
    complete_rows: bool = False
    """Whether a row is read again after each update that leaves a large value out of its record; see events.md."""
    snapshot: SnapshotSettings = SnapshotSettings()
    spill_directory: Path | None = None
    """Where transactions wait that are too large for memory, until they commit; by default with temporary files."""

    @field_validator("dsn")
    @classmethod
    def _dsn_parses(cls, value: SecretStr) -> SecretStr:
        try:
            parts = psycopg.conninfo.conninfo_to_dict(value.get_secret_value())
        except psycopg.ProgrammingError:
            # libpq's own message may quote the password.
            raise ValueError("not a PostgreSQL connection string; expected postgresql://user@host:5432/name") from None
        # A / or @ in a password ends it for libpq: its rest would be a port, host or database, and shown as such.
        ports = str(parts.get("port") or "").split(",")
        if any(port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536) for port in ports):
            raise ValueError("its port is not a number from 1 to 65535 (in a password, / is %2F and @ is %40)")
        if "@" in f"{parts.get('host')}{parts.get('dbname')}":
            raise ValueError("its host or database has an @ (in a password, / is %2F and @ is %40)")
        return value

    @model_validator(mode="after")
    def _labels_are_known(self) -> Self:
        """A gitlab schema is one of the dictionary's, or one's own, which then labels at least one table here."""
        own = set(self.table_schemas.values())
        for label in self.gitlab_schemas:
            if label not in labels.KNOWN and label not in own:
                raise ValueError(
                    f"gitlab_schemas: no gitlab schema is called {label}{close_to(label, labels.KNOWN)}"
                    " (one of your own has to label a table under table_schemas)"
                )
        for table, label in self.table_schemas.items():
            if label not in labels.KNOWN and label not in self.gitlab_schemas:
                known = labels.KNOWN | set(self.gitlab_schemas)
                raise ValueError(f'table_schemas."{table}": no gitlab schema is called {label}{close_to(label, known)}')
        return self


class StorageSettings(Section):
    """One git storage of a virtual storage: a directory, or a Gitaly node by its address (tcp, tls or unix)."""

    path: str | None = None
    address: str | None = None
    token: SecretStr | None = None

    @model_validator(mode="after")
    def _one_way_to_it(self) -> Self:
        if (self.path is None) == (self.address is None):
            raise ValueError("a storage has either a path or an address")
        if self.address and not re.match(r"(tcp|tls)://[^/]+:\d+$|unix:.", self.address):
            raise ValueError("an address is tcp://host:port, tls://host:port or unix:/path")
        return self


class VirtualStorageSettings(Section):
    """What a storage walk reads."""

    database: Name
    primary: StorageName
    storages: dict[StorageName, StorageSettings]

    @model_validator(mode="after")
    def _primary_is_there(self) -> Self:
        if self.primary not in self.storages:
            raise ValueError(f"primary: no storage is called {self.primary}{close_to(self.primary, self.storages)}")
        return self

    def beside(self, directory: Path) -> Self:
        """Return these settings with the storages' paths taken from `directory`, where they are relative."""
        storages = {
            name: one.model_copy(update={"path": str(directory / one.path)}) if one.path else one
            for name, one in self.storages.items()
        }
        return self.model_copy(update={"storages": storages})


class MigrationSettings(BaseModel):
    """What every migration has; a migration's own options stand beside these and are checked by itself."""

    model_config = ConfigDict(extra="allow", frozen=True)

    enabled: bool = True
    database: Name | None = None
    """Which database it writes, where more than one is configured for its gitlab schema."""
    batch_size: int = Field(default=10_000, ge=1)
    sub_batch_size: int = Field(default=100, ge=1)
    pause_ms: int = Field(default=0, ge=0)
    """Rest after each sub-batch that changed something, in milliseconds."""
    max_rate: float = Field(default=0, ge=0)
    """Rows changed in a second at most, by each member; 0: no limit."""
    adaptive: bool = True
    """Whether the number of changes in a transaction follows the time that one takes; `sub_batch_size` is the first."""
    transaction_ms: int = Field(default=200, ge=1)
    """What a transaction is to take, in milliseconds, where it is adaptive."""
    continuous: bool = False
    """Whether it goes on for good: it is never complete then."""
    health_seconds: float = Field(default=10, gt=0)
    """How often the database's health is looked at."""
    health: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Indicator → the limit at which it holds the migration, false to leave it out; see consumers/health."""

    _whole: Settings | None = PrivateAttr(default=None)

    @property
    def options(self) -> Mapping[str, Any]:
        """The migration's own keys."""
        return self.model_extra or {}

    @property
    def whole(self) -> Settings | None:
        """The settings that this is a section of: options may depend on other sections."""
        return self._whole


class Settings(BaseSettings):
    """All of the file. Build it with `load_settings`, which turns every mistake into one line."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="HEADRACE_",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    prefix: Annotated[str, StringConstraints(pattern=_PREFIX)] = "headrace"
    kafka: KafkaSettings = KafkaSettings()
    registry: RegistrySettings = RegistrySettings()
    metrics: MetricsSettings = MetricsSettings()
    databases: dict[Name, DatabaseSettings] = Field(default_factory=dict)
    virtual_storages: dict[StorageName, VirtualStorageSettings] = Field(default_factory=dict)
    gitserver: GitserverSettings = GitserverSettings()
    migrations: dict[Name, MigrationSettings] = Field(default_factory=dict)

    @field_validator("virtual_storages")
    @classmethod
    def _sources_differ(cls, value: dict[str, VirtualStorageSettings], info: ValidationInfo) -> dict[str, Any]:
        """`headrace produce NAME` takes either, and the positions of both stand in one topic."""
        for name in sorted(value.keys() & info.data.get("databases", {}).keys()):
            raise ValueError(f"{name} is a database's name too; rename the database")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file, whose values arrive as arguments."""
        del settings_cls, dotenv_settings, file_secret_settings
        return env_settings, init_settings

    def database(self, name: str) -> DatabaseSettings:
        """Return the settings of database `name`; raises UsageError, listing the names there are."""
        try:
            return self.databases[name]
        except KeyError:
            known = ", ".join(sorted(self.databases)) or "none"
            raise UsageError(
                f"no database named {name!r} in the settings (there: {known})",
                remedy=f"add [databases.{name}] or use one of those names",
            ) from None

    def migration(self, name: str) -> MigrationSettings:
        """Return the settings of migration `name`, the defaults where the file says nothing."""
        section = self.migrations.get(name, MigrationSettings()).model_copy()
        section._whole = self
        switch = os.environ.get(f"HEADRACE_{name.upper()}_ENABLED")
        if switch is None:
            return section
        words = {
            "true": True,
            "1": True,
            "yes": True,
            "on": True,
            "false": False,
            "0": False,
            "no": False,
            "off": False,
        }
        if switch.strip().lower() not in words:
            raise SettingsError(
                f"HEADRACE_{name.upper()}_ENABLED is {switch!r}",
                remedy="set it to true or false, or unset it",
            )
        return section.model_copy(update={"enabled": words[switch.strip().lower()]})


def switches() -> dict[str, str]:
    """Return the environment's switches, `HEADRACE_<MIGRATION>_ENABLED`, with the name of the migration each is for."""
    found = re.compile(r"HEADRACE_(?!MIGRATIONS__)(\w+)_ENABLED")
    return {name: match[1].lower() for name in os.environ if (match := found.fullmatch(name))}
