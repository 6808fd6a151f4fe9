"""Views of repositories: git runs on a view instead, so that the repository's configuration has no effect.

A view is a directory with headrace's config and links to the repository's objects, refs and linked working trees'
HEADs. From the repository's settings it takes only the storage format of objects and refs, which git needs, and who may
write them. It has no hooks, attributes, remotes or alternates.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Final

from consumers.repositories.git import Owner, Steps, View, git
from consumers.repositories.storage import Copy

_LINKED: Final = ("objects", "refs", "packed-refs", "reftable", "worktrees", "shallow")
_TELLING: Final = re.compile(rb"extensions|sharedrepository|repositoryformatversion\s*=\s*[^01\s]", re.IGNORECASE)
_TAKEN: Final = r"^(core\.repositoryformatversion|core\.sharedrepository|extensions\..*)$"
# Further settings of a working tree, and the remote of a partial clone: neither is needed.
_LEFT: Final = frozenset(("extensions.worktreeconfig", "extensions.partialclone"))
_PROMISED: Final = '[extensions]\n\tpartialClone = nowhere\n[remote "nowhere"]\n\tpromisor = true\n'


def view(copy: Copy, config: str = "") -> Steps[View]:
    """Create a view of a repository, to be closed by the caller; `config` is added to its settings.

    Raises GitFailed if its config cannot be read, and OSError.
    """
    taken = yield from _taken(copy.path / "config")
    path = copy.scratch()
    path.mkdir(mode=0o755)
    try:
        (path / "config").write_text("[core]\n\tbare = true\n" + taken + config, encoding="utf-8")
        head = copy.path / "HEAD"
        if head.is_symlink():
            (path / "HEAD").symlink_to(head.readlink())
        else:
            shutil.copyfile(head, path / "HEAD")
        for name in _LINKED:
            (path / name).symlink_to(copy.path / name)
        return View(path, owner_of(copy.path))
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


def promising_view(copy: Copy) -> Steps[View]:
    """Create a view in which git accepts the missing objects of a partial clone, without a remote to fetch them."""
    partial = any(copy.path.glob("objects/pack/*.promisor"))
    return (yield from view(copy, _PROMISED if partial else ""))


def owner_of(path: Path) -> Owner | None:
    """Return the user that git has to run as so that its files belong to the owner, None for this process's user."""
    status = path.stat()
    owner = (status.st_uid, status.st_gid)
    return owner if os.geteuid() == 0 and owner != (0, 0) else None


def _taken(config: Path) -> Steps[str]:
    """Return the settings that the view takes from the repository."""
    try:
        content = config.read_bytes()
    except FileNotFoundError:
        return ""
    if not _TELLING.search(content):
        return ""
    said = yield from git("config", "--file", str(config), "--no-includes", "--null", "--list")
    lines = []
    for setting in said.decode("utf-8", "surrogateescape").split("\0")[:-1]:
        name, _, value = setting.partition("\n")
        if re.match(_TAKEN, name) and name not in _LEFT:
            section, _, key = name.partition(".")
            escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
            lines.append(f'[{section}]\n\t{key} = "{escaped}"\n')
    return "".join(lines)
