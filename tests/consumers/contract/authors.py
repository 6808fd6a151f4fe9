"""Files as authors of migrations write them: a valid one, and broken ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SOUND: Final = '''
from collections.abc import Sequence

from headrace import Change, ChangeEvent, Cursor, Decision, Migration, Skip


class Lowers(Migration):
    """Lowercase email addresses."""

    name = "lower_emails"
    gitlab_schema = "gitlab_main"
    tables = ("public.users",)
    columns = ("id", "email")

    def decide(self, event: ChangeEvent) -> Decision:
        return Skip("deleted") if event.after is None else Change(event.after["id"])

    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:
        cursor.execute(
            "UPDATE public.users SET email = lower(email) WHERE id = ANY(%s::bigint[]) AND email <> lower(email)",
            (sorted({change.key for change in changes}),),
        )
        return cursor.rowcount

    def remaining(self, cursor: Cursor) -> int:
        cursor.execute("SELECT count(*) FROM public.users WHERE email <> lower(email)")
        return cursor.fetchone()[0]
'''


def sound(called: str, **replaced: str) -> str:
    """Return the valid file under another name, with `attribute = text` in place of a declaration."""
    text = SOUND.replace('name = "lower_emails"', f'name = "{called}"')
    for attribute, declaration in replaced.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"    {attribute} = ")]
        text = text.replace(line, f"    {declaration}" if declaration else "")
    return text


BROKEN: Final[Mapping[str, tuple[str, str]]] = {
    "syntax_error": ("x = 1\n\ndef broken(:\n", "syntax_error.py:3: cannot be imported: SyntaxError: "),
    "import_error": ("import pandas_that_is_nowhere\n", "import_error.py:1: cannot be imported: ModuleNotFoundError: "),
    "raises": (
        "from schemas.errors import UsageError\n\n\ndef fail():\n    raise ValueError('no')\n\n\nfail()\n",
        "raises.py:5: cannot be imported: ValueError: no; ",
    ),
    "leaves": ("import sys\nsys.exit(0)\n", "leaves.py:2: cannot be imported: SystemExit: 0; "),
    "nameless": (sound("x", name=""), "nameless.py:7: class Lowers declares no name; "),
    "no_comma": (
        sound("no_comma", tables='tables = ("public.users")'),
        "no_comma.py:7: class Lowers tables is the string 'public.users', not a tuple:"
        ' a one-element tuple needs a comma; fix it, for example: tables = ("public.users",)',
    ),
    "Capitals": (sound("Capitals"), "name is 'Capitals'; a name has 1 to 63 lowercase letters"),
    "half_done": (sound("half_done").partition("    def remaining")[0], "class Lowers lacks remaining; "),
    "bad_backfill": (
        "from consumers.contract.backfill import Backfill\n\n\nclass Filled(Backfill):\n    name = 'bad_backfill'\n"
        "    gitlab_schema = 'registry'\n",
        "bad_backfill.py:4: class Filled declares no table; ",
    ),
}
"""Name → a file of that name (except `nameless`), and its reported problem."""
