"""docker-compose.yml, without Docker: by reading it, and by the loader of compose-go that `docker compose` has."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict

from infra.settings.file import load_settings
from infra.stack.containers import KAFKA_IMAGE, POSTGRES_IMAGE

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docker-compose.yml").read_text()
OURS = {"producer-main", "consumer-skip-resets"}
SAMPLE = {"sample-database", "sample-application"}
"""They run the image, but are no services of headrace."""
OF_PRAEFECT = {"walker-default", "consumer-missing-records"}
"""Those of a profile: they run where it is asked for."""


def services() -> dict[str, str]:
    """Return each service's lines; the file indents by two spaces, as this relies on."""
    block = re.search(r"^services:\n(.*?)(?=^\S)", TEXT, re.MULTILINE | re.DOTALL)
    assert block
    parts = re.split(r"^  ([a-z-]+):\n", block[1], flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_services_are_the_documented_ones() -> None:
    assert set(services()) == OURS | SAMPLE | OF_PRAEFECT | {
        "kafka",
        "postgres",
        "schema-registry",
        "prometheus",
        "grafana",
    }


def test_images_are_pinned_and_those_of_the_container_tests() -> None:
    images = {name: re.search(r"^    image: (\S+)$", lines, re.MULTILINE) for name, lines in services().items()}
    pinned = {name: found[1] for name, found in images.items() if found}
    assert pinned.keys() == services().keys() - OURS - SAMPLE - OF_PRAEFECT
    assert all(re.fullmatch(r"[a-z/-]+:v?\d+(\.\d+)*", image) for image in pinned.values())
    assert pinned["kafka"] == KAFKA_IMAGE
    assert pinned["postgres"] == POSTGRES_IMAGE


def test_services_are_healthy_when_they_are_ready_and_begin_after_the_sample_database() -> None:
    parsed = yaml.safe_load(TEXT)["services"]
    for name in OURS | OF_PRAEFECT:
        service = parsed[name]
        assert "http://127.0.0.1:9464/readyz" in service["healthcheck"]["test"][-1]
        assert service["environment"]["HEADRACE_METRICS__PORT"] == "9464"
        assert service["depends_on"]["sample-database"] == {"condition": "service_completed_successfully"}
        assert "HEADRACE_DB_PASSWORD" in service["environment"]["PGPASSWORD"]
    for name in SAMPLE:
        assert parsed[name]["healthcheck"] == {"disable": True}
        assert "POSTGRES_PASSWORD" in parsed[name]["environment"]["PGPASSWORD"]


def test_services_connect_with_a_role_of_their_own() -> None:
    for name in ("headrace.toml", "praefect.toml"):
        settings = load_settings(ROOT / "infra/compose" / name)
        users = {conninfo_to_dict(each.dsn.get_secret_value())["user"] for each in settings.databases.values()}
        assert users == {"headrace"}


def test_grafana_and_prometheus_find_what_is_mounted() -> None:
    sources = yaml.safe_load((ROOT / "infra/compose/grafana-datasources.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((ROOT / "infra/compose/grafana-dashboards.yml").read_text())["providers"]
    dashboard = json.loads((ROOT / "infra/observability/dashboard.json").read_text())
    assert {each["uid"] for each in sources} == {panel["datasource"]["uid"] for panel in dashboard["panels"]}
    assert f"dashboard.json:{provider['options']['path']}/headrace.json:ro" in services()["grafana"]
    (rules,) = yaml.safe_load((ROOT / "infra/compose/prometheus.yml").read_text())["rule_files"]
    assert f"rules.yml:{rules}:ro" in services()["prometheus"]


def test_services_wait_for_healthy_servers() -> None:
    waited_for = set(re.findall(r"^      ([a-z-]+):\n        condition: service_healthy", TEXT, re.MULTILINE))
    waited_for |= set(re.findall(r"^    ([a-z-]+):\n      condition: service_healthy", TEXT, re.MULTILINE))
    assert waited_for == {"kafka", "postgres", "schema-registry", "prometheus"}
    assert all("healthcheck:" in services()[name] for name in waited_for)


def test_no_password_is_written_down() -> None:
    given = re.findall(r"PASSWORD: (.*)$", TEXT, re.MULTILINE)
    assert given
    assert all(re.match(r"\$\{\w+:\?", value) for value in given)


def test_ports_are_published_to_this_machine_only() -> None:
    published = re.findall(r'^      - "(\S+:\d+:\d+)"$', TEXT, re.MULTILINE)
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_mounted_files_exist_and_the_settings_load() -> None:
    mounted = re.findall(r"- \./(\S+?):/", TEXT)
    assert mounted
    assert all((ROOT / path).is_file() for path in mounted)
    settings = load_settings(ROOT / "infra/compose/headrace.toml")
    assert settings.database("main").tables == ("public.container_repositories",)
    assert settings.migration("skip_resets").enabled


def test_image_is_built_from_what_the_checkout_has_and_with_a_compiler() -> None:
    sources = [
        path for line in re.findall(r"^      COPY ([a-zA-Z].*) \S+$", TEXT, re.MULTILINE) for path in line.split()
    ]
    assert {"pyproject.toml", "schemas", "producers", "consumers", "infra"} <= set(sources)
    assert all((ROOT / path).exists() for path in sources)
    assert "gcc" in TEXT
    assert "assert implementation.compiled" in TEXT


def test_commands_name_what_the_settings_have() -> None:
    settings = load_settings(ROOT / "infra/compose/headrace.toml")
    assert '["produce", "main"]' in services()["producer-main"]
    assert '["consume", "skip_resets"]' in services()["consumer-skip-resets"]
    assert "main" in settings.databases
    assert "skip_resets" in settings.migrations


def test_the_services_of_praefect_run_in_their_profile_with_settings_of_their_own() -> None:
    settings = load_settings(ROOT / "infra/compose/praefect.toml")
    assert '["produce", "default", "--until-imported"]' in services()["walker-default"]
    assert '["consume", "missing_records"]' in services()["consumer-missing-records"]
    section = settings.virtual_storages["default"]
    assert section.database in settings.databases
    assert "missing_records" in settings.migrations
    assert f":{section.storages[section.primary].path}:ro" in services()["walker-default"]
    for name, lines in services().items():
        assert ('profiles: ["praefect"]' in lines) == (name in OF_PRAEFECT) == ("compose/praefect.toml:" in lines)


def test_prometheus_reads_every_service_of_ours() -> None:
    targets = set(re.findall(r"- ([a-z-]+):9464$", (ROOT / "infra/compose/prometheus.yml").read_text(), re.MULTILINE))
    assert targets == OURS


PASSWORDS = {"POSTGRES_PASSWORD": "x", "HEADRACE_DB_PASSWORD": "x", "GRAFANA_PASSWORD": "x"}


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of compose_loader, which `docker compose config` is in essence."""
    if shutil.which("go") is None:
        pytest.skip("no Go here to build compose-go's loader")
    program = tmp_path_factory.mktemp("loader") / "loader"
    command = ["go", "build", "-o", str(program), "."]
    place = Path(__file__).with_name("compose_loader")
    built = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return program


def load(loader: Path, file: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **PASSWORDS}
    return subprocess.run([loader, file], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.long
def test_compose_loads_it(loader: Path) -> None:
    loaded = load(loader, ROOT / "docker-compose.yml")
    assert loaded.returncode == 0, loaded.stderr
    assert yaml.safe_load(loaded.stdout)["services"].keys() == services().keys()


@pytest.mark.long
@pytest.mark.parametrize(("right", "wrong"), [("command:", "comand:"), ("service_healthy", "healthy")])
def test_compose_refuses_a_mistake(loader: Path, tmp_path: Path, right: str, wrong: str) -> None:
    file = tmp_path / "docker-compose.yml"
    file.write_text(TEXT.replace(right, wrong))
    assert load(loader, file).returncode == 1
