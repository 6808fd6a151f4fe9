"""`make audit`: compares headrace's packages and jars with their pins, writes an SBOM, lists vulnerabilities.

The packages that pip would install now are compared with tests/audit_hashes.txt, which has the SHA-256 of each file as
it was when its version was pinned: a package index that serves another one is noticed. The jars are compared with
infra/stack/kafka_jars.txt each time that they are downloaded.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from infra.stack.brokers.jars import Jar, pinned_jars

ROOT: Final = Path(__file__).parents[1]
CONSTRAINTS: Final = ROOT / "infra" / "constraints.txt"
HASHES: Final = ROOT / "tests" / "audit_hashes.txt"
SBOM: Final = ROOT / "build" / "sbom.json"
PLATFORM: Final = "Linux x86_64 CPython 3.11"
"""Which files the hashes are of: most packages have another one for each platform."""

Hashes = Mapping[str, str]
"""`name==version` → SHA-256 of the file that is installed."""


def here() -> str:
    """Return this machine as PLATFORM names one."""
    version = ".".join(platform.python_version_tuple()[:2])
    return f"{platform.system()} {platform.machine()} {platform.python_implementation()} {version}"


def parsed(text: str) -> dict[str, str]:
    """Return the hashes of a file with `name==version sha256` in each line."""
    lines = (line.split() for line in text.splitlines() if line and not line.startswith("#"))
    return dict(lines)


def of_report(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the hashes of what pip's installation report says that it would install; headrace itself is left out."""
    found = {}
    for each in report["install"]:
        metadata, info = each["metadata"], each["download_info"].get("archive_info")
        if info is not None:
            found[f"{metadata['name'].lower().replace('_', '-')}=={metadata['version']}"] = info["hashes"]["sha256"]
    return found


def differences(found: Hashes, pinned: Hashes) -> list[str]:
    """Return a line for each package that is not what is pinned."""
    lines = [f"{name} has no hash in {HASHES.name}" for name in sorted(found.keys() - pinned.keys())]
    for name in sorted(found.keys() & pinned.keys()):
        if found[name] != pinned[name]:
            lines.append(f"{name} is another file: its SHA-256 is {found[name]}, pinned is {pinned[name]}")
    return lines


def with_jars(sbom: dict[str, Any], jars: Iterable[Jar]) -> dict[str, Any]:
    """Return an SBOM with the jars among its components."""
    components = [
        {
            "type": "library",
            "group": jar.group,
            "name": jar.artifact,
            "version": jar.version,
            "purl": f"pkg:maven/{jar.group}/{jar.artifact}@{jar.version}",
            "bom-ref": jar.coordinate,
            "hashes": [{"alg": "SHA-256", "content": jar.sha256}],
        }
        for jar in jars
    ]
    return {**sbom, "components": [*sbom.get("components", []), *components]}


def vulnerabilities(document: Mapping[str, Any]) -> tuple[list[str], int]:
    """Return a line for each known vulnerability in pip-audit's answer, and how many packages it could look up."""
    lines, asked = [], 0
    for each in document["dependencies"]:
        if "skip_reason" not in each:
            asked += 1
            lines += [f"{each['name']} {each['version']}: {one['id']}" for one in each.get("vulns", ())]
    return lines, asked


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a program of this Python's environment, or another one, to its end."""
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, timeout=900)


def resolve() -> dict[str, str]:
    """Ask pip what it would install for the checkout."""
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    ended = run(
        *pip, "--dry-run", "--ignore-installed", "--report", "-", "-c", str(CONSTRAINTS), "-e", ".[dev,fuzz,interop]"
    )
    if ended.returncode:
        raise SystemExit(f"audit: pip cannot say what it would install: {ended.stderr.strip()}")
    return of_report(json.loads(ended.stdout))


def compare(*, write: bool) -> bool:
    """Compare the packages, or write what they are; return whether they are what is pinned."""
    if here() != PLATFORM:
        print(f"packages: not compared, since the hashes are of {PLATFORM}, and this is {here()}")
        return True
    found = resolve()
    if write:
        head = f"# SHA-256 of the packages of infra/constraints.txt, {PLATFORM}; `make audit WRITE=1` writes them.\n"
        HASHES.write_text(head + "".join(f"{name} {sha256}\n" for name, sha256 in sorted(found.items())))
    lines = differences(found, parsed(HASHES.read_text()))
    for line in lines:
        print(f"packages: {line}")
    print(f"packages: {len(found) - len(lines)} of {len(found)} are the files that are pinned")
    return not lines


def describe(tools: Path) -> bool:
    """Write the SBOM; return whether that was done."""
    SBOM.parent.mkdir(exist_ok=True)
    ended = run(str(tools / "cyclonedx-py"), "environment", sys.executable, "--of", "JSON", "-o", str(SBOM))
    if ended.returncode:
        print(f"sbom: not written: {ended.stderr.strip()}")
        return False
    sbom = with_jars(json.loads(SBOM.read_text()), pinned_jars())
    SBOM.write_text(json.dumps(sbom, indent=1))
    print(f"sbom: {len(sbom['components'])} components in {SBOM.relative_to(ROOT)}")
    return True


def look_up(tools: Path) -> bool:
    """Look for known vulnerabilities; return False when there are some. Without an answer it says that it has none."""
    words = ("-r", str(CONSTRAINTS), "--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json")
    ended = run(str(tools / "pip-audit"), *words)
    try:
        lines, asked = vulnerabilities(json.loads(ended.stdout))
    except ValueError:
        lines, asked = [], 0
    for line in lines:
        print(f"vulnerabilities: {line}")
    if asked == 0:
        print("vulnerabilities: NOT LOOKED UP, since no advisory service answers here; run it where one does")
    else:
        print(f"vulnerabilities: {len(lines)} known in the {asked} packages that could be looked up")
    return not lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Do all three; return 1 when a package is not what is pinned, or is known to be vulnerable."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tools", type=Path, required=True, help="the directory of pip-audit and cyclonedx-py")
    parser.add_argument("--write", action="store_true", help="pin the packages as they are now")
    given = parser.parse_args(arguments)
    good = [compare(write=given.write), describe(given.tools), look_up(given.tools)]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
