"""Finds functions of the libpq that psycopg has loaded, for the compiled readers of COPY and of the stream.

psycopg's wheels bring a libpq of their own, under a name of their own. A process may have loaded another one as well,
which must not touch psycopg's connections: the functions are looked up in what psycopg's extension is linked with.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from typing import Final, NamedTuple

from psycopg import pq


class Libpq(NamedTuple):
    """Addresses of functions and of a connection, as `libpq_lines` and `libpq_messages` of _compiled.pyi take them."""

    functions: tuple[int, ...]
    connection: int


_NAMES: Final = ("PQgetCopyData", "PQconsumeInput", "PQfreemem")


def loaded(pgconn: pq.abc.PGconn) -> Libpq | None:
    """Return the connection's libpq, or None: psycopg calls it through ctypes, or it cannot be found."""
    file = sys.modules[type(pgconn).__module__].__file__
    library = linked(file, pq.version()) if file is not None else None
    address: int | None = getattr(pgconn, "pgconn_ptr", None)  # psycopg's protocol leaves it out
    if library is None or address is None:
        return None
    # The same library finds in the connection what psycopg does.
    if library.PQsocket(ctypes.c_void_p(address)) != pgconn.socket:
        return None
    return Libpq(tuple(ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in _NAMES), address)


@cache
def linked(extension: str, version: int) -> ctypes.CDLL | None:
    """Return the loaded library `extension`, whose names are looked up in the libpq of that version linked with it."""
    try:
        library = ctypes.CDLL(extension, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        found = int(library.PQlibVersion())
        for name in ("PQsocket", *_NAMES):
            getattr(library, name)
    except (OSError, AttributeError):
        return None  # no loaded library, or not linked with libpq
    return library if found == version else None
