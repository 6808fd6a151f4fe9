"""The settings file: its contents, and one-line errors with the place and the remedy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infra.settings.file import load_settings
from infra.settings.model import MigrationSettings, Settings
from schemas.errors import HeadraceError, SettingsError, UsageError

SECRET = "s3cret-of-the-test"
MAIN = f"""
[databases.main]
dsn = "postgresql://u:{SECRET}@db.example:5432/gitlabhq"
gitlab_schemas = ["gitlab_main"]
"""
COMPLETE = f"""
prefix = "headrace"

[kafka]
bootstrap_servers = "127.0.0.1:9092"
[kafka.options]
"security.protocol" = "SASL_SSL"
"sasl.password" = "{SECRET}"
"socket.keepalive.enable" = true
"message.timeout.ms" = 5000

[registry]
url = ""

[databases.main]
dsn = "postgresql://headrace:{SECRET}@127.0.0.1:5432/gitlabhq"
gitlab_schemas = ["gitlab_main", "gitlab_shared"]
tables = ["public.container_repositories"]

[databases.main.table_schemas]
"public.my_table" = "gitlab_main"

[databases.main.keys]
"public.repo" = ["name"]

[databases.praefect]
dsn = "postgresql://127.0.0.1/praefect"
gitlab_schemas = ["praefect"]

[virtual_storages.default]
database = "praefect"
primary = "gitaly-0"
[virtual_storages.default.storages.gitaly-0]
path = "storage-0"
[virtual_storages.default.storages.gitaly-1]
address = "tcp://gitaly-1:8075"
token = "{SECRET}"

[gitserver]
nodes = ["gitserver-0:3178", "gitserver-1:3178"]
[gitserver.roots]
"gitserver-0:3178" = "gitserver-0"

