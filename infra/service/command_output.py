"""Runs a command of the settings that prints a secret, such as a token; without a shell, within a time limit."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Final

from schemas.errors import SettingsError, Unavailable

_SECONDS: Final = 30.0
_SHOWN: Final = 400
"""Characters of a failed command's standard error that a message quotes."""


class CommandFailed(Unavailable):
    """Run it by hand to see why; it has to print the secret on standard output and exit with code 0."""


def output_of(command: Sequence[str], setting: str, seconds: float = _SECONDS) -> str:
    """Return what a command prints; `setting` is the key that names it, for messages.

    It gets no input and this process's environment. Raises SettingsError for a program that cannot be started, and
    CommandFailed, which may be temporary, if it fails, prints nothing or takes more than `seconds`. A message has the
    program's name and its standard error; never its arguments or its output, which may be secrets.
    """
    named = f"{setting} ({command[0]})"
    try:
        # Its own process group, so that what it started ends with it.
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(
            f"{named} cannot be started: {reason}", remedy=f"correct {setting}: a list of a program and its arguments"
        ) from None
    with process:
        try:
            output, complaint = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise CommandFailed(f"{named} took more than {seconds:g} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        said = " ".join(complaint.decode(errors="replace").split())[:_SHOWN]
        raise CommandFailed(f"{named} failed with exit code {process.returncode}: {said or 'no message'}")
    text = output.decode(errors="replace").strip()
    if not text:
        raise CommandFailed(f"{named} printed nothing")
    return text
