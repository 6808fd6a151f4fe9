"""The settings file `headrace.toml`, read by pydantic-settings: the only place that reads the environment.

Every value may also come from the environment, which wins: `HEADRACE_KAFKA__BOOTSTRAP_SERVERS` or
`HEADRACE_DATABASES__MAIN__DSN`; a migration's off switch is `HEADRACE_<MIGRATION>_ENABLED=false`.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import psycopg
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from schemas.errors import SettingsError, UsageError

DEFAULT_FILE = Path("headrace.toml")

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
"""A name that is safe in a topic, a slot, a transactional id and a file: what databases and migrations have."""

TableName = Annotated[str, StringConstraints(pattern=r"^[^.\s]+\.[^.\s]+$")]
"""`schema.table`; where tables are chosen, `*` and `?` stand for any characters."""


class Section(BaseModel):
    """A table of the file: an unknown key is an error, so that a misspelt one is never silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class KafkaSettings(Section):
    """How to reach the broker; `options` are librdkafka's own, given to every client."""

    bootstrap_servers: str = "127.0.0.1:9092"
    partitions: int = Field(default=4, ge=1, le=1000)
    replication_factor: int = Field(default=-1, ge=-1)
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)


class RegistrySettings(Section):
    """A Confluent-compatible registry; with no url, schemas are kept in a compacted topic."""

    url: str = ""
    user: str = ""
    password: SecretStr = SecretStr("")


class SnapshotSettings(Section):
    """How a table is first read: in chunks, taking turns with the stream."""

    chunk_rows: int = Field(default=50_000, ge=1)
    max_retained_wal_mb: int = Field(default=256, ge=1)
    """A copy phase ends, and the stream catches up, once the slot holds back this much log."""


class DatabaseSettings(Section):
    """A database that is read as a source and that, for its migrations, is written as the target."""

    dsn: SecretStr
    gitlab_schemas: tuple[Name, ...] = Field(min_length=1)
    tables: tuple[TableName, ...] = ()
    table_schemas: dict[TableName, Name] = Field(default_factory=dict)
    keys: dict[TableName, tuple[str, ...]] = Field(default_factory=dict)
    slot: Name | None = None
    publication: Name = "headrace"
    allow_unlimited_wal: bool = False
    """Confirms that `max_slot_wal_keep_size = -1` is meant: a stopped producer may then fill the source's disk."""
    snapshot: SnapshotSettings = SnapshotSettings()

    @field_validator("dsn")
    @classmethod
    def _dsn_parses(cls, value: SecretStr) -> SecretStr:
        try:
            psycopg.conninfo.conninfo_to_dict(value.get_secret_value())
        except psycopg.ProgrammingError:
            # libpq's own message may quote the password.
            raise ValueError("not a PostgreSQL connection string; expected postgresql://user@host:5432/name") from None
        return value


class StorageSettings(Section):
    """One git storage of a virtual storage: a directory, or a Gitaly node by its address."""

    path: str | None = None
    address: str | None = None
    token: SecretStr | None = None


class VirtualStorageSettings(Section):
    """What a storage walk reads."""

    database: Name
    primary: str
    storages: dict[str, StorageSettings]


class GitserverSettings(Section):
    """The nodes that `rehash_moves` moves repositories between."""

    nodes: tuple[str, ...] = ()
    roots: dict[str, str] = Field(default_factory=dict)


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

    @property
    def options(self) -> Mapping[str, Any]:
        """The migration's own keys."""
        return self.model_extra or {}


class Settings(BaseSettings):
    """All of the file. Build it with `load_settings`, which turns every mistake into one line."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="HEADRACE_",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    prefix: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_-]{0,62}$")] = "headrace"
    kafka: KafkaSettings = KafkaSettings()
    registry: RegistrySettings = RegistrySettings()
    databases: dict[Name, DatabaseSettings] = Field(default_factory=dict)
    virtual_storages: dict[str, VirtualStorageSettings] = Field(default_factory=dict)
    gitserver: GitserverSettings = GitserverSettings()
    migrations: dict[Name, MigrationSettings] = Field(default_factory=dict)

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
        section = self.migrations.get(name, MigrationSettings())
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


def load_settings(path: Path | None = None) -> Settings:
    """Read the settings from `path`, else from $HEADRACE_CONFIG, else from headrace.toml in this directory.

    Raises SettingsError, one line that names the file, the key and the remedy.
    """
    chosen = path or Path(os.environ.get("HEADRACE_CONFIG", DEFAULT_FILE))
    try:
        values = tomllib.loads(chosen.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(
            f"settings file {chosen} does not exist",
            remedy="write one with `headrace init`, or name one with --config or HEADRACE_CONFIG",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {chosen} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"settings file {chosen} is not TOML: {error}", remedy="correct that line") from error
    if environment := values.keys() & {"settings"}:
        raise SettingsError(f"settings file {chosen}: unknown key {environment.pop()!r}")
    try:
        return Settings(**values)
    except ValidationError as error:
        raise SettingsError(f"settings file {chosen}: {_first_mistake(error)}") from None


def _first_mistake(error: ValidationError) -> str:
    """Say the first mistake by its dotted key, never with the value: it may be a secret."""
    first = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key {key}{_suggestion(first['loc'])}{more}"
    if first["type"] == "missing":
        return f"{key} is missing{more}"
    return f"{key}: {first['msg'].removeprefix('Value error, ')}{more}"


def _suggestion(location: tuple[int | str, ...]) -> str:
    """Return `, did you mean …?` where a key of any section is close to the unknown one."""
    sections: list[type[BaseModel]] = [Settings, *Section.__subclasses__()]
    known = {field for section in sections for field in section.model_fields}
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f", did you mean {close[0]}?" if close else ""
