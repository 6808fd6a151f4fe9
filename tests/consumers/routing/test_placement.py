"""Placement is identical to gitserver's."""

from __future__ import annotations

import itertools

import pytest
import xxhash
from hypothesis import assume, given
from hypothesis import strategies as st

from consumers.routing.placement import (
    PARTITIONS,
    Algorithm,
    Placement,
    home,
    md5_home,
    normalised,
    order_key,
    partition_of,
    rendezvous_home,
)
from schemas.errors import UsageError

THREE = tuple(f"gitserver-{number}:3178" for number in range(3))
FOUR = (*THREE, "gitserver-3:3178")

NAMES = st.text(st.sampled_from("aB/.-\u0130\u03a3\u00c4\udcff"), max_size=12).map(
    lambda name: name.replace("B", "GitHub.com").replace("a.", ".git")
)
"""Names to which every rule of the normal form applies."""

NODES = st.lists(st.text("abc:1", min_size=1, max_size=6), min_size=1, max_size=6, unique=True)


@pytest.mark.parametrize(
    ("name", "normal", "homes"),
    [
        ('github.com/gitlab-org/gitlab', 'github.com/gitlab-org/gitlab', '11 11'),
        ('GitHub.com/GitLab-Org/GitLab.git', 'github.com/gitlab-org/gitlab', '11 11'),
        ('gitlab.com/GitLab-Org/GitLab', 'gitlab.com/GitLab-Org/GitLab', '21 11'),
        ('GITLAB.com/GitLab-Org/GitLab.git', 'gitlab.com/GitLab-Org/GitLab', '21 11'),
        ('FooBar.git', 'FooBar', '02 32'),
        ('foobar', 'foobar', '01 11'),
        ('myServer.Com/FooBar/.git', 'myserver.com/FooBar', '10 00'),
        ('/etc/passwd', 'etc/passwd', '10 10'),
        ('../../../etc/passwd', 'etc/passwd', '10 10'),
        ('foobar.git/../etc/passwd', 'etc/passwd', '10 10'),
        ('a//b/./c/', 'a/b/c', '10 10'),
        ('github.com/../Foo/Bar', 'foo/Bar', '22 32'),
        ('foo/bar/../..', '', '22 02'),
        ('', '', '22 02'),
        ('a.git.git', 'a.git', '11 31'),
        ('GitHub.com/Foo.GIT', 'github.com/foo.git', '11 21'),
        ('DELETED-1650360042.603863-github.com/owner/Repo', 'github.com/owner/repo', '02 13'),
        ('DELETED-1650360042-github.com/owner/Repo', 'deleted-1650360042-github.com/owner/Repo', '20 13'),
        ('github.com/\u0130STANBUL/\u039f\u0394\u039f\u03a3', 'github.com/istanbul/\u03bf\u03b4\u03bf\u03c3', '02 03'),
        ('\u0130STANBUL.Example/\u039f\u0394\u039f\u03a3', 'istanbul.example/\u039f\u0394\u039f\u03a3', '22 12'),
        ('github.com/\udcff\udce2\udc82/\xc4', 'github.com/\ufffd\ufffd\ufffd/\xe4', '12 32'),
        ('gitlab.com/\udcff/\xc4', 'gitlab.com/\udcff/\xc4', '12 02'),
        ('\u03a3.example/x', '\u03c3.example/x', '20 00'),
        ('\u65e5\u672c/\u30ea\u30dd\u30b8\u30c8\u30ea.git', '\u65e5\u672c/\u30ea\u30dd\u30b8\u30c8\u30ea', '01 01'),
        ('-n/--help', '-n/--help', '12 23'),
        ('a\tb/c', 'a\tb/c', '20 33'),
    ],
)  # fmt: skip
def test_placement_matches_gitserver(name: str, normal: str, homes: str) -> None:
    """Expected values by a program with Go's strings and path, cespare/xxhash and dgryski/go-rendezvous.

    `homes`: the number of the md5 and of the rendezvous home, with three nodes and then with four.
    """
    assert normalised(name) == normal
    numbers = [
        THREE.index(md5_home(name, THREE)),
        THREE.index(rendezvous_home(name, THREE)),
        FOUR.index(md5_home(name, FOUR)),
        FOUR.index(rendezvous_home(name, FOUR)),
    ]
    assert "{}{} {}{}".format(*numbers) == homes


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("repo1", "gitserver-1"),
        ("repo1.git", "gitserver-1"),
        ("github.com/sourcegraph/sourcegraph.git", "gitserver-3"),
        ("gitlab.com/foo/bar", "gitserver-2"),
    ],
)
def test_placement_passes_gitservers_own_tests(name: str, node: str) -> None:
    assert rendezvous_home(name, ["gitserver-1", "gitserver-2", "gitserver-3"]) == node


