"""Lenders of objects are found by reading all repositories."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from consumers.repositories.lenders import Lenders
from consumers.repositories.storage import NotAPlace, Root
from tests.consumers.gitserver.kinds.registry import write
from tests.consumers.gitserver.steps import result
from tests.consumers.gitservers import make_repository


def test_every_kind_of_borrower_is_found(tmp_path: Path) -> None:
    root, other = Root(tmp_path / "a"), Root(tmp_path / "b")
    lent = [root.copy(f"host/{number}") for number in range(5)]
    for each in lent:
        make_repository(each.path)
    borrower = other.path / "pool/fork.git"
    make_repository(borrower)
    relative = os.path.relpath(lent[1].path / "objects", borrower / "objects")
    write(borrower / "objects/info/alternates", f"# a comment\n{lent[0].path}/objects\n\n{relative}\n")
    links = other.path / "links"
    write(links / "HEAD")
    (links / "objects").symlink_to(lent[2].path / "objects")
    (links / "refs").mkdir()
    tree = other.path / "tree"
    make_repository(tree)
    write(tree / "commondir", f"{lent[3].path}\n")
    found = Lenders([root, other])
    result(found.look())
    assert [found.borrower_of(each) for each in lent] == [str(borrower)] * 2 + [str(links), str(tree), None]
    with pytest.raises(NotAPlace, match="other repositories use its objects"):
        found.refuse(lent[0])


def test_lenders_are_read_again_after_a_while(tmp_path: Path) -> None:
    root = Root(tmp_path)
    lender = root.copy("host/lender")
    make_repository(lender.path)
    found = Lenders([root])
    result(found.look())
    write(tmp_path / "fork/objects/info/alternates", f"{lender.path}/objects\n")
    write(tmp_path / "fork/HEAD")
    (tmp_path / "fork/refs").mkdir()
    result(found.look())
    assert found.borrower_of(lender) is None
    found._look_from = 0.0
    result(found.look())
    assert found.borrower_of(lender) == str(tmp_path / "fork")
