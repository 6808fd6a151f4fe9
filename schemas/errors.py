"""The errors that a user can see, in one tree; driver errors are translated into it at the edges.

    HeadraceError            exit code 1: it failed
    |-- Unavailable          a server did not answer, or stopped answering; trying again may help
    |   |-- DatabaseUnavailable
    |   `-- BrokerUnavailable
    |-- Malformed            bytes that are not what they should be (a pgoutput message, an Avro record)
    |-- Interrupted          stopped by the user, cleanly
    |-- UsageError           exit code 2: the command or a setting is wrong
    |   `-- SettingsError
    `-- Refused              exit code 3: it could be done, but would not be safe
        |-- PreflightFailed
        |-- Fenced           another process took over
        `-- OwnershipMoved   this database does not own the gitlab schema

A message is one line: what is wrong with which thing, then what to do. The class's docstring is the default remedy,
used where the raising code gives none.
"""

from __future__ import annotations

from typing import ClassVar


def printable(text: str) -> str:
    """Return `text` on one line, with control characters escaped, such as `\\x1b`.

    Names of tables, columns and repositories are not headrace's to trust.
    """
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)


class HeadraceError(Exception):
    """An error that is reported in one line. The docstring of a more special class is the remedy of its errors, unless
    one gives another.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, problem: str, *, remedy: str | None = None, shown: tuple[str, ...] = ()) -> None:
        super().__init__(problem)
        self.problem = problem
        self.shown = shown
        """Lines that a command prints after the message, such as settings to paste."""
        usual = "" if type(self) is HeadraceError else (type(self).__doc__ or "").strip()
        self.remedy = usual if remedy is None else remedy

    def __str__(self) -> str:
        """One line: the problem, then the remedy."""
        line = f"{self.problem}; {self.remedy}" if self.remedy else self.problem
        return printable(line)


class Unavailable(HeadraceError):
    """Check that the server is running and reachable, then start again: nothing is lost."""


class DatabaseUnavailable(Unavailable):
    """Check that PostgreSQL is running and that the dsn in the settings is correct."""


class BrokerUnavailable(Unavailable):
    """Check that Kafka is running and that kafka.bootstrap_servers in the settings is correct."""


class Malformed(HeadraceError):
    """The sender and headrace disagree on the format: report the versions of both."""


class Interrupted(HeadraceError):
    """Stopped as requested; start it again to continue."""


class UsageError(HeadraceError):
    """See --help."""

    exit_code = 2


class SettingsError(UsageError):
    """Correct the settings file; `headrace init` writes a commented example."""


class Refused(HeadraceError):
    """Nothing was changed."""

    exit_code = 3


class PreflightFailed(Refused):
    """Fix it, then start again; `headrace check` runs the same checks."""


class Fenced(Refused):
    """Another process took over; stop that one first to run this one."""


class OwnershipMoved(Refused):
    """Run the consumer against the database that owns the gitlab schema now."""
