"""A libpq whose functions are Python's, for the compiled reader: lines, and faults, without a server."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Final

WAIT: Final = 0
END: Final = -1
CONNECTION: Final = 1
"""The address that the functions are given as their connection, which they do not read."""

_Get: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_int)
_Consume: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_Free: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class FakeLibpq:
    """Returns each of `answers` from PQgetCopyData: a line, WAIT or END, which is repeated.

    PQconsumeInput passes over a WAIT, so that a single one is not seen; with `lost` it fails.
    """

    def __init__(self, answers: Sequence[bytes | int], *, lost: bool = False) -> None:
        self._answers = list(answers)
        self._lost = lost
        self._lent: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self._callbacks = (_Get(self._get), _Consume(self._consume), _Free(self._free))
        addresses = [ctypes.cast(callback, ctypes.c_void_p).value or 0 for callback in self._callbacks]
        self.functions = (addresses[0], addresses[1], addresses[2])

    @property
    def lent(self) -> int:
        """How many lines have not been freed."""
        return len(self._lent)

    def _get(self, connection: int, line: ctypes._Pointer[ctypes.c_void_p], asynchronous: int) -> int:
        assert (connection, asynchronous) == (CONNECTION, 1)
        answer = self._answers[0] if self._answers else END
        if isinstance(answer, int):
            return answer
        del self._answers[0]
        # Not a byte more than the line: a sanitizer sees a read beyond it.
        copy = (ctypes.c_char * len(answer)).from_buffer_copy(answer)
        address = ctypes.addressof(copy)
        self._lent[address] = copy
        line[0] = ctypes.c_void_p(address)
        return len(answer)

    def _consume(self, connection: int) -> int:
        assert connection == CONNECTION
        if self._lost:
            return 0
        if self._answers and self._answers[0] == WAIT:
            del self._answers[0]
        return 1

    def _free(self, line: int) -> None:
        del self._lent[line]
