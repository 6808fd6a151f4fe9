"""LSNs as text."""

from __future__ import annotations

import pytest

from schemas.positions import format_lsn, parse_lsn


@pytest.mark.parametrize("text", ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"])
def test_lsn_comes_back_as_it_was_printed(text: str) -> None:
    assert format_lsn(parse_lsn(text)) == text


@pytest.mark.parametrize("text", ["", "/", "1", "1/", "-1/0", "1/-1", "+1/0", "1_0/0", " 1/0", "0x1/0", "1/000000000"])
def test_invalid_lsn_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an LSN"):
        parse_lsn(text)
