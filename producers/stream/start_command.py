"""Builds the connection string and START_REPLICATION command of a replication stream; no I/O."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from infra.settings.database_login import Address, Where, address_of
from producers.source import slots
from schemas.errors import UsageError
from schemas.positions import Lsn, format_lsn

_CONNECTION_DEFAULTS: Final = {
    "connect_timeout": "10",
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "application_name": "headrace",
}


class Streaming(StrEnum):
    """Whether transactions larger than logical_decoding_work_mem are sent before they commit."""

    OFF = "off"
    ON = "on"
    PARALLEL = "parallel"
    """As on, and aborts have LSN and time."""


_LOWEST_VERSION: Final = {Streaming.OFF: 1, Streaming.ON: 2, Streaming.PARALLEL: 4}


def start_command(
    slot: str,
    publication: str,
    start: Lsn,
    *,
    version: int | None = None,
    streaming: Streaming = Streaming.OFF,
    messages: bool = True,
    binary: bool = False,
) -> bytes:
    """Return the START_REPLICATION command; raises UsageError for invalid arguments.

    The walsender's grammar has no parameters, and its quoting only doubles quotes. The list of publications is a
    literal whose content is quoted again, as identifiers.
    """
    lowest = _LOWEST_VERSION[streaming]
    version = lowest if version is None else version
    if not lowest <= version <= 4:
        raise UsageError(f"protocol version {version} does not support streaming = {streaming}")
    options = {"proto_version": str(version), "publication_names": quote(publication, '"')}
    if messages:
        options["messages"] = "true"
    if streaming is not Streaming.OFF:
        options["streaming"] = str(streaming)
    if binary:
        options["binary"] = "true"
    settings = ", ".join(f"""{name} {quote(value, "'")}""" for name, value in options.items())
    name = quote(slots.check_name(slot), '"')
    return f"START_REPLICATION SLOT {name} LOGICAL {format_lsn(start)} ({settings})".encode()


def quote(text: str, mark: str) -> str:
    """Return `text` quoted by `mark`, with inner marks doubled; raises UsageError for a NUL."""
    if "\0" in text:
        raise UsageError(f"{text!r} contains NUL", remedy="remove it: PostgreSQL names cannot contain NUL")
    return f"{mark}{text.replace(mark, mark * 2)}{mark}"


def for_replication(where: Where, application_name: str | None = None, client_encoding: str = "UTF8") -> Address:
    """Return `where` for replication; other session settings are set once connected (`infra.postgres.connect`).

    Raises UsageError if its connection string is not valid (without its text, which may contain a password).
    """
    address = address_of(where)
    try:
        given = conninfo_to_dict(address.dsn)
    except psycopg.ProgrammingError:
        raise UsageError(
            "the dsn is not valid", remedy="write it as postgresql://user@host:port/database"
        ) from None  # its message quotes the dsn
    parameters = {**_CONNECTION_DEFAULTS, **{k: str(v) for k, v in given.items() if v is not None}}
    if application_name is not None:
        parameters["application_name"] = application_name
    parameters["replication"] = "database"
    parameters["client_encoding"] = client_encoding
    return replace(address, dsn=make_conninfo("", **parameters))
