"""Pages are built of elements: a text is never markup."""

from __future__ import annotations

from html.parser import HTMLParser

from consumers.report.markup import add, page_text, tag


class Seen(HTMLParser):
    """What a reader of the page takes for elements and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs


def test_texts_and_attributes_are_escaped() -> None:
    hostile = '<script>alert("&")</script>'
    made = page_text(tag("html", tag("head"), tag("body", tag("p", hostile, title=hostile), " ", hostile)), "p { }")
    seen = Seen()
    seen.feed(made)
    assert seen.names == ["html", "head", "style", "body", "p"]
    assert seen.attributes == [("title", hostile)]
    assert '&lt;script&gt;alert("&amp;")&lt;/script&gt;' in made


def test_control_characters_are_shown_as_such() -> None:
    made = page_text(tag("html", tag("head"), tag("p", "a\0b\x1b[1m\udcff")), "")
    assert r"a\x00b\x1b[1m\udcff" in made
    made.encode()


def test_children_keep_their_order_and_none_is_nothing() -> None:
    paragraph = tag("p", "a ", tag("b", "b"), None, " c", class_="x", aria_label="y", id=None)
    add(paragraph, "d")
    html = page_text(tag("html", tag("head"), paragraph), "")
    assert '<p class="x" aria-label="y">a <b>b</b> cd</p>' in html
