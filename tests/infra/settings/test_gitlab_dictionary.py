"""GitLab's own dictionary: both of its forms, and one line about each file that is not in one of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from infra.settings.gitlab_dictionary import DEPTH, LIMIT, read_dictionary
from schemas.errors import SettingsError

GITLAB = Path(__file__).parent / "gitlab"
DOCS = GITLAB / "db" / "docs"
FILE = GITLAB / "lib" / "gitlab" / "database" / "gitlab_schemas.yml"
SECRET = "s3cret"
GOOD = "table_name: projects\ngitlab_schema: gitlab_main\n"


@pytest.fixture(autouse=True)
def _read_again() -> None:
    read_dictionary.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one good file."""
    made = tmp_path / "docs"
    made.mkdir()
    (made / "projects.yml").write_text(GOOD)
    return made


def mistake(path: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        read_dictionary(path)
    message = str(caught.value)
    assert message.startswith(f"gitlab_dictionary {path}")
    assert caught.value.remedy
    assert "\n" not in message
    assert SECRET not in message
    return message


@pytest.mark.parametrize(
    ("table", "gitlab_schema"),
    [
        ("public.projects", "gitlab_main"),
        ("public.namespaces", "gitlab_main_cell"),
        ("public.p_ci_builds", "gitlab_ci"),
        ("public.loose_foreign_keys_deleted_records", "gitlab_shared"),
        ("public.schema_migrations", "gitlab_internal"),
        ("public.users", "gitlab_main_user"),
        ("public.vulnerability_reads", "gitlab_sec"),
        ("public.geo_nodes", "gitlab_main_clusterwide"),
        ("public.postgres_partitions", "gitlab_shared"),
        ("public.ci_builds", "gitlab_ci"),
        ("public.old_routes_view", "gitlab_main"),
        ("gitlab_partitions_dynamic.ci_builds_101", "gitlab_ci"),
        ("gitlab_partitions_dynamic.web_hook_logs_daily_20261129", "gitlab_ci"),
        ("gitlab_partitions_static.loose_foreign_keys_deleted_records_1", "gitlab_shared"),
        ("gitlab_partitions_dynamic.ci_builds_101_other", None),
        ("public.projects_1", None),
        ("other.projects", None),
        ("public.BackfillSomething", None),
        ("public.backfill_something", None),
    ],
)
def test_folder_has_tables_views_and_those_that_were_deleted(table: str, gitlab_schema: str | None) -> None:
    assert read_dictionary(DOCS).gitlab_schema(table) == gitlab_schema


def test_partition_has_the_gitlab_schema_of_the_routing_table(folder: Path) -> None:
    (folder / "p.yml").write_text("table_name: p_ci_stages\ngitlab_schema: gitlab_ci\n")
    assert read_dictionary(folder).gitlab_schema("gitlab_partitions_dynamic.ci_stages_102") == "gitlab_ci"


def test_folder_names_its_gitlab_schemas() -> None:
    assert read_dictionary(DOCS).gitlab_schemas == {
        "gitlab_ci", "gitlab_internal", "gitlab_main", "gitlab_main_cell", "gitlab_main_clusterwide",
        "gitlab_main_user", "gitlab_sec", "gitlab_shared",
    }  # fmt: skip


def test_older_file_has_symbols_and_plain_names() -> None:
    read = read_dictionary(FILE)
    assert read.current == {
        "projects": "gitlab_main",
        "ci_builds": "gitlab_ci",
        "web_hook_logs": "gitlab_main",
        "loose_foreign_keys_deleted_records": "gitlab_shared",
        "schema_migrations": "gitlab_internal",
        "ar_internal_metadata": "gitlab_internal",
        "quoted": "gitlab_main",
    }
    assert read.gitlab_schema("gitlab_partitions_dynamic.web_hook_logs_202611") == "gitlab_main"


def test_pyyaml_without_its_compiled_part_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = read_dictionary(DOCS)
    read_dictionary.cache_clear()
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert read_dictionary(DOCS) == compiled


@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ": it has neither table_name nor view_name; name the folder db/docs"),
        ("description: x\n", ": it has neither table_name nor view_name"),
        ("table_name: a\n", ": it has no gitlab_schema; add it; an older GitLab has them all in lib/gitlab"),
        (f"table_name: a\n\ngitlab_schema: {SECRET.upper()}\n", ", line 3: gitlab_schema must be a gitlab schema"),
        ("table_name: a\ngitlab_schema:\n- gitlab_main\n", ", line 3: gitlab_schema must be a gitlab schema"),
        ("table_name: a\ngitlab_schema: {gitlab_main: x}\n", ", line 2: gitlab_schema must be a gitlab schema"),
        ("table_name: a\ngitlab_schema:\n", ", line 2: gitlab_schema must be a gitlab schema"),
        ("table_name: a\ngitlab_schema: ::gitlab_main\n", ", line 2: gitlab_schema must be a gitlab schema"),
        ("table_name:\ngitlab_schema: gitlab_main\n", ", line 1: table_name must be the name of a table"),
        ("table_name: [a]\ngitlab_schema: gitlab_main\n", ", line 1: table_name must be the name of a table"),
        (f"{GOOD}gitlab_schema: gitlab_ci\n", ", line 3: gitlab_schema is there twice; remove one"),
        (f"{GOOD}gitlab_schema: !ruby/object:Kernel gitlab_ci\n", ", line 3: gitlab_schema is there twice"),
        ("table_name: a\ngitlab_schema: !ruby/symbol gitlab_main\n", ", line 2: gitlab_schema must be"),
        ("table_name: a\ngitlab_schema: !!python/name:os.system x\n", ", line 2: gitlab_schema must be"),
        ("x: &x gitlab_main\ntable_name: a\ngitlab_schema: *x\n", ", line 3: gitlab_schema must be"),
        ("x: 1\n<<: *defaults\n*y : 1\n", ", line 3: a key must be plain text"),
        ("? [a]\n: b\n", ", line 1: a key must be plain text"),
        ("!ruby/object:Foo x: y\n", ", line 1: a key must be plain text"),
        (f"- {SECRET}\n", ", line 1: it is not a mapping of keys to values"),
        (f"{SECRET}\n", ", line 1: it is not a mapping of keys to values"),
        (f"{GOOD}---\n{GOOD}", ", line 3: a second YAML document starts there; remove it"),
        (f"table_name: a\nx: 'never closed {SECRET}\n", ": it is not YAML; correct that line, or copy the file again"),
        (f"table_name: a\n\tgitlab_schema: {SECRET}\n", ", line 2: it is not YAML"),
        (f"table_name: a\nx: {SECRET}: b\n", ", line 2: it is not YAML"),
        ("table_name: a\nx: \0\n", ", line 2: it is not YAML"),
        ("<<<<<<< ours\ntable_name: a\n", ", line 1: it is not a mapping of keys to values"),
        (f"x: {'[' * (DEPTH + 10)}\n", f", line 1: it is nested more than {DEPTH} levels deep"),
    ],
)
def test_malformed_file_of_a_table_is_one_line_with_its_place(
    folder: Path, text: str, said: str, loader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml, "CSafeLoader", getattr(yaml, loader))
    file = folder / "zz.yml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_dictionary(folder)
    message = str(caught.value)
    start, _, end = said.partition(": ")
    assert message.startswith(f"gitlab_dictionary {file}{start}")
    assert end in message
    assert SECRET not in message.lower()
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ": it has no table"),
        ("# nothing\n", ": it has no table"),
        ("- a\n", ", line 1: it is not a mapping of keys to values"),
        (
            "projects: :gitlab_main\nusers: GitlabMain\n",
            ", line 2: the value must be a gitlab schema, such as gitlab_m",
        ),
        ("projects: :gitlab_main\nusers: [gitlab_main]\n", ", line 2: the value must be a gitlab schema"),
        ("projects: :gitlab_main\nusers: !ruby/object:Foo x\n", ", line 2: the value must be a gitlab schema"),
        ("'': :gitlab_main\n", ", line 1: a table without a name"),
        (
            "a: :gitlab_main\nb: :gitlab_ci\na: :gitlab_ci\n",
            "line 3: a has another gitlab schema in {file}, line 1; corr",
        ),
        (GOOD, ", line 1: this is the file of one table; name the folder that has the files of all tables, db/docs"),
        ("a: 'b\n", "it is not YAML"),
    ],
)
def test_malformed_single_file_is_one_line_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "gitlab_schemas.yml"
    file.write_text(text)
    assert said.format(file=file) in mistake(file)


