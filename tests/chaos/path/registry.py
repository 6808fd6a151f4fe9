"""`python -m tests.chaos.path.registry PORT FILE`: a schema registry whose answers survive a kill."""

from __future__ import annotations

import json
import os
import sys
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.infra.schema_registry.registry_server import RegistryServer, handler_of


class LastingRegistry(RegistryServer):
    """Writes its schemas to a file, and syncs it, before it answers."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        if file.exists():
            self.schemas, self.subjects = json.loads(file.read_text())

    def answer(self, method: str, path: str, body: dict[str, Any], authorization: str | None) -> tuple[int, Any]:
        answered = super().answer(method, path, body, authorization)
        if method != "GET":
            new = self._file.with_suffix(f".{os.getpid()}.new")
            with new.open("w") as written:
                json.dump((self.schemas, self.subjects), written)
                written.flush()
                os.fsync(written.fileno())
            new.replace(self._file)
        return answered


def main() -> None:
    port, file = int(sys.argv[1]), Path(sys.argv[2])
    with ThreadingHTTPServer(("127.0.0.1", port), handler_of(LastingRegistry(file))) as server:
        server.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main()
