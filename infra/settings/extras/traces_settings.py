"""`[traces]`: OpenTelemetry traces."""

from __future__ import annotations

from pydantic import Field

from infra.settings.section import Section


class TracesSettings(Section):
    """OpenTelemetry traces of consumers' transactions; needs the extra `traces`."""

    sample: float = Field(default=0.0, ge=0, le=1)
    """The share of source transactions whose effects are traced, up to 1; 0: no traces."""
    endpoint: str = Field(default="", pattern=r"^($|https?://)")
    """OTLP over HTTP, such as `http://127.0.0.1:4318/v1/traces`; empty: as OTEL_EXPORTER_OTLP_ENDPOINT says."""