def test_table_with_two_gitlab_schemas_is_refused_with_both_files(folder: Path) -> None:
    (folder / "views").mkdir()
    other = folder / "views" / "p.yml"
    other.write_text("view_name: projects\ngitlab_schema: gitlab_main\n")
    assert read_dictionary(folder).gitlab_schema("public.projects") == "gitlab_main"
    other.write_text("view_name: projects\ngitlab_schema: gitlab_ci\n")
    read_dictionary.cache_clear()
    with pytest.raises(SettingsError) as caught:
        read_dictionary(folder)
    assert f"{other}, line 2: projects has another gitlab schema in {folder / 'projects.yml'}, line 2" in str(
        caught.value
    )


def test_bytes_that_are_not_utf8(folder: Path) -> None:
    (folder / "projects.yml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert read_dictionary(folder).gitlab_schema("public.projects") == "gitlab_main", "with a byte order mark"
    (folder / "zz.yml").write_bytes(b"table_name: a\nx: \xff\n")
    read_dictionary.cache_clear()
    with pytest.raises(SettingsError, match=r"zz\.yml, line 2: it is not UTF-8; save it as UTF-8"):
        read_dictionary(folder)


def test_path_that_does_not_exist(tmp_path: Path) -> None:
    assert "cannot be read: No such file or directory; name the folder db/docs" in mistake(tmp_path / "nowhere")


def test_folder_without_yaml(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("x")
    (tmp_path / ".hidden.yml").write_text("x")
    assert "the folder has no YAML file; name the folder db/docs of GitLab's source" in mistake(tmp_path)


def test_root_of_gitlabs_source_is_corrected() -> None:
    assert f"the folder has no YAML file; name {DOCS}" in mistake(GITLAB)


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    # A Kubernetes ConfigMap is mounted as links to links.
    (tmp_path / "..data").symlink_to(DOCS, target_is_directory=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "projects.yml").symlink_to("../..data/projects.yml")
    (tmp_path / "file").symlink_to(FILE)
    (tmp_path / "link").symlink_to("docs")
    assert read_dictionary(tmp_path / "link").current == {"projects": "gitlab_main"}
    assert read_dictionary(tmp_path / "file").current == read_dictionary(FILE).current


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _huge(path: Path) -> None:
    path.write_text(GOOD + "#" * LIMIT)


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (_dangling, "cannot be read: No such file or directory"),
        (_loop, "cannot be read: Too many levels of symbolic links"),
        (_fifo, "it is not a regular file"),
        (Path.mkdir, "it is not a regular file"),
        (_huge, f"it is larger than {LIMIT // 1024} KiB"),
    ],
)
def test_what_is_not_a_file_of_the_dictionary_is_refused(
    folder: Path, plant: Callable[[Path], None], said: str
) -> None:
    file = folder / "zz.yml"
    plant(file)
    with pytest.raises(SettingsError) as caught:
        read_dictionary(folder)
    assert f"gitlab_dictionary {file}: {said}" in str(caught.value)
    if file.is_dir():
        return  # as the path itself, it is a folder without YAML
    assert said in mistake(file)


def test_dictionary_is_read_once_in_a_process(folder: Path) -> None:
    first = read_dictionary(folder)
    (folder / "zz.yml").write_text("not: a table")
    assert read_dictionary(folder) is first
