"""The console's API and page; consumers.web.request_guard decides before which requests get here.

The API is described at /openapi.json. The page is in the folder `static`; nothing is loaded from elsewhere.
"""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path as File
from typing import Annotated, Any, Final

from fastapi import Depends, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from consumers.web.documents import (
    Curves,
    DeadLetters,
    DeadLetterWish,
    Paced,
    PaceWish,
    Paused,
    Problem,
    Recent,
    Replayed,
    ReplayWish,
    Session,
    SettledLetters,
    Snapshot,
    Wish,
)
from consumers.web.observation import Observation
from consumers.web.operator_requests import OperatorRequests, UnknownMigration
from consumers.web.request_guard import OPERATOR, Access
from infra.settings.section import NAME_PATTERN
from schemas import formats
from schemas.errors import HeadraceError, SettingsError, Unavailable, UsageError, printable

STATIC: Final = File(__file__).parent / "static"

_REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    int(status): {"model": Problem}
    for status in (
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.CONFLICT,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.SERVICE_UNAVAILABLE,
    )
}
_TOKEN: Final = HTTPBearer(auto_error=False, description="A token of [web.tokens].")

MigrationName = Annotated[str, Path(pattern=NAME_PATTERN, description="A migration.")]
DatabaseName = Annotated[str, Path(pattern=NAME_PATTERN, description="A database of the settings.")]
OneDatabase = Annotated[
    str | None,
    Query(pattern=NAME_PATTERN, description="The database, for a migration that runs once per database."),
]


def _operator(request: Request) -> str:
    """Return the name of the request's token: without one, a request that changes something does not get here."""
    operator = getattr(request.state, OPERATOR)
    assert isinstance(operator, str)
    return operator


OperatorName = Annotated[str, Depends(_operator)]


def application(observation: Observation, requests: OperatorRequests, access: Access) -> FastAPI:
    """Return the application."""
    made = FastAPI(
        title="headrace",
        version=formats.PROGRAM,
        description="The console's API. Documents are those that the commands print with --json.",
        docs_url=None,
        redoc_url=None,
    )
    made.add_exception_handler(HeadraceError, _failed)
    made.add_exception_handler(RequestValidationError, _invalid)
    made.add_exception_handler(HTTPException, _not_served)
    _add_page(made)
    _add_reads(made, observation, requests, access)
    _add_changes(made, requests)
    return made


def _add_page(made: FastAPI) -> None:
    @made.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    made.mount("/static", StaticFiles(directory=STATIC), name="static")


def _add_reads(made: FastAPI, observation: Observation, requests: OperatorRequests, access: Access) -> None:
    @made.get("/api/snapshot", response_model=Snapshot, responses=_REFUSALS)
    def snapshot() -> Response:
        """Return everything that the page shows."""
        return Response(observation.snapshot(), media_type="application/json")

    @made.get("/api/curves", responses=_REFUSALS)
    def curves() -> Curves:
        """Return the rates of the last minutes."""
        return observation.curves()

    @made.get("/api/session", responses=_REFUSALS, dependencies=[Depends(_TOKEN)])
    def session(request: Request) -> Session:
        """Return what a request with this token may do."""
        return Session(
            operator=getattr(request.state, OPERATOR),
            changes=bool(access.tokens),
            reading_needs_token=access.reading_needs_token,
        )

    @made.get("/api/migrations/{name}/dead-letters", responses=_REFUSALS)
    def dead_letters(name: MigrationName, database: OneDatabase = None) -> DeadLetters:
        """Return what waits for an operator."""
        return requests.dead_letters(name, database)

    @made.get("/api/history/{database}", responses=_REFUSALS)
    def history(database: DatabaseName) -> Recent:
        """Return what operators did last in a database."""
        return requests.recent(database)


def _add_changes(made: FastAPI, requests: OperatorRequests) -> None:
    options: dict[str, Any] = {"responses": _REFUSALS, "dependencies": [Depends(_TOKEN)]}

    @made.post("/api/migrations/{name}/pause", **options)
    def pause(name: MigrationName, wish: Wish, operator: OperatorName) -> Paused:
        """Pause a migration; its consumers stay and wait."""
        return requests.pause(name, wish, operator, paused=True)

    @made.post("/api/migrations/{name}/resume", **options)
    def resume(name: MigrationName, wish: Wish, operator: OperatorName) -> Paused:
        """Resume a paused or failed migration."""
        return requests.pause(name, wish, operator, paused=False)

    @made.post("/api/migrations/{name}/replay", **options)
    def replay(name: MigrationName, wish: ReplayWish, operator: OperatorName) -> Replayed:
        """Start a new run; refused while consumers are alive."""
        return requests.replay(name, wish, operator)

    @made.post("/api/migrations/{name}/pace", **options)
    def pace(name: MigrationName, wish: PaceWish, operator: OperatorName) -> Paced:
        """Change the pace of running consumers."""
        return requests.pace(name, wish, operator)

    @made.post("/api/migrations/{name}/dead-letters/retry", **options)
    def retry(name: MigrationName, wish: DeadLetterWish, operator: OperatorName) -> SettledLetters:
        """Retry dead letters."""
        return requests.retry(name, wish.events, wish, operator)

    @made.post("/api/migrations/{name}/dead-letters/discard", **options)
    def discard(name: MigrationName, wish: DeadLetterWish, operator: OperatorName) -> SettledLetters:
        """Discard dead letters for good."""
        return requests.discard(name, wish.events, wish, operator)


def _failed(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HeadraceError)
    return _problem(_status(error), error.problem, error.remedy)


def _status(error: HeadraceError) -> HTTPStatus:
    if isinstance(error, UnknownMigration):
        return HTTPStatus.NOT_FOUND
    if isinstance(error, Unavailable):
        return HTTPStatus.SERVICE_UNAVAILABLE
    if isinstance(error, UsageError) and not isinstance(error, SettingsError):
        return HTTPStatus.BAD_REQUEST
    return HTTPStatus.CONFLICT


def _invalid(_request: Request, error: Exception) -> JSONResponse:
    """Name the field and what is wrong with it, and not the value, which may be anything."""
    assert isinstance(error, RequestValidationError)
    found = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
    return _problem(HTTPStatus.UNPROCESSABLE_ENTITY, "; ".join(found), "see /openapi.json")


def _not_served(_request: Request, error: Exception) -> JSONResponse:
    """Answer as described what the framework refuses: an unknown path or method, or a body that it cannot read."""
    assert isinstance(error, HTTPException)
    answer = _problem(HTTPStatus(error.status_code), str(error.detail), "see /openapi.json")
    answer.headers.update(error.headers or {})
    return answer


def _problem(status: HTTPStatus, problem: str, remedy: str) -> JSONResponse:
    return JSONResponse(Problem(problem=printable(problem), remedy=printable(remedy)).model_dump(), int(status))
