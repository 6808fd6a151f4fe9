"""A PostgreSQL server that requires TLS and a client certificate from all but its superuser, or one that offers TLS.

The wheel's server is built without OpenSSL: this is the newest one in tests/server_versions.py that has it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest
from psycopg.conninfo import make_conninfo

from infra.stack.postgresql.server import EmbeddedPostgres
from infra.stack.processes.keeper import unprivileged_account
from tests.security.authority import Authority, Certificate
from tests.server_versions import MAJORS, NoSuchServer, server_of

MAJOR: Final = MAJORS[-2]
_ACCESS: Final = """\
local   all postgres              scram-sha-256
hostssl all postgres 127.0.0.1/32 scram-sha-256
hostssl all all      127.0.0.1/32 cert
hostssl all all      ::1/128      cert
"""
BOTH: Final = """\
local all         all              scram-sha-256
host  all         all 127.0.0.1/32 scram-sha-256
host  replication all 127.0.0.1/32 scram-sha-256
"""
"""A pg_hba.conf that leaves it to the client whether it uses TLS."""


@contextmanager
def secured_server(authority: Authority) -> Iterator[EmbeddedPostgres]:
    """A server with a certificate for 127.0.0.1; tests that need it are skipped if there is no such server."""
    with ExitStack() as opened:
        try:
            server = opened.enter_context(tls_server(authority, _ACCESS))
        except NoSuchServer as error:
            pytest.skip(f"no PostgreSQL with TLS: {error}")
        yield server


@contextmanager
def tls_server(authority: Authority, access: str = BOTH) -> Iterator[EmbeddedPostgres]:
    """A server with a certificate for 127.0.0.1, whose pg_hba.conf is `access`. Raises NoSuchServer."""
    directory = authority.certificate.parent
    certificate = authority.server("postgres")
    rules = directory / "pg_hba.conf"
    rules.write_text(access)
    account = unprivileged_account()
    if account is not None:
        os.chown(certificate.key, account.uid, account.gid)
    with server_of(
        MAJOR,
        ssl="on",
        ssl_cert_file=str(certificate.certificate),
        ssl_key_file=str(certificate.key),
        ssl_ca_file=str(authority.certificate),
        hba_file=str(rules),
    ) as server:
        yield server


def secured_dsn(dsn: str, role: str, certificate: Certificate | None, trusted: Path, **options: str) -> str:
    """Turn a superuser's dsn into one of `role`, with `certificate` and without a password."""
    parts: dict[str, str | None] = {"sslmode": "verify-full", "sslrootcert": str(trusted)}
    if certificate is not None:
        parts |= {"sslcert": str(certificate.certificate), "sslkey": str(certificate.key)}
    return make_conninfo(dsn, user=role, password=None, **(parts | options))
