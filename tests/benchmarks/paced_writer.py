"""A steady writer in a separate process: `python -m tests.benchmarks.paced_writer DSN_FILE RATE SECONDS ROWS`.

Updates random rows in transactions of 10 over a few connections, `RATE` rows per second, and prints a summary as JSON.
A late transaction does not delay the due times of later ones.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from pathlib import Path
from typing import Final

import psycopg

_CONNECTIONS: Final = 4
_TRANSACTION: Final = 10
_UPDATE: Final = "UPDATE public.container_repositories SET updated_at = clock_timestamp() WHERE id = ANY(%s)"


def write(dsn: str, rate: float, seconds: float, rows: int, seed: int) -> int:
    """Write over one connection; return the number of rows."""
    choose = random.Random(seed)
    pause = _TRANSACTION / rate
    written = 0
    with psycopg.connect(dsn, autocommit=True) as connection:
        begin = time.monotonic()
        while written < rate * seconds:
            wait = begin + written / _TRANSACTION * pause - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            # in order, so that two transactions never wait for each other
            ids = sorted(choose.sample(range(1, rows + 1), _TRANSACTION))
            written += connection.execute(_UPDATE, (ids,)).rowcount
    return written


def main() -> None:
    """Run with the command line's arguments."""
    file, rate, seconds, rows = sys.argv[1:]
    dsn = Path(file).read_text(encoding="utf-8")
    written: list[int] = []
    share = float(rate) / _CONNECTIONS
    began = time.monotonic()
    threads = [
        threading.Thread(target=lambda seed=seed: written.append(write(dsn, share, float(seconds), int(rows), seed)))
        for seed in range(_CONNECTIONS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(written) < _CONNECTIONS:
        sys.exit("a connection of the writer failed")
    print(json.dumps({"changes": sum(written), "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main()
