"""Loads settings files: a mistake is reported in one line, without the value of a secret."""

from __future__ import annotations

import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from infra.settings.file import load_settings
from schemas.errors import UsageError
from tests.fuzz.parsers.target import Target, Violation, outcome

_SECRET: Final = "hunter2hunter2"
_SECRETS: Final = {"dsn", "password", "token", "url"}
_DIRECTORY: Final = tempfile.TemporaryDirectory(prefix="headrace-fuzz-")
_FILE: Final = Path(_DIRECTORY.name) / "headrace.toml"


def _run(data: bytes) -> None:
    _FILE.write_bytes(data)
    kind, found = outcome(UsageError, load_settings, _FILE)
    if kind == "refused" and "\n" in str(found):
        raise Violation(f"a message of more than one line: {found!r}")
    if _SECRET in (str(found) if kind == "refused" else repr(found)) and _is_secret(data):
        raise Violation(f"a secret is shown: {found!r}")


def _is_secret(data: bytes) -> bool:
    """Whether the secret is only where a secret belongs: a mutation may have made it a key, or a prefix."""
    try:
        places = list(_places((), tomllib.loads(data.decode())))
    except ValueError:
        return False
    return all(
        _SECRET not in str(keys) and (keys[-1] in _SECRETS or keys[:-1] == ("kafka", "options")) for keys in places
    )


def _places(keys: tuple[str, ...], value: object) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        for key, each in value.items():
            if _SECRET in key:
                yield (*keys, key)
            yield from _places((*keys, key), each)
    elif _SECRET in str(value):
        yield keys


def _seeds() -> Iterator[bytes]:
    main = f"""
prefix = "headrace"
[kafka]
bootstrap_servers = "127.0.0.1:9092"
partitions = 8
[kafka.options]
"sasl.password" = "{_SECRET}"
[registry]
url = "http://u:{_SECRET}@127.0.0.1:1"
password = "{_SECRET}"
[databases.main]
dsn = "postgresql://headrace:{_SECRET}@127.0.0.1:5432/gitlabhq"
gitlab_schemas = ["gitlab_main", "mine"]
tables = ["public.*"]
allow_unlimited_wal = true
[databases.main.table_schemas]
"public.my_table" = "mine"
"public.my_*" = "mine"
"*.?y_*" = "gitlab_main"
[databases.main.keys]
"public.repo" = ["name"]
[databases.main.snapshot]
chunk_rows = 10
[migrations.skip_resets]
enabled = true
max_rate = 1.5
health = {{ replica_lag = false }}
"""
    yield main.encode()
    yield f"""
[databases.praefect]
dsn = "host=/tmp user=a password={_SECRET} port=5432"
gitlab_schemas = ["praefect"]
[virtual_storages.default]
database = "praefect"
primary = "gitaly-0"
[virtual_storages.default.storages.gitaly-0]
address = "tcp://a:1"
token = "{_SECRET}"
[gitserver]
nodes = ["gitserver-0:3178"]
[gitserver.roots]
"gitserver-0:3178" = "x"
[metrics]
port = 0
""".encode()
    yield b"prefix = 5"
    yield b"unknown = 1"


TARGET = Target(
    "settings files",
    _run,
    _seeds,
    dictionary=(b"[", b"]", b"[[", b"=", b'"', b"'", b"{", b"}", b"\n", b"true", b"1979-05-27", b"inf"),
    longest=1500,
)
