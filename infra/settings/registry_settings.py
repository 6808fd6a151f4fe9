"""`[registry]`: a Confluent-compatible schema registry, and how headrace authenticates there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Self

from pydantic import Field, SecretStr, field_serializer, field_validator, model_validator

from infra.settings.section import Section

HIDDEN: Final = "**********"
"""The mask of a secret where settings are shown, the same as pydantic's."""


class RegistryOauthSettings(Section):
    """OAuth 2.0's client credentials: a token is requested from `token_url`, and again before it expires."""

    token_url: str
    """Where tokens are requested: an http:// or https:// URL."""
    client_id: str = Field(min_length=1)
    """The client's id."""
    client_secret: SecretStr
    """The client's secret; better in HEADRACE_REGISTRY__OAUTH__CLIENT_SECRET."""
    scope: str = ""
    """The scope that is requested, if any."""

    @field_validator("token_url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        if not re.match(r"https?://[^\s@]+$", value):
            raise ValueError("must be an http:// or https:// URL, without credentials")
        return value


class RegistrySettings(Section):
    """A Confluent-compatible registry; without a url, schemas are kept in a compacted topic."""

    # Not in the repr: it may contain a user and a password.
    url: str = Field(default="", repr=False)
    """The registry's address; empty: schemas are kept in a compacted topic."""
    user: str = ""
    """The user, for basic authentication."""
    password: SecretStr = SecretStr("")
    """The user's password; better in HEADRACE_REGISTRY__PASSWORD."""
    token: SecretStr = SecretStr("")
    """A bearer token that does not expire."""
    oauth: RegistryOauthSettings | None = None
    """OAuth 2.0's client credentials, in place of user or token."""
    logical_cluster: str = ""
    """The logical cluster, for bearer tokens in Confluent Cloud."""
    identity_pool: str = ""
    """The identity pool, for bearer tokens in Confluent Cloud."""
    ca_file: Path | None = None
    """Certificate authorities of the registry and of the token's server, in PEM format."""
    certificate_file: Path | None = None
    """A client certificate, in PEM format."""
    key_file: Path | None = None
    """The private key of the client certificate, if it is in a file of its own."""
    key_password: SecretStr = SecretStr("")
    """The password of the private key; better in HEADRACE_REGISTRY__KEY_PASSWORD."""

    @field_serializer("url", when_used="json")
    def _without_credentials(self, value: str) -> str:
        return re.sub(r"(?<=://).*@", f"{HIDDEN}@", value)

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        """Allow one way to authenticate, apart from a client certificate."""
        ways = {
            "a user in url": "@" in self.url,
            "user": bool(self.user),
            "token": bool(self.token.get_secret_value()),
            "oauth": self.oauth is not None,
        }
        given = [name for name, used in ways.items() if used]
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]} exclude each other")
        if self.password.get_secret_value() and not self.user:
            raise ValueError("password needs a user")
        if self.key_file is not None and self.certificate_file is None:
            raise ValueError("key_file needs a certificate_file")
        return self

    def beside(self, directory: Path) -> Self:
        """Return these settings with relative files resolved against `directory`."""
        names = ("ca_file", "certificate_file", "key_file")
        files = {name: directory / file for name in names if (file := getattr(self, name)) is not None}
        return self.model_copy(update=files)
