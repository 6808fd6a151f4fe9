"""`headrace init`, as the function that the command line calls; tests/test_cli.py runs it as a process."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import typer

from infra.init.init_command import init_with
from infra.rights.acls import Acl, Kind, Operation
from infra.rights.privileges import TablePrivileges
from infra.rights.programs import Program
from infra.settings.file import load_settings
from infra.settings.model import Settings
from infra.settings.providers import PROVIDERS
from schemas.errors import Refused, SettingsError, UsageError

MINE = "CREATE TABLE IF NOT EXISTS headrace.mine (id bigint PRIMARY KEY);"
READS = Acl("User:me", Kind.TOPIC, "headrace.gitlab_main.", (Operation.READ, Operation.DESCRIBE), prefixed=True)
WRITES = Acl("User:you", Kind.GROUP, "headrace.mine", (Operation.READ,))


def programs(_settings: Settings) -> list[Program]:
    return [
        Program("main", "main", (READS,), (), replicates=True),
        Program("mine", "main", (WRITES,), (TablePrivileges("headrace", "mine", ("SELECT", "DELETE")),), MINE),
        Program("others", "another", (), (TablePrivileges("headrace", "others", ("SELECT",)),)),
    ]


init = init_with(programs)


def test_init_writes_a_file_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new.toml"
    init(config=path)
    assert f"wrote {path}; edit it, then run `headrace check`" in capsys.readouterr().out
    settings = load_settings(path)
    assert settings.database("main").tables == ("public.container_repositories",)
    assert settings.migration("skip_resets").sub_batch_size == 100


def test_commented_settings_load_too(tmp_path: Path) -> None:
    path = tmp_path / "new.toml"
    init(config=path)
    lines = path.read_text().splitlines()
    shown = [line.removeprefix("# ") for line in lines if line.startswith("# ") and ("=" in line or line[2] == "[")]
    plain = [line for line in lines if not line.startswith("#")]
    # Each commented key is in the section under which it would be taken; a commented section brings its own keys.
    text: list[str] = []
    for line in lines:
        candidate = line.removeprefix("# ") if line.startswith("# ") and line.removeprefix("# ") in shown else line
        text.append(candidate if "HEADRACE_KAFKA" not in candidate and not candidate.startswith("for ") else "")
    path.write_text("\n".join(text))
    settings = load_settings(path)
    assert len(shown) >= 10
    assert len(plain) < len(lines)
    main = settings.database("main")
    assert main.snapshot.chunk_rows == 50_000
    assert main.table_schemas == {"public.my_table": "gitlab_main", "public.acme_*": "gitlab_main"}
    assert main.gitlab_dictionary == tmp_path / "gitlab/db/docs"
    assert main.keys == {"public.repo": ("name",)}
    assert settings.kafka.options["security.protocol"] == "SASL_SSL"
    assert settings.kafka.replication_factor == 3


def test_settings_of_a_database_that_is_not_gitlabs_are_those_of_init_without_a_line(tmp_path: Path) -> None:
    path = tmp_path / "new.toml"
    init(config=path)
    lines = [line for line in path.read_text().splitlines() if not line.startswith("gitlab_schemas")]
    path.write_text("\n".join(lines).replace("databases.main", "databases.shop"))
    section = load_settings(path).database("shop")
    assert (section.gitlab_schemas, section.table_schemas) == (("shop",), {"*.*": "shop"})


def test_settings_file_is_readable_only_by_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "new.toml"
    init(config=path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_init_never_overwrites_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("mine")
    with pytest.raises(Refused, match=r"mine\.toml exists already; choose another with --config, or edit that one"):
        init(config=path)
    assert path.read_text() == "mine"


def test_init_reports_a_path_that_it_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"not_there/new\.toml cannot be written: No such file or directory"):
        init(config=tmp_path / "not_there" / "new.toml")


def test_init_writes_to_the_path_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    init()
    assert Path("headrace.toml").exists()
    monkeypatch.setenv("HEADRACE_CONFIG", "other.toml")
    init()
    assert Path("other.toml").exists()


def test_sql_follows_the_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new.toml"
    with pytest.raises(SettingsError, match="does not exist"):
        init(config=path, sql=True)
    init(config=path)
    capsys.readouterr()
    init(config=path, sql=True)
    out = capsys.readouterr().out
    assert "-- Database main: run in gitlabhq, as a superuser. Idempotent." in out
    assert "CREATE SCHEMA IF NOT EXISTS headrace;" in out
    assert 'ALTER ROLE "headrace" REPLICATION;' in out
    assert MINE in out
    assert 'GRANT SELECT, DELETE ON "headrace"."mine" TO "headrace";' in out
    assert "headrace.others" not in out, "of another database"


@pytest.mark.parametrize(
    ("provider", "statement"),
    [
        ("rds", 'GRANT rds_replication TO "headrace";'),
        ("aurora", 'GRANT rds_replication TO "headrace";'),
        ("cloudsql", 'ALTER ROLE "headrace" REPLICATION;'),
        ("alloydb", 'ALTER ROLE "headrace" REPLICATION;'),
        ("azure", 'ALTER ROLE "headrace" REPLICATION;'),
        ("supabase", 'ALTER ROLE "headrace" REPLICATION;'),
        ("neon", 'ALTER ROLE "headrace" REPLICATION;'),
    ],
)
def test_script_for_a_provider_has_the_statements_that_work_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], provider: str, statement: str
) -> None:
    path = tmp_path / "new.toml"
    init(config=path)
    capsys.readouterr()
    init(config=path, sql=True, provider=provider)
    given = capsys.readouterr().out
    assert f"run in gitlabhq, as {PROVIDERS[provider].administrator}. Idempotent." in given
    assert [line for line in given.splitlines() if "rds_replication" in line or " REPLICATION;" in line] == [statement]
    assert "SUPERUSER" not in given
    assert "EXCEPTION WHEN insufficient_privilege" in given, "only a superuser can grant that function"

    path.write_text(path.read_text().replace("[databases.main] ", f'[databases.main]\nprovider = "{provider}" '))
    init(config=path, sql=True)
    assert capsys.readouterr().out == given, "the settings name it too"


def test_unknown_provider_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no provider is called 'rsd'; use one of: aurora, rds, cloudsql, "):
        init(config=tmp_path / "new.toml", sql=True, provider="rsd")


def test_names_limit_the_script_to_their_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new.toml"
    init(config=path)
    capsys.readouterr()
    init(["mine"], config=path, sql=True)
    consumers = capsys.readouterr().out
    assert "REPLICATION" not in consumers
    assert "PUBLICATION" not in consumers
    assert MINE in consumers
    assert "--group headrace.mine --resource-pattern-type literal" in consumers
    assert "User:me" not in consumers
    init(["main"], config=path, sql=True)
    producer = capsys.readouterr().out
    assert MINE not in producer
    assert "User:you" not in producer
    with pytest.raises(
        UsageError, match="no source or migration named 'nobody' in the settings; use one of: main, mine, others"
    ):
        init(["nobody"], config=path, sql=True)
    with pytest.raises(UsageError, match="names, --apply and --provider need --sql or --acls"):
        init(["mine"], config=path)


def test_the_acls_are_a_file_for_terraform(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new.toml"
    init(config=path)
    capsys.readouterr()
    init(["mine"], config=path, acls=True)
    assert json.loads(capsys.readouterr().out) == {
        "resource": {
            "kafka_acl": {
                "headrace_001": {
                    "resource_name": "headrace.mine",
                    "resource_type": "Group",
                    "resource_pattern_type_filter": "Literal",
                    "acl_principal": "User:you",
                    "acl_host": "*",
                    "acl_operation": "Read",
                    "acl_permission_type": "Allow",
                }
            }
        }
    }


@pytest.mark.parametrize("replaced", [True, False])
def test_file_is_replaced_on_a_terminal_only_after_a_yes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("infra.init.interview.interview", lambda text, *_: f'{text}\nprefix_of = "me"\n')

    def confirm(_question: str, **_how: object) -> None:
        if not replaced:
            raise typer.Abort

    monkeypatch.setattr(typer, "confirm", confirm)
    path = tmp_path / "mine.toml"
    path.write_text("mine")
    if replaced:
        init(config=path)
    else:
        with pytest.raises(typer.Abort):
            init(config=path)
    assert ("prefix_of" in path.read_text()) is replaced
    assert (path.read_text() == "mine") is not replaced
