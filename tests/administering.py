"""The administrator's script for all programs of some settings."""

from __future__ import annotations

from headrace import programs
from infra.init.administrator import administrator_script
from infra.settings.model import Settings


def whole_script(settings: Settings) -> str:
    """Return what `headrace init --sql` prints."""
    return administrator_script(settings, programs(settings))
