"""The command `headrace completion`: a script for the shell that has every command and option.

The script is complete in itself: while a user types, no Python starts. Libraries such as shtab need argparse, and the
scripts of Typer start the program at each Tab.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

Words = Mapping[str, Sequence[tuple[str, str]]]
"""The words so far, such as ` schema expand` → each word that may follow, with its description."""


class Shell(StrEnum):
    """A shell that can complete."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    context: typer.Context, shell: Annotated[Shell, typer.Argument(help="The shell.", show_default=False)]
) -> None:
    """Print a script that completes commands and options.

        headrace completion bash > ~/.local/share/bash-completion/completions/headrace

    For zsh, into a file `_headrace` in a folder of `fpath`; for fish, into `~/.config/fish/completions/headrace.fish`.
    Print it again after an upgrade. Files are completed where a value may be one.
    """
    root = context.find_root()
    typer.echo(script(shell, dict(_words(root.command, root, ""))))


def script(shell: Shell, words: Words) -> str:
    """Return the script for a shell."""
    return _SCRIPTS[shell](words)


def _words(command: Any, context: Any, at: str) -> Iterator[tuple[str, Sequence[tuple[str, str]]]]:
    found: list[tuple[str, str]] = []
    names = command.list_commands(context) if isinstance(command, typer.core.TyperGroup) else []
    for name in names:
        _, inner, _ = command.resolve_command(context, [name])
        if not inner.hidden:
            found.append((name, inner.get_short_help_str(200)))
            yield from _words(inner, context, f"{at} {name}")
    for option in command.get_params(context):
        if option.param_type_name == "option":
            text = " ".join((option.help or "").split())
            found += [(name, text) for name in (*option.opts, *option.secondary_opts) if name.startswith("--")]
    yield at, found


def _bash(words: Words) -> str:
    steps = "|".join(f'"{at}"' for at in words if at)
    cases = [f'        "{at}") words="{" ".join(word for word, _ in each)}" ;;' for at, each in words.items()]
    return _BASH.replace("STEPS", steps).replace("CASES", "\n".join(cases))


def _zsh(words: Words) -> str:
    steps = "|".join(f'"{at}"' for at in words if at)
    cases = [
        f'        ("{at}") found=({" ".join(_quoted(f"{word}:{text}") for word, text in each)}) ;;'
        for at, each in words.items()
    ]
    return _ZSH.replace("STEPS", steps).replace("CASES", "\n".join(cases))


def _fish(words: Words) -> str:
    steps = " ".join(f'"{at}"' for at in words if at)
    cases = [
        f"        case {_quoted(at)}\n            printf '%s\\n' "
        + " ".join(_quoted(f"{word}\t{text}").replace("\\", "\\\\").replace("'\\\\''", "\\'") for word, text in each)
        for at, each in words.items()
    ]
    return _FISH.replace("STEPS", steps).replace("CASES", "\n".join(cases))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


_BASH: Final = """\
_headrace() {
    local word at="" words=""
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case "$at $word" in
            STEPS) at="$at $word" ;;
        esac
    done
    case "$at" in
CASES
    esac
    COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o bashdefault -o default -F _headrace headrace"""

_ZSH: Final = """\
#compdef headrace
_headrace() {
    local word at=""
    local -a found
    for word in "${(@)words[2,CURRENT-1]}"; do
        case "$at $word" in
            (STEPS) at="$at $word" ;;
        esac
    done
    case "$at" in
CASES
    esac
    _describe headrace found || _files
}
if [ "$funcstack[1]" = "_headrace" ]; then
    _headrace
else
    compdef _headrace headrace
fi"""

_FISH: Final = """\
function __headrace_words
    set -l at ""
    for word in (commandline -opc)[2..]
        switch "$at $word"
            case STEPS
                set at "$at $word"
        end
    end
    switch "$at"
CASES
    end
end
complete -c headrace -a '(__headrace_words)'"""

_SCRIPTS: Final = {Shell.BASH: _bash, Shell.ZSH: _zsh, Shell.FISH: _fish}
