"""Questions of `headrace init` on a terminal, and the settings file that the answers become; the servers are played."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from infra.init.interview import interview
from infra.settings.file import load_settings
from infra.settings.model import Settings
from schemas.errors import BrokerUnavailable, DatabaseUnavailable, SettingsError

EXAMPLE = files("infra.init").joinpath("settings_file.toml").read_text(encoding="utf-8")
GITLABS = ["public.container_repositories", "public.projects", "public.ci_builds", "public.own"]


class Played:
    """Servers that answer at the addresses `postgresql://h/d` and `k:1` only."""

    def __init__(self, tables: Sequence[str]) -> None:
        self._tables = list(tables)

    def tables(self, dsn: str) -> list[str]:
        if dsn == "postgresql://new_role@h/d":
            raise SettingsError("PostgreSQL rejects the user", remedy="create the role")
        if dsn != "postgresql://h/d":
            raise DatabaseUnavailable("PostgreSQL does not answer")
        return self._tables

    def require_kafka(self, bootstrap_servers: str) -> None:
        if bootstrap_servers != "k:1":
            raise BrokerUnavailable("Kafka does not answer")


class Operator:
    """Gives its answers one after the other, `None` for an empty line; `said` is what was shown."""

    def __init__(self, *answers: str | None) -> None:
        self._answers = list(answers)
        self.said: list[str] = []
        self.asked: list[tuple[str, str]] = []

    def ask(self, question: str, default: str) -> str:
        self.asked.append((question, default))
        answer = self._answers.pop(0)
        return default if answer is None else answer

    def say(self, text: str) -> None:
        self.said.append(text)


def settled(operator: Operator, tables: Sequence[str], directory: Path) -> Settings:
    file = directory / "headrace.toml"
    file.write_text(interview(EXAMPLE, operator.ask, operator.say, Played(tables)))
    assert operator._answers == []
    return load_settings(file)


def test_answers_become_the_settings(tmp_path: Path) -> None:
    operator = Operator("postgresql://h/d", None, None, None, "k:1")
    settings = settled(operator, GITLABS, tmp_path)
    main = settings.database("main")
    assert main.dsn.get_secret_value() == "postgresql://h/d"
    assert set(main.gitlab_schemas) == {"gitlab_main", "gitlab_ci"}
    assert main.tables == ("public.container_repositories",)
    assert settings.kafka.bootstrap_servers == "k:1"
    assert "skip_resets" in settings.migrations
    assert "it has 4 tables" in operator.said


def test_answer_that_does_not_work_is_asked_for_again_with_the_reason(tmp_path: Path) -> None:
    operator = Operator("postgresql://other/d", "postgresql://h/d", "not_there", "", None, None, "other:1", "k:1")
    settled(operator, GITLABS, tmp_path)
    assert any("PostgreSQL does not answer" in line for line in operator.said)
    assert any("not_there" in line for line in operator.said)
    assert any("Kafka does not answer" in line for line in operator.said)


def test_answer_that_did_not_work_is_the_next_default_unless_it_has_a_password(tmp_path: Path) -> None:
    mistakes = ["postgresql://other/d", "postgresql://u:secret@h/d", "host=h password=secret"]
    operator = Operator(*mistakes, "postgresql://h/d", None, None, None, "other:1", None, "k:1")
    settled(operator, GITLABS, tmp_path)
    logins = [default for question, default in operator.asked if question == "PostgreSQL's connection string"]
    assert logins == ["postgresql://headrace@127.0.0.1:5432/gitlabhq", *["postgresql://other/d"] * 3]
    brokers = [default for question, default in operator.asked if question == "Kafka's address"]
    assert brokers == ["127.0.0.1:9092", "other:1", "other:1"]


def test_login_that_is_refused_is_kept_if_given_twice(tmp_path: Path) -> None:
    new = "postgresql://new_role@h/d"
    operator = Operator(new, "postgresql://other/d", "postgresql://other/d", new, "public.own", "k:1")
    main = settled(operator, GITLABS, tmp_path).database("main")
    assert (main.dsn.get_secret_value(), main.tables) == (new, ("public.own",))
    assert operator.said[0] == "PostgreSQL rejects the user; create the role; the same answer again keeps it"
    assert operator.said[-1].startswith("kept without a test: run `headrace init --sql` next")
    assert not any("tables" in line for line in operator.said), "they are unknown"


def test_dictionary_gives_tables_their_gitlab_schema(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "own.yml").write_text("table_name: own\ngitlab_schema: gitlab_geo\n")
    operator = Operator("postgresql://h/d", str(docs), None, "public.own, public.projects", "k:1")
    main = settled(operator, GITLABS, tmp_path).database("main")
    assert "gitlab_geo" in main.gitlab_schemas
    assert (main.tables, main.gitlab_dictionary) == (("public.own", "public.projects"), docs)


def test_database_that_is_not_gitlabs_has_one_gitlab_schema(tmp_path: Path) -> None:
    operator = Operator("postgresql://h/d", None, "k:1")
    settings = settled(operator, ["public.orders", "stock.items"], tmp_path)
    assert settings.database("main").gitlab_schemas == ("main",)
    assert settings.database("main").tables == ("public.*",)
    assert settings.migrations == {}, "its gitlab schema is in no database"
