"""`python -m tests.compare_types`: values of every type, as column and key, copied and streamed, and the table's own.

The edges of each type's range, what other systems lose, every modifier, domains, composites, arrays: each value in a
topic is compared with the text that PostgreSQL's own output function prints. Exit code 1 where any differs.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.producers.type_table import compare_types
from tests.server_versions import MAJORS, NEWEST, NoSuchServer, stack_of


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.compare_types", description=__doc__)
    arguments.add_argument("--version", type=int, choices=MAJORS, default=NEWEST, help="PostgreSQL's")
    version = arguments.parse_args().version
    began = time.monotonic()
    try:
        with stack_of(version) as (server, bootstrap_servers, _):
            found = compare_types(bootstrap_servers, "types", server.create_database("types"))
    except NoSuchServer as error:
        print(f"no PostgreSQL {version}: {error}", file=sys.stderr)
        return 1
    for each in found.different:
        print(each)
    print(
        f"PostgreSQL {version}: {found.values:,} comparisons of {found.columns} columns and {found.keys} key types,"
        f" copied and streamed: {len(found.different)} different ({time.monotonic() - began:.0f} s)"
    )
    return 1 if found.different else 0


if __name__ == "__main__":
    sys.exit(main())