@given(name=NAMES)
def test_normal_form_is_stable(name: str) -> None:
    once = normalised(name)
    # A second .git, or one before a slash, becomes a suffix only by the first cleaning, as in gitserver.
    assume(not once.endswith(".git"))
    assert normalised(once) == once
    assert normalised(f"DELETED-1650360042.603863-{name}") == once
    assert normalised(f"/{name}") == once


@given(name=NAMES)
def test_normal_form_stays_below_its_root(name: str) -> None:
    parts = normalised(name).split("/")
    assert parts == [""] or not {"", ".", ".."} & set(parts)


@given(name=NAMES, nodes=NODES, data=st.data())
def test_removed_node_moves_only_its_own_names(name: str, nodes: list[str], data: st.DataObject) -> None:
    at = rendezvous_home(name, nodes)
    gone = data.draw(st.sampled_from(nodes))
    assume(len(nodes) > 1)
    left = [node for node in nodes if node != gone]
    assert (rendezvous_home(name, left) == at) == (gone != at)


@given(name=NAMES, nodes=NODES, data=st.data())
def test_rendezvous_does_not_depend_on_the_order_of_nodes(name: str, nodes: list[str], data: st.DataObject) -> None:
    assert rendezvous_home(name, data.draw(st.permutations(nodes))) == rendezvous_home(name, nodes)


def test_md5_depends_on_the_order_of_nodes() -> None:
    name = "github.com/a/b"
    homes = {md5_home(name, nodes) for nodes in itertools.permutations(THREE)}
    assert homes == set(THREE)


def test_earlier_node_wins_a_tie() -> None:
    # Two names of one hash, solved for: XXH64 can be turned round.
    twins = ["gitserver-0:3178", "gitservr\udcbf\udca0\udcda%)YY\udc8a"]
    hashes = {xxhash.xxh64_intdigest(node.encode("utf-8", "surrogateescape")) for node in twins}
    assert len(hashes) == 1
    assert [rendezvous_home("a/b", nodes) for nodes in (twins, twins[::-1])] == twins


@given(name=NAMES)
def test_order_key_sorts_by_bytes(name: str) -> None:
    assert order_key(name) == normalised(name).encode("utf-8", "surrogateescape")
    assert 0 <= partition_of(name) < PARTITIONS


@pytest.mark.parametrize(
    ("name", "partition"),
    [("github.com/gitlab-org/gitlab", 12), ("GitHub.com/GitLab-Org/GitLab.git", 12), ("foobar", 5), ("", 0)],
)
def test_partition_of_a_name_never_changes(name: str, partition: int) -> None:
    """Cursors in a database are stored by this number."""
    assert partition_of(name) == partition


def test_pin_has_precedence_over_any_hash() -> None:
    name = "github.com/a/b"
    for node, algorithm in itertools.product(THREE, Algorithm):
        pinned = Placement(THREE, {"GitHub.com/A/b.git": node})
        assert pinned.home(name, algorithm) == pinned.home(f"DELETED-1.2-{name}", algorithm) == node
        assert pinned.home("github.com/a/c", algorithm) == home("github.com/a/c", THREE, algorithm)


def test_invalid_placement_is_refused() -> None:
    with pytest.raises(UsageError, match="no gitserver nodes"):
        Placement(())
    with pytest.raises(UsageError, match=r"github\.com/A/B is pinned to two nodes"):
        Placement(THREE, {"github.com/A/B": THREE[0], "github.com/a/b": THREE[1]})
