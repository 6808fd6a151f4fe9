"""The base identifies two copies and their common state, and is valid for no others."""

from __future__ import annotations

import shutil
from pathlib import Path

from consumers.repositories.base import BASE, Base, finish, read_proof, shared_base, write_base, write_proof
from consumers.repositories.storage import Copy, Root
from consumers.repositories.trees import Entry


def pair(tmp_path: Path) -> tuple[Copy, Copy]:
    copies = (Root(tmp_path / "a").copy("x"), Root(tmp_path / "b").copy("x"))
    for each in copies:
        each.path.mkdir(parents=True)
    return copies


def test_base_is_read_back_unchanged_from_either_copy(tmp_path: Path) -> None:
    old, new = pair(tmp_path)
    refs = {"HEAD": "ref: refs/heads/main", "refs/heads/\udcff odd\u2028one": "a" * 40}
    base = Base(refs, {"x\udcffy": Entry("file", 0o644, 0, 0, 3, 2**62, "")}, ("HEAD",))
    assert shared_base(old, new) is None
    write_base(new.path, old.path, base)
    assert shared_base(old, new) == shared_base(new, old) == base
    finish(new.path)
    assert shared_base(old, new) is None


def test_base_is_invalid_for_other_copies(tmp_path: Path) -> None:
    old, new = pair(tmp_path)
    write_base(new.path, old.path, Base({}, {}))
    new.path.rename(tmp_path / "aside")
    shutil.copytree(tmp_path / "aside", new.path)
    assert (new.path / BASE).exists()
    assert shared_base(old, new) is None
    shutil.rmtree(new.path)
    (tmp_path / "aside").rename(new.path)
    assert shared_base(old, new) is not None
    old.path.rename(tmp_path / "aside")
    old.path.mkdir()
    assert shared_base(old, new) is None


def test_proof_is_kept_with_its_base_and_rubbish_is_ignored(tmp_path: Path) -> None:
    old, new = pair(tmp_path)
    write_proof(new.path, "abc")
    assert read_proof(new.path) == ""
    write_base(new.path, old.path, Base({}, {}))
    write_proof(new.path, "abc")
    write_base(new.path, old.path, Base({"HEAD": "x"}, {}))
    assert read_proof(new.path) == "abc"
    for rubbish in ("", "{}", "[]", '{"pair": 3}', "\udcff"):
        (new.path / BASE).write_bytes(rubbish.encode("utf-8", "surrogateescape"))
        assert shared_base(old, new) is None
