"""Builds HTML and SVG from elements, so that every text is escaped by construction."""

from __future__ import annotations

from typing import Final
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from schemas.errors import printable

Child = Element | str | None

_ATTRIBUTES: Final = {"class_": "class", "for_": "for"}


def tag(name: str, /, *children: Child, **attributes: object) -> Element:
    """Return an element with children in order: elements, texts (control characters escaped), or None for nothing.

    An attribute that is None is left out; `class_` is class, and any other underscore a hyphen.
    """
    made = Element(
        name,
        {
            _ATTRIBUTES.get(key, key.replace("_", "-")): printable(str(value))
            for key, value in attributes.items()
            if value is not None
        },
    )
    for child in children:
        add(made, child)
    return made


def add(to: Element, child: Child) -> None:
    """Append a child as `tag` does."""
    if isinstance(child, Element):
        to.append(child)
    elif child:
        text = _text(child)
        if len(to):
            to[-1].tail = (to[-1].tail or "") + text
        else:
            to.text = (to.text or "") + text


def _text(text: str) -> str:
    # Spaces at the ends part a text from the elements next to it.
    before, after = text[: len(text) - len(text.lstrip(" "))], text[len(text.rstrip(" ")) :]
    return f"{before}{printable(text)}{after}" if text.strip() else " "


def page_text(root: Element, style: str) -> str:
    """Return the document as HTML, with `style`, which is headrace's own, in its head; it may contain no `<`."""
    assert "<" not in style
    head = root.find("head")
    assert head is not None
    element = ElementTree.SubElement(head, "style")
    element.text = style
    return f"<!DOCTYPE html>\n{ElementTree.tostring(root, encoding='unicode', method='html')}\n"
