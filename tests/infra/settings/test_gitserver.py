"""The nodes of `[gitserver]`: none that is not there is spoken of, and roots are where the settings file is."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.settings.file import load_settings
from schemas.errors import SettingsError

NODES = '[gitserver]\nnodes = ["node-0", "node-1:3178"]\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some.toml"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[gitserver]\nnodes = ["a b"]', "gitserver.nodes.0: a node's name has at least one character, and no space"),
        ('[gitserver]\nnodes = ["a", "b", "a"]', "gitserver.nodes: a is listed twice"),
        (f'{NODES}[gitserver.roots]\n"node-2" = "/r"', "gitserver.roots: no node is called node-2, did you mean node-"),
        (f'{NODES}[gitserver.roots]\n"node-0" = ""', "gitserver.roots.node-0: "),
        (f'{NODES}[gitserver.pins]\n"a/b" = "nowhere"', "gitserver.pins: no node is called nowhere"),
        (
            f"{NODES}wrong_shard_deletion = 'no'",
            "gitserver.wrong_shard_deletion: Input should be 'off' or 'follows_cursor'",
        ),
        (f"{NODES}max_concurrent_clones = 0", "gitserver.max_concurrent_clones: must be 1 or more"),
        (f"{NODES}refresh_seconds = 11", "gitserver.refresh_seconds: must be 10.0 or less"),
        (f"{NODES}grace_seconds = 3.9", "gitserver.grace_seconds: must be at least four times refresh_seconds"),
    ],
)
def test_each_mistake_names_its_key(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(file)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("root", "loaded"),
    [
        ("repos", "{directory}/repos"),
        ("./a:b", "{directory}/a:b"),
        ("/data/repos", "/data/repos"),
        ("https://node/repos", "https://node/repos"),
        ("git@node:repos", "git@node:repos"),
        ("file:///data", "file:///data"),
    ],
)
def test_a_root_is_a_directory_from_where_the_file_is_or_an_address(file: Path, root: str, loaded: str) -> None:
    file.write_text(f'{NODES}[gitserver.roots]\n"node-1:3178" = "{root}"')
    gitserver = load_settings(file).gitserver
    assert gitserver.roots == {"node-1:3178": loaded.format(directory=file.parent)}
    assert (gitserver.max_concurrent_clones, gitserver.refresh_seconds, gitserver.grace_seconds) == (5, 1, 10)
