"""The pages of docs/reference that are generated from the program, each with its generator."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.reference import (
    commands_page,
    errors_page,
    kafka_errors_page,
    kafka_options_page,
    metrics_page,
    settings_page,
)

FOLDER: Final = Path(__file__).parents[2] / "docs" / "reference"
PAGES: Final = {
    "commands.md": commands_page.page,
    "errors.md": errors_page.page,
    "kafka-errors.md": kafka_errors_page.page,
    "kafka-options.md": kafka_options_page.page,
    "metrics.md": metrics_page.page,
    "settings.md": settings_page.page,
}
"""File below FOLDER → what returns its text."""
