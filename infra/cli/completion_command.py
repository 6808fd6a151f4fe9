"""The command `headrace completion`: a script for the shell with all commands, options, and names of the settings.

The script is complete in itself: while a user types, no Python starts. Libraries such as shtab need argparse, and the
scripts of Typer start the program at each Tab.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from infra.cli.options import Config

if TYPE_CHECKING:
    from infra.settings.model import Settings

Words = Mapping[str, Sequence[tuple[str, str]]]
"""The words so far, such as ` schema expand` → each word that may follow, with its description."""

Names = Mapping[str, Iterable[str]]
"""What an argument is in the help, such as MIGRATION → the names that it may have."""
_PLAIN: Final = re.compile(r"[\w.-]+", re.ASCII)


class Shell(StrEnum):
    """A shell that can complete."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion_with(names_of: Callable[[Settings], Names]) -> Callable[..., None]:
    """Return the command; `names_of` returns the names that arguments may have with these settings."""

    def completion(
        context: typer.Context,
        shell: Annotated[Shell, typer.Argument(help="The shell.", show_default=False)],
        config: Config = None,
    ) -> None:
        """Print a script that completes commands and options.

            headrace completion bash > ~/.local/share/bash-completion/completions/headrace

        For zsh, into a file `_headrace` in a folder of `fpath`; for fish, into
        `~/.config/fish/completions/headrace.fish`. Where there is a settings file, the script also completes the names
        of its migrations, sources, databases and gitlab schemas. Print it again after an upgrade, or when names were
        added. Files are completed where a value may be one.
        """
        from infra.settings.file import load_settings, settings_path
        from infra.settings.model import Settings

        there = config is not None or settings_path(None).exists()
        names = names_of(load_settings(config) if there else Settings())
        root = context.find_root()
        typer.echo(script(shell, dict(_words(root.command, root, "", names))))

    return completion


def script(shell: Shell, words: Words) -> str:
    """Return the script for a shell."""
    return _SCRIPTS[shell](words)


def _words(command: Any, context: Any, at: str, names: Names) -> Iterator[tuple[str, Sequence[tuple[str, str]]]]:
    found: list[tuple[str, str]] = []
    for name in command.list_commands(context) if isinstance(command, typer.core.TyperGroup) else []:
        _, inner, _ = command.resolve_command(context, [name])
        if not inner.hidden:
            found.append((name, inner.get_short_help_str(200)))
            yield from _words(inner, context, f"{at} {name}", names)
    for option in command.get_params(context):
        if option.param_type_name == "option":
            text = " ".join((option.help or "").split())
            found += [(name, text) for name in (*option.opts, *option.secondary_opts) if name.startswith("--")]
        else:
            found += _arguments(option.metavar or "", names)
    yield at, found


def _arguments(metavar: str, names: Names) -> Iterator[tuple[str, str]]:
    """Yield the names that an argument such as `[SOURCE|MIGRATION]...` may have, but for those that need quotes."""
    for what in metavar.strip("[].").split("|"):
        for name in names.get(what, ()):
            if _PLAIN.fullmatch(name):
                yield name, what.lower()


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
