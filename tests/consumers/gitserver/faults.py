"""Plants fixed faults of moves again by patching, each with the kinds of repositories that show it.

`python -m tests.consumers.gitserver.faults` (`make faults`) moves those kinds there and back with each fault, prints
the errors, and ends with exit code 1 if a fault did not show.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from unittest import mock

from consumers.gitserver import moves, worker
from consumers.gitserver.states import Move
from consumers.repositories import carry_over, clone, git, lenders, objects, proof, refs, storage, trees, views
from consumers.repositories.base import Base
from consumers.repositories.git import Steps, View
from consumers.repositories.storage import Copy
from consumers.repositories.trees import Entry
from infra.stack import embedded_stack
from tests.conftest import Database
from tests.consumers.gitserver.comparing import make_all, wrong
from tests.consumers.gitserver.driver import NAMES, World, drive, with_direction
from tests.consumers.gitserver.kinds import KINDS, MARK
from tests.consumers.gitservers import make_tables


class Patch(Protocol):
    """Sets an attribute of a module or a class, as `setattr` and monkeypatch's do."""

    def __call__(self, owner: Any, name: str, value: Any, /) -> object: ...


@dataclass(frozen=True)
class Fault:
    """A fault, its point in the issue, and the kinds that it loses, changes or does not refuse."""

    name: str
    point: int
    kinds: Sequence[str]
    put_back: Callable[[Patch], None]


FAULTS: Final[dict[str, Fault]] = {}


