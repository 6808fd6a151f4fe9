from __future__ import annotations

from consumers.operations.overview.status_models import PartitionStatus, SourceStatus


def test_json_schema_describes_fields_by_their_docstrings() -> None:
    fields = PartitionStatus.model_json_schema()["properties"]
    assert fields["offset"]["description"] == "The ledger's offset: all before it is settled."
    assert "description" not in fields["topic"]
    inner = SourceStatus.model_json_schema()["$defs"]["TableStatus"]["properties"]
    assert any("description" in field for field in inner.values())
