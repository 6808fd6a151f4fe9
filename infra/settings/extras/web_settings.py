"""`[web]`: who may change things on the console."""

from __future__ import annotations

from typing import Final

from pydantic import Field, SecretStr, field_validator

from infra.settings.section import Name, Section

TOKEN_CHARACTERS: Final = 16
"""The shortest token of the console."""


class WebSettings(Section):
    """The console, `headrace web`."""

    tokens: dict[Name, SecretStr] = Field(default_factory=dict)
    """An operator's name → the token with which they may change things, better in HEADRACE_WEB__TOKENS__NAME; none: the
    console is read-only."""

    @field_validator("tokens")
    @classmethod
    def _hard_to_guess(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, token in value.items():
            text = token.get_secret_value()
            if len(text) < TOKEN_CHARACTERS or not text.isascii() or not text.isprintable() or " " in text:
                raise ValueError(
                    f"{name}: a token has {TOKEN_CHARACTERS} ASCII characters or more and no space:"
                    " `openssl rand -hex 16` prints one"
                )
        texts = [token.get_secret_value() for token in value.values()]
        if len(set(texts)) < len(texts):
            raise ValueError("two operators have the same token: the history would not show which of them acted")
        return value