def fault(point: int, *kinds: str) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Add the decorated function, which plants the fault."""

    def add(put_back: Callable[[Patch], None]) -> Callable[[Patch], None]:
        FAULTS[put_back.__name__] = Fault(put_back.__name__, point, kinds, put_back)
        return put_back

    return add


def _nothing(*_: Any, **__: Any) -> Steps[None]:
    """Replace a step that is left out."""
    return
    yield


def _for_all(patch: Patch, name: str, value: Any) -> None:
    """Patch a name in every module that has it."""
    for module in (carry_over, clone, moves, objects, storage, proof, refs, trees, views):
        if hasattr(module, name):
            patch(module, name, value)


@fault(
    1,
    "an_object_is_missing",
    "an_object_file_is_empty",
    "a_pack_is_cut_off",
    "a_ref_leads_to_nothing",
    "it_says_that_nothing_is_wrong_with_it",
    "it_would_fetch_what_is_missing",
)
def copies_are_not_proven(patch: Patch) -> None:
    _for_all(patch, "prove", _nothing)


@fault(
    1,
    "leftover_without_objects",
    "leftover_with_one_object_missing",
    "leftover_with_empty_object_files",
)
def what_lies_at_the_new_home_is_believed(patch: Patch) -> None:
    what_lies_at_the_new_home_is_ours(patch)
    patch(moves, "carry", _nothing)
    patch(moves, "keep_up", _nothing)
    patch(moves, "prove", _nothing)
    patch(moves, "shared_base", lambda *_: Base({}, {}))


@fault(2, "leftover_whole_but_stale", "leftover_ahead_of_it", "leftover_of_another_repository")
def what_lies_at_the_new_home_is_ours(patch: Patch) -> None:
    def belongs(_moves: moves.Moves, _move: Move, _old: Copy, new: Copy) -> Steps[bool]:
        return new.is_there
        yield

    patch(moves.Moves, "_belongs", belongs)


@fault(2, "leftover_with_rubbish", "leftover_that_is_a_file", "leftover_with_a_lock", "leftover_closed_to_all")
def what_is_set_aside_is_not_reported(patch: Patch) -> None:
    patch(moves.Moves, "_tell", lambda *_: lambda _text: None)


@fault(
    3,
    "lfs",
    "annex",
    "svn",
    "modules",
    "a_commit_that_only_a_linked_worktree_has",
    "reflogs_with_commits_of_their_own",
    "executable_hooks",
    "files_beside_gits_own",
    "a_symbolic_link_within",
    "version_1_with_extensions",
)
def directories_that_git_does_not_clone_are_left_out(patch: Patch) -> None:
    original = trees.walk
    cloned = ("HEAD", "config", "packed-refs", "objects", "refs", "info", "description", "shallow")

    def walk(top: Path, *, files_only: bool) -> Steps[dict[str, Entry]]:
        found = yield from original(top, files_only=files_only)
        return {path: each for path, each in found.items() if path.partition("/")[0] in cloned}

    _for_all(patch, "walk", walk)


@fault(3, "it_lends_objects", "another_is_made_of_links_to_it")
def lenders_are_not_looked_for(patch: Patch) -> None:
    patch(lenders.Lenders, "borrower_of", lambda *_: None)


@fault(3, "it_borrows_objects", "its_objects_are_elsewhere", "a_linked_worktree_in_use", "a_working_tree_beside_it")
def what_depends_on_its_place_is_moved(patch: Patch) -> None:
    patch(clone, "refuse", lambda _: None)


@fault(3, "a_relative_link_leads_out_of_it", "an_absolute_link_leads_back_to_it")
def links_that_lead_elsewhere_are_copied(patch: Patch) -> None:
    patch(trees, "_refuse_link", lambda *_: None)


@fault(
    4,
    "it_includes_what_is_not_there_and_what_is_no_config",
    "it_is_no_config_at_all",
    "it_says_that_nothing_is_wrong_with_it",
)
def settings_of_the_repository_act(patch: Patch) -> None:
    class Itself(View):
        def close(self) -> None:
            """It is the repository itself, not a view."""

    def view(copy: Copy, _config: str = "") -> Steps[View]:
        return Itself(copy.path, views.owner_of(copy.path))
        yield

    _for_all(patch, "view", view)
    _for_all(patch, "promising_view", view)
    patch(git, "_CONFIGURED", ())
    patch(git, "_environment", lambda: dict(os.environ))


@fault(
    5,
    "settings_with_credentials",
    "executable_hooks",
    "shared_with_a_group",
    "closed_directories",
    "another_owner",
    "lfs",
    "annex",
    "extended_attributes",
    "access_lists",
)
def modes_owners_and_attributes_are_lost(patch: Patch) -> None:
    def dress(source: Path, target: Path) -> None:
        if not target.is_symlink():
            target.chmod(0o755 if target.is_dir() else 0o644)
            status = source.lstat()
            os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))

    def like(path: Path) -> Entry:
        found = original(path)
        return found if found.kind != "file" else trees.Entry("file", 0, 0, 0, found.size, found.mtime_ns, "")

    original = trees.entry
    _for_all(patch, "dress", dress)
    _for_all(patch, "entry", like)


@fault(5, "head_is_a_symbolic_link", "head_is_a_symbolic_link_to_a_packed_branch")
def a_head_that_is_a_link_is_copied_as_a_file(patch: Patch) -> None:
    original = clone._copy_one

    def copy_one(source: Path, made: Path, wanted: Entry) -> Steps[Entry]:
        if source.name == "HEAD" and wanted.kind == "link":
            made.write_text(f"ref: {source.readlink()}\n")
            return wanted
        return (yield from original(source, made, wanted))

    patch(clone, "_copy_one", copy_one)


@fault(5, "head_is_a_symbolic_link_to_a_packed_branch")
def a_head_has_to_lead_to_a_file(patch: Patch) -> None:
    _for_all(patch, "is_repository", lambda path: all((path / part).exists() for part in ("HEAD", "objects", "refs")))


@fault(5, "symbolic_ref_that_dangles", "symbolic_refs")
def symbolic_refs_are_resolved_and_dropped_where_they_dangle(patch: Patch) -> None:
    original = clone._copy_one

    def copy_one(source: Path, made: Path, wanted: Entry) -> Steps[Entry]:
        copied = yield from original(source, made, wanted)
        if "refs" in source.parts and wanted.kind == "file" and (said := made.read_bytes()).startswith(b"ref:"):
            repository = next(parent for parent in source.parents if (parent / "objects").exists())
            leads_to = repository / os.fsdecode(said.removeprefix(b"ref:").strip())
            made.unlink()
            if leads_to.exists():
                shutil.copyfile(leads_to, made)
        return copied

    patch(clone, "_copy_one", copy_one)


@fault(3, "unreachable_objects", "reflogs_with_commits_of_their_own")
def only_what_refs_lead_to_arrives(patch: Patch) -> None:
    original = clone._copied

    def copied(source: Copy, made: Path, seconds: float, passes: int) -> Steps[Any]:
        files = yield from original(source, made, seconds, passes)
        yield from git.run("git", f"--git-dir={made}", "repack", "-adq", seconds=seconds)
        yield from git.run("git", f"--git-dir={made}", "reflog", "expire", "--expire=now", "--all", seconds=seconds)
        yield from git.run("git", f"--git-dir={made}", "prune", "--expire=now", seconds=seconds)
        return files

    patch(clone, "_copied", copied)
    patch(moves, "carry", _nothing)
    patch(moves, "keep_up", _nothing)


@fault(6)
def late_pushes_are_not_carried_over(patch: Patch) -> None:
    patch(moves, "carry", _nothing)
    patch(moves, "keep_up", _nothing)


@fault(6)
def deletions_are_not_carried_over(patch: Patch) -> None:
    original = refs.plan

    def plan(*three: refs.Refs) -> tuple[list[refs.Carry], list[refs.Clash]]:
        carries, clashes = original(*three)
        return [each for each in carries if each.new is not None], clashes

    patch(carry_over, "plan", plan)


def shown(world: World, fault: Fault) -> dict[str, list[str]]:
    """Move a fault's kinds there and back with it; return kind → the errors by which the fault shows."""
    named = dict(zip(NAMES, (KINDS[kind] for kind in fault.kinds), strict=False))
    before = make_all(world, named)
    found: dict[str, list[str]] = {kind: [] for kind in fault.kinds}
    with ExitStack() as patched:

        def patch(owner: Any, name: str, value: Any) -> None:
            patched.enter_context(mock.patch.object(owner, name, value))

        patch(worker, "_SLOW_SECONDS", 0.01)
        fault.put_back(patch)
        for direction in ("forward", "reverse"):
            try:
                drive(with_direction(world.config, direction), seconds=60)
            except Exception as error:
                found[fault.kinds[0]].append(repr(error))
            for kind, what in wrong(world, named, before, forward=direction == "forward"):
                found[kind].append(what)
            world.new_run()
    if (world.disks.directory.parent / MARK).exists():
        found[fault.kinds[0]].append("a command of a repository's own ran")
    return found


def main() -> int:
    """Show each fault; print a table of fault, kind, and first error."""
    unseen = 0
    with embedded_stack(fsync=False) as stack, tempfile.TemporaryDirectory(prefix="headrace-faults-") as directory:
        Path(directory).chmod(0o711)
        for fault in (fault for fault in FAULTS.values() if fault.kinds):
            place = Path(directory) / fault.name
            place.mkdir()
            with ExitStack() as opened:
                name = f"faults_{os.urandom(4).hex()}"
                database = Database(name, stack.postgres.create_database(name), opened)
                make_tables(database.connect())
                world = World(database, place, kafka=stack.endpoints.bootstrap_servers, prefix=name)
                found = shown(world, fault)
            for kind, what in found.items():
                print(f"{fault.point} | {fault.name} | {kind} | {what[0] if what else 'NOT SEEN'}", flush=True)
                unseen += not what
    print(f"{len(FAULTS)} faults; {unseen} of their kinds did not show them")
    return 1 if unseen else 0


if __name__ == "__main__":
    sys.exit(main())
