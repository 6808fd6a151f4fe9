"""The units of infra/systemd, by reading them and by systemd-analyze where that is installed."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.errors import Fenced, OwnershipMoved, PreflightFailed, Refused, SettingsError, Unavailable, UsageError

FOLDER = Path(__file__).parents[3] / "infra" / "systemd"
UNITS = ("headrace-produce@.service", "headrace-consume@.service")
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")


def section(unit: str, name: str = "Service") -> dict[str, list[str]]:
    """A section's settings, each with its values in order."""
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((FOLDER / unit).read_text())
    return {key: parser[name][key].split("\n") for key in parser[name]}


@pytest.mark.parametrize("unit", UNITS)
def test_unit_restarts_what_waiting_can_resolve(unit: str) -> None:
    service = section(unit)
    prevented = {int(code) for code in service["RestartPreventExitStatus"][0].split()}
    assert service["Restart"] == ["on-failure"]
    for error in (Refused, PreflightFailed, Fenced, OwnershipMoved, UsageError, SettingsError):
        assert error.exit_code in prevented
    assert Unavailable.exit_code not in prevented
    assert section(unit, "Unit")["StartLimitIntervalSec"] == ["0"], "an outage must not end the restarts"


@pytest.mark.parametrize(("unit", "command"), [(UNITS[0], "produce"), (UNITS[1], "consume")])
def test_unit_runs_its_instance_with_settings_of_its_own(unit: str, command: str) -> None:
    service = section(unit)
    assert service["ExecStart"] == [f"/opt/headrace/bin/headrace {command} %i --config /etc/headrace/headrace.toml"]
    assert service["EnvironmentFile"] == [f"-/etc/headrace/{command}-%i.env"]
    assert service["User"] == ["headrace"]
    assert "u headrace " in (FOLDER / "headrace.sysusers.conf").read_text()


def installed(unit: str, folder: Path, change: tuple[str, str] = ("", "")) -> Path:
    """Write an instance of a unit whose command exists here."""
    text = (FOLDER / unit).read_text().replace("/opt/headrace/bin/headrace", sys.executable).replace(*change)
    file = folder / unit.replace("@", "@main")
    file.write_text(text)
    return file


def analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    assert ANALYZE is not None
    return subprocess.run([ANALYZE, *words], capture_output=True, text=True, check=False)


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_accepts_the_unit(unit: str, tmp_path: Path) -> None:
    verified = analyze("verify", "--man=no", installed(unit, tmp_path))
    assert (verified.returncode, verified.stderr) == (0, "")
    wrong = analyze("verify", "--man=no", installed(unit, tmp_path, ("ProtectSystem=strict", "ProtectSystm=strict")))
    assert "ProtectSystm" in wrong.stderr


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_exposure_is_low(unit: str, tmp_path: Path) -> None:
    """By systemd's own measure, from 0 to 10: below 2 is OK."""
    judged = analyze("security", "--offline=true", "--threshold=20", installed(unit, tmp_path))
    assert judged.returncode == 0, judged.stdout
