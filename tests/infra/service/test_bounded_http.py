"""The server of headrace's own HTTP services."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from http import HTTPStatus

from infra.service.bounded_http import BoundedRequests, BoundedServer


class _SaysWhetherItDelays(BoundedRequests):
    def do_GET(self) -> None:
        """Answer whether the connection sends small packets at once (TCP_NODELAY)."""
        self.say(HTTPStatus.OK, self.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0)


def test_answers_on_a_kept_connection_are_not_delayed() -> None:
    with BoundedServer("127.0.0.1", 0, _SaysWhetherItDelays, remedy="none") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = http.client.HTTPConnection("127.0.0.1", server.port)
        answers = []
        for _ in range(2):
            client.request("GET", "/")
            answers.append(json.load(client.getresponse()))
        client.close()
        server.shutdown()
    assert answers == [True, True]
