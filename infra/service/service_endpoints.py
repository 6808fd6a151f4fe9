"""Serves /metrics, /healthz and /readyz of a service on `metrics.port`; port 0 serves none.

    /metrics   Prometheus' text format, or OpenMetrics where the client accepts it
    /healthz   200 while the process is alive and its main loop advances, else 503
    /readyz    200 while the service can work, else 503 with what is missing

A liveness probe asks /healthz, which never depends on another server: a restart would not bring that one back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final
from urllib.parse import urlsplit

from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder

from infra.service import metrics
from infra.service.bounded_http import USUAL, BoundedRequests, BoundedServer, Limits
from infra.service.service_state import THIS, ServiceState
from infra.settings.model import MetricsSettings
from schemas.codec import implementation
from schemas.errors import HeadraceError, printable

Probe = Callable[[], None]
"""Asks a server; raises HeadraceError if it does not answer. Called at most once a second, while /readyz is asked."""

_FRESH_SECONDS: Final = 1.0


class ServiceEndpoints(BoundedServer):
    """Listens from its creation, and answers within `serve_forever`, with a thread per connection."""

    def __init__(
        self,
        address: str,
        port: int,
        state: ServiceState = THIS,
        probes: Mapping[str, Probe] | None = None,
        limits: Limits = USUAL,
    ) -> None:
        """Raise SettingsError if it cannot listen on the address; `port` 0 chooses a free one.

        `probes` are asked about servers of which `state` learns only when the service needs them.
        """
        self.state = state
        self._probes = probes or {}
        self._probing = threading.Lock()
        self._probed_at = float("-inf")
        self._unanswered: Mapping[str, str] = {}
        remedy = "choose another metrics.port, or 0 to serve no metrics"
        super().__init__(address, port, _Requests, limits, remedy=remedy)

    def missing(self) -> Mapping[str, str]:
        """Return what the service lacks, with the reason; empty if it is ready."""
        return {**self._not_answering(), **self.state.missing}

    def _not_answering(self) -> Mapping[str, str]:
        with self._probing:
            if time.monotonic() >= self._probed_at + _FRESH_SECONDS:
                self._unanswered = dict(filter(None, (_asked(*each) for each in self._probes.items())))
                self._probed_at = time.monotonic()
            return self._unanswered


def _asked(what: str, probe: Probe) -> tuple[str, str] | None:
    try:
        probe()
    except HeadraceError as error:
        return what, printable(error.problem)
    return None


class _Requests(BoundedRequests):
    """The requests of one connection."""

    server: ServiceEndpoints

    def do_GET(self) -> None:
        """Answer one of the three paths."""
        match urlsplit(self.path).path:
            case "/metrics":
                self._metrics()
            case "/healthz":
                stalled = self.server.state.stalled
                if stalled is None:
                    self.say(HTTPStatus.OK, {"alive": True})
                else:
                    reason = f"the main loop has not advanced for {stalled:.0f} seconds"
                    self.say(HTTPStatus.SERVICE_UNAVAILABLE, {"alive": False, "reason": reason})
            case "/readyz":
                missing = self.server.missing()
                status = HTTPStatus.SERVICE_UNAVAILABLE if missing else HTTPStatus.OK
                self.say(status, {"ready": not missing, "reasons": missing})
            case _:
                self.say(HTTPStatus.NOT_FOUND, {"error": "ask /metrics, /healthz or /readyz"})

    do_HEAD = do_GET

    def _metrics(self) -> None:
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        body: bytes = encode(REGISTRY)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self) -> None:
        self.close_connection = True  # the request's body is not read
        self.say(HTTPStatus.METHOD_NOT_ALLOWED, {"error": "this server supports only GET"}, allow="GET, HEAD")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse


def serve(settings: MetricsSettings, probes: Mapping[str, Probe]) -> None:
    """Serve the endpoints in a thread until the process ends, if the settings have a port.

    Raises SettingsError if it cannot listen on the port.
    """
    if settings.port:
        metrics.READY.set_function(lambda: not THIS.missing)
        metrics.BUILD.info({"version": _version(), "codec": implementation.name})
        server: Any = ServiceEndpoints(settings.address, settings.port, probes=probes)
        threading.Thread(target=server.serve_forever, name="endpoints", daemon=True).start()


def _version() -> str:
    try:
        return version("headrace")
    except PackageNotFoundError:  # a checkout that is not installed
        return "unknown"
