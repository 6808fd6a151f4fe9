"""The words for a mistake; tests/infra/settings/test_model.py has each that the settings can have."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from infra.settings.mistakes import Location, Mistakes, close_to, dotted

WORD = "^[a-z]+$"


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    colour: Annotated[str, StringConstraints(pattern=WORD)] = "red"
    size: int = Field(default=1, ge=1, le=9)

    @model_validator(mode="after")
    def _not_both(self) -> Inner:
        if self.colour == "blue" and self.size == 9:
            raise ValueError("colour: blue is never of size 9")
        return self


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    inner: Inner = Inner()
    many: dict[str, Inner] = Field(default_factory=dict)


MISTAKES = Mistakes(Outer, {WORD: "a colour has small letters"})


def found(**values: Any) -> list[tuple[Location, str]]:
    with pytest.raises(ValidationError) as caught:
        Outer(**values)
    return MISTAKES.each(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "name is missing"),
        ({"name": "n", "inner": {"color": "red"}}, "unknown key inner.color, did you mean colour?"),
        ({"name": "n", "many": {"a b": {"siz": 1}}}, 'unknown key many."a b".siz, did you mean size?'),
        ({"name": "n", "inner": {"entirely": 1}}, "unknown key inner.entirely"),
        ({"name": "n", "inner": {"colour": "RED"}}, "inner.colour: a colour has small letters"),
        ({"name": "n", "inner": {"size": 0}}, "inner.size: must be 1 or more"),
        ({"name": "n", "inner": {"size": 10}}, "inner.size: must be 9 or less"),
        ({"name": "n", "inner": 1}, "inner: must be a table of keys"),
        ({"name": "n", "inner": {"colour": "blue", "size": 9}}, "inner.colour: blue is never of size 9"),
    ],
)
def test_each_kind_in_the_words_of_the_file(values: dict[str, Any], said: str) -> None:
    assert found(**values)[0][1] == said


def test_every_mistake_is_found() -> None:
    assert [said for _, said in found(name=1, inner=1)] == ["name: must be a string", "inner: must be a table of keys"]


def test_the_place_is_the_keys() -> None:
    assert found(name="n", many={"a": {"size": 0}})[0][0] == ("many", "a", "size")


def test_a_key_is_quoted_where_toml_would() -> None:
    assert dotted(("a", 0, "b-c", "d.e")) == 'a.0.b-c."d.e"'


def test_what_is_close() -> None:
    assert close_to("tabels", ["tables", "keys"]) == ", did you mean tables?"
    assert close_to("nothing", ["tables", "keys"]) == ""
