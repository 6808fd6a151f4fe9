"""Does in a directory what the build of docker-compose.yml's image does, without Docker.

    python -m tests.image_steps

Copies what the Dockerfile copies, builds the wheel, installs it with the constraints into a new virtual environment,
and runs the Dockerfile's own check for the compiled codec, and the sample database's module. Debian's packages and the
base image are not tried.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Final

import yaml

CHECKOUT: Final = Path(__file__).parents[1]


def dockerfile() -> str:
    """Return the text of the image's Dockerfile, with each instruction on one line."""
    compose = yaml.safe_load((CHECKOUT / "docker-compose.yml").read_text(encoding="utf-8"))
    text: str = compose["x-headrace"]["build"]["dockerfile_inline"]
    return text.replace("\\\n", " ")


def copy_sources(text: str, source: Path) -> None:
    """Copy what the COPY instructions copy from the checkout."""
    for line in re.findall(r"^COPY (?!--)(.*)$", text, re.MULTILINE):
        *names, target = line.split()
        for name in names:
            place = source / target / name if target.endswith("/") else source / target
            place.parent.mkdir(parents=True, exist_ok=True)
            if (CHECKOUT / name).is_dir():
                shutil.copytree(CHECKOUT / name, place, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
            else:
                shutil.copy(CHECKOUT / name, place)


def steps(text: str, wheels: Path) -> list[list[str]]:
    """Return the commands of the RUN instructions that use pip or Python."""
    commands = [each.strip() for run in re.findall(r"^RUN (.*)$", text, re.MULTILINE) for each in run.split("&&")]
    kept = [each.replace("/wheels", str(wheels)) for each in commands if re.match(r"(pip|python|cp) ", each)]
    return [["bash", "-c", each] for each in kept]


def main() -> int:
    """Run the steps; return the exit code."""
    with tempfile.TemporaryDirectory() as place:
        source, wheels, environment = Path(place) / "src", Path(place) / "wheels", Path(place) / "venv"
        text = dockerfile()
        copy_sources(text, source)
        venv.create(environment, with_pip=True)
        path = f"{environment / 'bin'}:/usr/local/bin:/usr/bin:/bin"
        checks = [
            "headrace --help > /dev/null",
            "python -m infra.demo.sample_database 2>&1 | grep -q prepare",
        ]
        for command in [*steps(text, wheels), *(["bash", "-c", each] for each in checks)]:
            print(command[-1], flush=True)
            # In the source only what builds it: later commands must find the installed packages.
            cwd = source if "wheel-dir" in command[-1] or command[-1].startswith("cp ") else Path(place)
            ran = subprocess.run(command, cwd=cwd, env={**_inherited(), "PATH": path}, check=False)
            if ran.returncode:
                return ran.returncode
    return 0


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


if __name__ == "__main__":
    sys.exit(main())
