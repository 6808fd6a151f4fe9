"""Checks of `make audit`: a changed file, an unpinned package, a vulnerability."""

from __future__ import annotations

from importlib.metadata import version

from infra.stack.brokers.jars import pinned_jars
from tests.audit import CONSTRAINTS, HASHES, differences, of_report, parsed, vulnerabilities, with_jars

REPORT = {
    "install": [
        {
            "metadata": {"name": "Typing_Extensions", "version": "4.16.0"},
            "download_info": {"archive_info": {"hashes": {"sha256": "aa"}}},
        },
        {"metadata": {"name": "headrace", "version": "0.2.0"}, "download_info": {"dir_info": {"editable": True}}},
    ]
}


def test_another_file_of_the_same_version_is_noticed() -> None:
    found = of_report(REPORT)
    assert found == {"typing-extensions==4.16.0": "aa"}
    assert differences(found, {"typing-extensions==4.16.0": "aa", "gone==1": "bb"}) == []
    assert differences(found, {"typing-extensions==4.16.0": "bb"}) == [
        "typing-extensions==4.16.0 is another file: its SHA-256 is aa, pinned is bb"
    ]
    assert differences(found, {}) == ["typing-extensions==4.16.0 has no hash in audit_hashes.txt"]


def test_every_version_that_is_pinned_has_its_hash() -> None:
    names = {line.lower().replace("_", "-") for line in CONSTRAINTS.read_text().splitlines() if "==" in line}
    pinned = parsed(HASHES.read_text())
    assert len(names) > 50
    assert names - pinned.keys() == set()
    assert {len(sha256) for sha256 in pinned.values()} == {64}


def test_installed_versions_are_pinned() -> None:
    assert f"psycopg=={version('psycopg')}" in parsed(HASHES.read_text())


def test_the_sbom_has_the_jars_with_their_hashes() -> None:
    jars = pinned_jars()
    components = with_jars({"components": [{"name": "psycopg"}]}, jars)["components"]
    assert len(components) == len(jars) + 1
    kafka = next(each for each in components if each["name"] == "kafka_2.13")
    assert kafka["purl"] == f"pkg:maven/org.apache.kafka/kafka_2.13@{kafka['version']}"
    assert len(kafka["hashes"][0]["content"]) == 64


def test_failed_lookup_does_not_count_as_safe() -> None:
    answer = {
        "dependencies": [
            {"name": "a", "version": "1", "vulns": [{"id": "CVE-1"}]},
            {"name": "b", "version": "2", "vulns": []},
            {"name": "c", "version": "3", "skip_reason": "not found"},
        ]
    }
    assert vulnerabilities(answer) == (["a 1: CVE-1"], 2)
