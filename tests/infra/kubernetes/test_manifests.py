"""The manifests of infra/kubernetes: what they promise, by kustomize's own program and by Kubernetes' own schemas.

The schemas are those of kubernetes-validate, where that package is installed; the kinds of KEDA and of the Prometheus
Operator are not among them.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.settings.file import load_settings
from infra.settings.model import Settings
from schemas.topics import group_name, table_topic

FOLDER = Path(__file__).parents[3] / "infra" / "kubernetes"
CUSTOM = {"ScaledObject", "PodMonitor"}
Manifest = dict[str, Any]


def manifests() -> Iterator[Manifest]:
    for name in yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]:
        yield from yaml.safe_load_all((FOLDER / name).read_text())


def workloads() -> dict[str, Manifest]:
    return {each["metadata"]["name"]: each for each in manifests() if each["kind"] == "Deployment"}


def the(kind: str) -> Manifest:
    (found,) = [each for each in manifests() if each["kind"] == kind]
    return found


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings(FOLDER / "headrace.toml")


def test_each_file_is_among_the_resources() -> None:
    resources = set(yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"])
    assert resources == {file.name for file in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}


@pytest.mark.parametrize("name", ["producer-main", "consumer-skip-resets"])
def test_container_is_confined_and_probed(name: str) -> None:
    pod = workloads()[name]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    confined = {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert container["securityContext"] == confined
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    variables = {each["name"]: each for each in container["env"]}
    assert container["ports"] == [
        {"name": "metrics", "containerPort": int(variables["HEADRACE_METRICS__PORT"]["value"])}
    ]
    assert variables["PGPASSWORD"]["valueFrom"]["secretKeyRef"]["name"] == "headrace-passwords"
    mounted = {each["name"] for each in container["volumeMounts"]}
    assert mounted == {each["name"] for each in pod["volumes"]}


def test_no_secret_is_in_the_repository(settings: Settings) -> None:
    assert "Secret" not in {each["kind"] for each in manifests()}
    assert ":" not in settings.database("main").dsn.get_secret_value().partition("//")[2].partition("@")[0]


def test_a_source_has_one_producer_at_a_time(settings: Settings) -> None:
    spec = workloads()["producer-main"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    command, source = spec["template"]["spec"]["containers"][0]["args"]
    assert command == "produce"
    mounts = spec["template"]["spec"]["containers"][0]["volumeMounts"]
    assert str(settings.database(source).spill_directory) in {each["mountPath"] for each in mounts}


def test_consumers_are_scaled_by_the_lag_of_their_group(settings: Settings) -> None:
    consumer = workloads()["consumer-skip-resets"]
    command, migration = consumer["spec"]["template"]["spec"]["containers"][0]["args"]
    assert command == "consume"
    assert "replicas" not in consumer["spec"], "each apply would undo the scaling"
    scaled = the("ScaledObject")["spec"]
    assert scaled["scaleTargetRef"]["name"] == consumer["metadata"]["name"]
    (trigger,) = scaled["triggers"]
    assert trigger["metadata"]["consumerGroup"] == group_name(settings.prefix, migration)
    topic = table_topic(settings.prefix, "gitlab_main", "main", "public", "container_repositories")
    assert trigger["metadata"]["topic"] == topic
    assert trigger["metadata"]["bootstrapServers"] == settings.kafka.bootstrap_servers
    assert scaled["maxReplicaCount"] == settings.kafka.partitions
    assert scaled["minReplicaCount"] == 1
    budget = the("PodDisruptionBudget")["spec"]
    assert budget["selector"]["matchLabels"] == consumer["spec"]["selector"]["matchLabels"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """The manifests as kustomize builds them."""
    if shutil.which("go") is None:
        pytest.skip("no Go here to build kustomize's program")
    program = tmp_path_factory.mktemp("kustomize") / "build"
    place = Path(__file__).with_name("kustomize_build")
    made = subprocess.run(
        ["go", "build", "-o", str(program), "."], cwd=place, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    ran = subprocess.run([program, FOLDER], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return list(yaml.safe_load_all(ran.stdout))


@pytest.mark.long
def test_kustomize_builds_them(built: list[Manifest]) -> None:
    kinds = sorted(each["kind"] for each in built)
    assert kinds == sorted([*(each["kind"] for each in manifests()), "ConfigMap"])
    (settings,) = [each for each in built if each["kind"] == "ConfigMap"]
    assert settings["data"]["headrace.toml"] == (FOLDER / "headrace.toml").read_text()
    monitored = the("PodMonitor")["spec"]["selector"]["matchLabels"]
    for each in built:
        if each["kind"] == "Deployment":
            template = each["spec"]["template"]
            assert monitored.items() <= template["metadata"]["labels"].items()
            volumes = [volume["configMap"] for volume in template["spec"]["volumes"] if "configMap" in volume]
            assert volumes == [{"name": settings["metadata"]["name"]}]
            assert template["spec"]["containers"][0]["image"].startswith("registry.example.com/headrace:")


@pytest.mark.long
def test_kubernetes_accepts_them(built: list[Manifest]) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    checked = [each for each in built if each["kind"] not in CUSTOM]
    for each in checked:
        validator.validate(each, validator.latest_version(), strict=True)
    deployment = next(each for each in checked if each["kind"] == "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(validator.ValidationError):
        validator.validate(deployment, validator.latest_version(), strict=True)
