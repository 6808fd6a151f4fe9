"""Looks for fewer acts with which a round still fails."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tests.fuzz.acts import Act
from tests.fuzz.rounds import play
from tests.fuzz.script import Script
from tests.fuzz.world import World

_TRIES: Final = 40


def shrunk(world: World, script: Script) -> Script:
    """Return the shortest script found: runs of acts are left out, then shorter ones, while it still fails."""
    tries = _TRIES
    size = max(1, len(script.acts) // 2)
    while tries and size:
        start = 0
        while start < len(script.acts) and tries:
            left = script.acts[:start] + script.acts[start + size :]
            tries -= 1
            if _fails(world, left, script):
                script = replace(script, acts=left)
            else:
                start += size
        size //= 2
    plain = replace(script, settings=(), role_settings=())
    return plain if plain != script and _fails(world, script.acts, plain) else script


def _fails(world: World, acts: tuple[Act, ...], script: Script) -> bool:
    try:
        play(world, replace(script, acts=acts))
    except AssertionError:
        return True
    return False
