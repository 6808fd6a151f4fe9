"""TLS and certificates to PostgreSQL: who is let in, and what is said to who is not."""

from __future__ import annotations

import pytest
from psycopg import sql

from infra.postgres.connect import connect
from infra.stack.postgresql.server import EmbeddedPostgres
from schemas.errors import SettingsError
from tests.security.authority import Authority
from tests.security.secured_postgres import secured_dsn

pytestmark = pytest.mark.stack

ROLE = "somebody"


@pytest.fixture
def dsn(secured_postgres: EmbeddedPostgres) -> str:
    with secured_postgres.connect() as superuser:
        superuser.execute(sql.SQL("DROP ROLE IF EXISTS {0}; CREATE ROLE {0} LOGIN").format(sql.Identifier(ROLE)))
    return secured_postgres.dsn()


def test_a_server_and_a_client_that_prove_who_they_are(dsn: str, authority: Authority) -> None:
    with connect(secured_dsn(dsn, ROLE, authority.client(ROLE), authority.certificate), name="test") as connection:
        row = connection.execute("SELECT ssl, client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
    assert row == (True, f"/CN={ROLE}")


@pytest.mark.parametrize(
    "wrong",
    [
        "authority of the server",
        "name of the server",
        "authority of the client",
        "name of the client",
        "none",
        "no TLS",
    ],
)
def test_who_does_not_is_refused_with_the_reason(dsn: str, authority: Authority, wrong: str) -> None:
    mine, trusted = authority.client(ROLE), authority.certificate
    other = Authority(trusted.parent, "other")
    attempts = {
        "authority of the server": (secured_dsn(dsn, ROLE, mine, other.certificate), "certificate verify failed"),
        "name of the server": (
            secured_dsn(dsn, ROLE, mine, trusted, host="localhost", hostaddr="127.0.0.1"),
            'server certificate for "127.0.0.1"',
        ),
        "authority of the client": (secured_dsn(dsn, ROLE, other.client("forged"), trusted), "unknown ca"),
        "name of the client": (secured_dsn(dsn, ROLE, authority.client("else"), trusted), "certificate authentication"),
        "none": (secured_dsn(dsn, ROLE, None, trusted), "client certificate"),
        "no TLS": (secured_dsn(dsn, ROLE, None, trusted, sslmode="disable"), "does not let that user in"),
    }
    chosen, reason = attempts[wrong]
    with pytest.raises(SettingsError) as caught, connect(chosen, name="test"):
        pass
    print(str(caught.value))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_the_certificate_does_not_have_passes_where_only_the_authority_is_verified(
    dsn: str, authority: Authority
) -> None:
    """The twin of the name above: it is `verify-full` that compares names."""
    chosen = secured_dsn(
        dsn,
        ROLE,
        authority.client(ROLE),
        authority.certificate,
        host="localhost",
        hostaddr="127.0.0.1",
        sslmode="verify-ca",
    )
    with connect(chosen, name="test") as connection:
        assert connection.info.ssl_in_use if hasattr(connection.info, "ssl_in_use") else True
