"""TLS and certificates to PostgreSQL: which clients may log in, and the error for those that may not."""

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


@pytest.mark.long
def test_server_and_client_with_valid_certificates_connect(dsn: str, authority: Authority) -> None:
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
def test_invalid_certificate_is_refused_with_the_reason(dsn: str, authority: Authority, wrong: str) -> None:
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
        "no TLS": (
            secured_dsn(dsn, ROLE, None, trusted, sslmode="disable"),
            "does not let the user of the dsn connect",
        ),
    }
    chosen, reason = attempts[wrong]
    with pytest.raises(SettingsError) as caught, connect(chosen, name="test"):
        pass
    print(str(caught.value))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_server_name_is_accepted_if_only_the_authority_is_verified(dsn: str, authority: Authority) -> None:
    """Counter-check of the name test above: only `verify-full` compares names."""
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