[migrations.skip_resets]
enabled = true
batch_size = 10000
sub_batch_size = 100
clear_started_at = true
"""


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.upper().startswith("HEADRACE_")]:
        monkeypatch.delenv(variable)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some.toml"


def load(file: Path, text: str) -> Settings:
    file.write_text(text, encoding="utf-8")
    return load_settings(file)


def mistake(file: Path, text: str) -> str:
    """Return the message about `text`, after the checks that hold for every mistake."""
    with pytest.raises(SettingsError) as caught:
        load(file, text)
    return checked(caught.value)


def checked(error: HeadraceError) -> str:
    message = str(error)
    assert "\n" not in message
    assert error.exit_code == 2
    assert error.remedy, "every mistake says what to do"
    seen: BaseException | None = error
    while seen is not None:  # what a traceback would print, too
        assert SECRET not in str(seen)
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return message


def test_a_complete_file_loads_as_it_is(file: Path) -> None:
    settings = load(file, COMPLETE)
    main = settings.database("main")
    assert main.dsn.get_secret_value() == f"postgresql://headrace:{SECRET}@127.0.0.1:5432/gitlabhq"
    assert main.gitlab_schemas == ("gitlab_main", "gitlab_shared")
    assert main.tables == ("public.container_repositories",)
    assert main.table_schemas == {"public.my_table": "gitlab_main"}
    assert main.keys == {"public.repo": ("name",)}
    assert settings.kafka.options["socket.keepalive.enable"] is True
    assert settings.kafka.options["message.timeout.ms"] == 5000
    storage = settings.virtual_storages["default"].storages["gitaly-1"]
    assert storage.token is not None
    assert storage.token.get_secret_value() == SECRET
    assert settings.gitserver.roots == {"gitserver-0:3178": str(file.parent / "gitserver-0")}
    assert settings.migration("skip_resets").options == {"clear_started_at": True}


def test_paths_are_taken_from_the_files_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    text = COMPLETE.replace("[databases.main]\n", '[databases.main]\nspill_directory = "spills"\n')
    (tmp_path / "some.toml").write_text(text)
    monkeypatch.chdir(elsewhere)
    settings = load_settings(Path("../some.toml"))
    assert settings.database("main").spill_directory == elsewhere / "../spills"
    assert settings.database("praefect").spill_directory is None
    storages = settings.virtual_storages["default"].storages
    assert storages["gitaly-0"].path == str(elsewhere / "../storage-0")
    assert storages["gitaly-1"].path is None
    assert settings.gitserver.roots["gitserver-0:3178"] == str(elsewhere / "../gitserver-0")


def test_an_empty_file_has_every_default(file: Path) -> None:
    settings = load(file, "")
    assert settings.prefix == "headrace"
    assert settings.kafka.bootstrap_servers == "127.0.0.1:9092"
    assert settings.migration("skip_resets").model_dump() == MigrationSettings().model_dump()


def test_a_password_in_the_registrys_url_is_in_no_repr(file: Path) -> None:
    assert SECRET not in repr(load(file, f'[registry]\nurl = "http://me:{SECRET}@127.0.0.1:1"\n'))


def test_registry_takes_its_secrets_from_the_environment_and_its_files_next_to_the_settings(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_REGISTRY__OAUTH__CLIENT_SECRET", SECRET)
    oauth = '[registry.oauth]\ntoken_url = "https://h/token"\nclient_id = "me"\n'
    settings = load(file, f'[registry]\nurl = "https://h"\nca_file = "ca.pem"\n{oauth}')
    assert settings.registry.oauth is not None
    assert settings.registry.oauth.client_secret.get_secret_value() == SECRET
    assert settings.registry.ca_file == file.parent / "ca.pem"
    assert SECRET not in f"{settings!r} {settings.model_dump_json(exclude={'kafka'})}"


def test_secrets_are_in_no_repr_and_no_dump(file: Path) -> None:
    settings = load(file, COMPLETE)
    shown = [repr(settings), str(settings), repr(settings.database("main")), repr(settings.kafka)]
    dumped = settings.model_dump(exclude={"kafka": {"options"}})
    assert not [text for text in (*shown, repr(dumped), settings.model_dump_json(exclude={"kafka"})) if SECRET in text]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[databasis.main]\ndsn = "x"', "unknown key databasis, did you mean databases?"),
        (MAIN + 'tabels = ["public.a"]', "unknown key databases.main.tabels, did you mean tables?"),
        (MAIN + "[databases.main.snapshot]\nchunk_row = 1", "snapshot.chunk_row, did you mean chunk_rows?"),
        ('[kafka]\nbootstrap_server = "x"', "unknown key kafka.bootstrap_server, did you mean bootstrap_servers?"),
        ("[gitserver]\nnode = []", "unknown key gitserver.node, did you mean nodes?"),
        ("entirely_else = 1", "unknown key entirely_else;"),
        ("settings = 1", "unknown key settings;"),
        ('_env_file = "x"', "unknown key _env_file;"),
        ('"with space" = 1', 'unknown key "with space";'),
        ('[databases.main]\ngitlab_schemas = ["gitlab_main"]', "databases.main.dsn is missing"),
        (
            f'[databases.main]\ndsn = "postgresql://u:{SECRET}@h/d"\ngitlab_dictionary = "db/docs"',
            "databases.main.gitlab_schemas is missing",
        ),
        (
            f'[databases.main]\ndsn = "postgresql://u:{SECRET}@h/d"\ntable_schemas = {{ "a.b" = "gitlab_ci" }}',
            "databases.main.gitlab_schemas is missing",
        ),
        (f'[databases.praefect]\ndsn = "postgresql://u:{SECRET}@h/d"', "databases.praefect.gitlab_schemas is missing"),
        (
            MAIN + '[databases.main.table_schemas]\n"public.ci_*" = "gitlab_ci"\n"public.*_x" = "gitlab_main"',
            'databases.main.table_schemas: "public.*_x" (gitlab_main) and "public.ci_*" (gitlab_ci) can match the same',
        ),
        (f'[databases.main]\ndsn = "{SECRET} nonsense"\ngitlab_schemas = ["gitlab_main"]', "main.dsn: not a Postgre"),
        (f'[databases.main]\ndsn = ["{SECRET}"]\ngitlab_schemas = ["gitlab_main"]', "main.dsn: must be a string"),
        (MAIN.replace(":5432", ":54x2"), "databases.main.dsn: the port is not a number"),
        (MAIN.replace(":5432", ":99999"), "databases.main.dsn: the port is not a number from 1 to 65535"),
        (MAIN.replace(SECRET, f"1/{SECRET}"), "a password, / is %2F"),
        (MAIN.replace(SECRET, f"1@{SECRET}"), "a password, / is %2F and @ is %40"),
        (MAIN.replace('["gitlab_main"]', '"gitlab_main"'), "gitlab_schemas: must be a list"),
        (MAIN.replace('["gitlab_main"]', "[]"), "gitlab_schemas: must not be empty"),
        (MAIN.replace("gitlab_main", "gitlab_mian"), "schema is called gitlab_mian, did you mean gitlab_main?"),
        (MAIN.replace("gitlab_main", "zzz"), "gitlab_schemas: no gitlab schema is called zzz (a custom one"),
        (
            MAIN + '[databases.main.table_schemas]\n"public.a" = "gitlab_mian"',
            'databases.main.table_schemas."public.a": no gitlab schema is called gitlab_mian, did you mean gitlab',
        ),
        (MAIN + 'tables = ["projects"]', "databases.main.tables.0: a table's name includes its schema"),
        (MAIN + '[databases.main.keys]\n"public.a" = "id"', 'databases.main.keys."public.a": must be a list'),
        (MAIN + 'allow_unlimited_wal = "perhaps"', "databases.main.allow_unlimited_wal: must be true or false"),
        (MAIN + 'slot = "With-Hyphen"', "databases.main.slot: a name has 1 to 63 lower-case letters"),
        (MAIN.replace("databases.main", "databases.Main-1"), "databases.Main-1: a name has 1 to 63 lower-case"),
        ("[kafka]\npartitions = 0", "kafka.partitions: must be 1 or more"),
        ("[kafka]\npartitions = 1001", "kafka.partitions: must be 1000 or less"),
        ('[kafka]\npartitions = "many"', "kafka.partitions: must be a whole number"),
        ("[kafka]\npartitions = 1.5", "kafka.partitions: must be a whole number"),
        ('kafka = "127.0.0.1:9092"', "kafka: must be a table of keys"),
        (f'[databases]\nmain = "{SECRET}"', "databases.main: must be a table of keys"),
        (f'[kafka.options]\n"sasl.password" = ["{SECRET}"]', 'kafka.options."sasl.password": must be a string, a'),
        (f'[registry]\npassword = ["{SECRET}"]', "registry.password: must be a string"),
        (f'[registry]\nurl = "http://u:{SECRET}@h"\ntoken = "t"', "a user in url and token exclude each other"),
        (f'[registry.oauth]\ntoken_url = "{SECRET}"\nclient_id = "a"\nclient_secret = "b"', "token_url: must be an"),
        (f'[registry]\ntoken = ["{SECRET}"]', "registry.token: must be a string"),
        ('prefix = "has.a.dot"', "prefix: a prefix has 1 to 63 letters"),
        ('[migrations.skip_resets]\nenabled = "perhaps"', "migrations.skip_resets.enabled: must be true or false"),
        ("[migrations.skip_resets]\nbatch_size = 0", "migrations.skip_resets.batch_size: must be 1 or more"),
        ("[kafka]\npartitions = 0\nreplication_factor = -7", "kafka.partitions: must be 1 or more (and 1 more)"),
        ("[kafka", "is not TOML: Expected ']'"),
        ("a = 1\na = 2", "is not TOML: Cannot overwrite a value (at "),
    ],
)  # fmt: skip
def test_each_mistake_is_one_line_with_file_key_and_remedy(file: Path, text: str, said: str) -> None:
    message = mistake(file, text)
    assert f"settings file {file}" in message
    assert said in message


def test_a_file_that_is_not_utf8(file: Path) -> None:
    file.write_bytes(b'prefix = "\xff"')
    with pytest.raises(SettingsError, match=r"some\.toml is not TOML: byte 10 is not UTF-8; save it as UTF-8"):
        load_settings(file)


def test_a_file_that_is_not_there(file: Path) -> None:
    with pytest.raises(SettingsError, match=r"some\.toml does not exist; write one with `headrace init`"):
        load_settings(file)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot be read: Is a directory; name another with --config"):
        load_settings(tmp_path)


def test_custom_gitlab_schema_labels_a_table(file: Path) -> None:
    own = MAIN.replace('["gitlab_main"]', '["gitlab_main", "warehouse"]')
    settings = load(file, own + '[databases.main.table_schemas]\n"stock.items" = "warehouse"')
    assert settings.database("main").gitlab_schemas == ("gitlab_main", "warehouse")


def test_database_that_is_not_gitlabs_needs_no_gitlab_schemas(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = load(file, f'[databases.shop]\ndsn = "postgresql://u:{SECRET}@h/d"\n').database("shop")
    assert (section.gitlab_schemas, section.table_schemas) == (("shop",), {"*.*": "shop"})
    monkeypatch.setenv("HEADRACE_DATABASES__SHOP__GITLAB_SCHEMAS", '["gitlab_main"]')
    assert load_settings(file).database("shop").table_schemas == {}


def test_dictionary_is_next_to_the_settings_file_and_read_only_for_a_table_or_an_unknown_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "some.toml"
    text = MAIN.replace("dsn =", 'gitlab_dictionary = "docs"\ndsn =')
    file.write_text(text)
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = load_settings(Path("../some.toml")).database("main").gitlab_dictionary
    assert found is not None
    assert found.resolve() == tmp_path / "docs", "which does not exist"
    file.write_text(text.replace("gitlab_main", "gitlab_geo"))
    with pytest.raises(SettingsError, match=r"gitlab_dictionary \S+/docs: cannot be read: No such file or directory"):
        load_settings(file)
    (tmp_path / "docs").mkdir()
    table = tmp_path / "docs" / "registries.yml"
    table.write_text("table_name: registries\ngitlab_schema: gitlab_geo\n")
    assert load_settings(file).database("main").gitlab_schemas == ("gitlab_geo",)
    file.write_text(text.replace("gitlab_main", "gitlab_goe"))
    with pytest.raises(
        SettingsError,
        match=r"databases\.main mentions gitlab schema gitlab_goe, .* did you mean gitlab_geo\?; correct it",
    ):
        load_settings(file)


def test_the_file_is_headrace_toml_in_this_directory_unless_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("headrace.toml").write_text('prefix = "here"')
    Path("named.toml").write_text('prefix = "named"')
    Path("argument.toml").write_text('prefix = "argument"')
    assert load_settings().prefix == "here"
    monkeypatch.setenv("HEADRACE_CONFIG", "named.toml")
    assert load_settings().prefix == "named"
    assert load_settings(Path("argument.toml")).prefix == "argument"
    monkeypatch.setenv("HEADRACE_CONFIG", "nowhere.toml")
    with pytest.raises(SettingsError, match=r"nowhere\.toml does not exist"):
        load_settings()


def test_the_environment_wins_key_by_key(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_PREFIX", "other")
    monkeypatch.setenv("HEADRACE_KAFKA__BOOTSTRAP_SERVERS", "kafka:9092")
    monkeypatch.setenv("HEADRACE_DATABASES__MAIN__DSN", "postgresql://e@h/d")
    monkeypatch.setenv("HEADRACE_DATABASES__MAIN__TABLES", '["public.a", "public.b"]')
    monkeypatch.setenv("HEADRACE_DATABASES__MAIN__SNAPSHOT__CHUNK_ROWS", "7")
    monkeypatch.setenv("HEADRACE_MIGRATIONS__SKIP_RESETS__BATCH_SIZE", "5")
    monkeypatch.setenv("HEADRACE_KAFKA__OPTIONS__SASL_USERNAME", "me")
    settings = load(file, COMPLETE)
    main = settings.database("main")
    assert settings.prefix == "other"
    assert settings.kafka.bootstrap_servers == "kafka:9092"
    assert settings.kafka.options["sasl.username"] == "me"
    assert settings.kafka.options["security.protocol"] == "SASL_SSL"
    assert main.dsn.get_secret_value() == "postgresql://e@h/d"
    assert main.tables == ("public.a", "public.b")
    assert main.snapshot.chunk_rows == 7
    assert main.keys == {"public.repo": ("name",)}, "what the environment does not name stays"
    assert settings.migration("skip_resets").batch_size == 5
    assert settings.migration("skip_resets").sub_batch_size == 100


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("HEADRACE_KAFKA__PARTITIONS", "abc", "kafka.partitions: must be a whole number"),
        ("HEADRACE_KAFKA__PARTITON", "3", "unknown key kafka.partiton, did you mean partitions?"),
        ("HEADRACE_PREFIX", "a.b", "prefix: a prefix has"),
        ("HEADRACE_DATABASES__MAIN__DSN", f"{SECRET} nonsense", "databases.main.dsn: not a PostgreSQL"),
        ("HEADRACE_DATABASES__MAIN__TABLES", "public.a", "is not JSON"),
        ("HEADRACE_DATABASES", f'{{"{SECRET}', "is not JSON"),
        ("HEADRACE_KAFKA", SECRET, "is not JSON"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_environment_names_the_variable(
    file: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    message = mistake(file, MAIN)
    assert f"environment variable {variable}" in message
    assert said in message


@pytest.mark.parametrize(
    ("word", "enabled"), [("true", True), ("1", True), (" On ", True), ("FALSE", False), ("0", False), ("no", False)]
)
def test_the_off_switch_of_a_migration(file: Path, monkeypatch: pytest.MonkeyPatch, word: str, enabled: bool) -> None:
    settings = load(file, f"[migrations.skip_resets]\nenabled = {str(not enabled).lower()}\nbatch_size = 7")
    assert settings.migration("skip_resets").enabled is not enabled
    monkeypatch.setenv("HEADRACE_SKIP_RESETS_ENABLED", word)
    assert settings.migration("skip_resets").enabled is enabled
    assert settings.migration("skip_resets").batch_size == 7


def test_an_off_switch_that_is_neither_on_nor_off(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(file, "")
    monkeypatch.setenv("HEADRACE_SKIP_RESETS_ENABLED", "perhaps")
    with pytest.raises(SettingsError) as caught:
        settings.migration("skip_resets")
    assert "HEADRACE_SKIP_RESETS_ENABLED is 'perhaps'; set it to true or false" in checked(caught.value)


def test_unknown_database_error_lists_the_configured_ones(file: Path) -> None:
    settings = load(file, COMPLETE)
    with pytest.raises(UsageError) as caught:
        settings.database("mian")
    assert "'mian' in the settings (configured: main, praefect)" in checked(caught.value)


def test_source_of_a_table_is_the_one_database_that_captures_it(file: Path) -> None:
    ci = MAIN.replace("main", "ci") + 'tables = ["public.ci_*", "public.users"]\n'
    settings = load(file, MAIN + 'tables = ["public.users", "public.projects", "odd.[x]"]\n' + ci)
    assert settings.source_of("public.projects", "--source") == "main"
    assert settings.source_of("public.ci_builds", "--source") == "ci"
    # A table that is named in full may contain characters of patterns.
    assert settings.source_of("odd.[x]", "--source") == "main"
    with pytest.raises(UsageError, match=r"public\.users is captured from main, ci; choose one with --source"):
        settings.source_of("public.users", "--source")
    for table in ("public.issues", "Public.ci_builds", "odd.y"):
        with pytest.raises(UsageError, match="is captured from no database; name it as the settings do"):
            settings.source_of(table, "--source")


def test_settings_are_not_changed_by_accident(file: Path) -> None:
    settings = load(file, COMPLETE)
    with pytest.raises(ValueError, match="frozen"):
        settings.prefix = "other"
    with pytest.raises(ValueError, match="frozen"):
        settings.kafka.partitions = 9
