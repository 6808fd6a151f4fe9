"""Views of repositories: what git is given in place of one, so that nothing of its configuration takes effect.

A view is a directory with a config of ours and links to what the repository consists of: its objects, its refs, the
linked working trees' HEADs. Of the repository's own settings it has how objects and refs are stored, as git needs to
know that, and who may write them. There are no hooks in it, no attributes, no remotes and no other objects' lenders.
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
# Where the rest of the settings of a working tree is, and from whom missing objects may be had: both are no matter.
_LEFT: Final = frozenset(("extensions.worktreeconfig", "extensions.partialclone"))
_PROMISED: Final = '[extensions]\n\tpartialClone = nowhere\n[remote "nowhere"]\n\tpromisor = true\n'


def view(copy: Copy, config: str = "") -> Steps[View]:
    """Make a view of a repository, to be closed by the caller; `config` is added to its settings.

    Raises GitFailed where its config cannot be read, and OSError.
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
    """Make a view in which git does not miss what a partial clone leaves out; it has no place to fetch that from."""
    partial = any(copy.path.glob("objects/pack/*.promisor"))
    return (yield from view(copy, _PROMISED if partial else ""))


def owner_of(path: Path) -> Owner | None:
    """Return the user that git has to run as to leave files of the owner's, None where this process is the one."""
    status = path.stat()
    owner = (status.st_uid, status.st_gid)
    return owner if os.geteuid() == 0 and owner != (0, 0) else None


def _taken(config: Path) -> Steps[str]:
    """Return those settings of a repository that its view has too."""
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
