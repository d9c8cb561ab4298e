"""The web application: the page, and answers to its requests.

``POST /api/NAME`` with JSON answers in JSON; ``POST /api/jobs/NAME`` waits in the queue and answers with one JSON event
per line, see :class:`JobQueue`. An error is ``{"error": MESSAGE}``.
"""

import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from imagepriors.studio.codebook import CodeRequest, UsageRequest, code, usage
from imagepriors.studio.comparing import FiguresRequest, ReconstructRequest, figures, reconstruct
from imagepriors.studio.completing import RegionsRequest, RowConditionsRequest, regions, row_conditions
from imagepriors.studio.contents import Contents
from imagepriors.studio.drawing import DrawRequest, draw
from imagepriors.studio.finding import FindRequest, find
from imagepriors.studio.guard import Access, Guard
from imagepriors.studio.jobs import BusyError, Event, JobQueue, message_of
from imagepriors.studio.painting import (
    CanvasRequest,
    MapRequest,
    MapsRequest,
    ScriptRequest,
    UploadRequest,
    canvas,
    encode_map,
    read_upload,
    script,
    validation_maps,
)
from imagepriors.studio.pictures import LARGEST_FILE, MAX_BYTES
from imagepriors.studio.rows import RowsRequest, row_pictures, rows
from imagepriors.studio.statistics import AboutRequest, StatisticsRequest, about, statistics
from imagepriors.studio.tokens import (
    DecodeRequest,
    EncodeRequest,
    OrdersRequest,
    ScalesRequest,
    decode,
    encode,
    orders,
    scales,
)
from runkit.configs import from_dict
from runkit.errors import UserError

STATIC = Path(__file__).with_name("static")
_Answer = tuple[type[Any], Callable[..., dict[str, Any]]]
"""Dataclass of the request, and the function that answers it."""

ANSWERS: dict[str, _Answer] = {
    "encode": (EncodeRequest, encode),
    "decode": (DecodeRequest, decode),
    "rows": (RowsRequest, rows),
    "canvas": (CanvasRequest, canvas),
    "maps": (MapsRequest, validation_maps),
    "map": (MapRequest, encode_map),
    "upload": (UploadRequest, read_upload),
    "script": (ScriptRequest, script),
    "about": (AboutRequest, about),
    "figures": (FiguresRequest, figures),
    "code": (CodeRequest, code),
    "orders": (OrdersRequest, orders),
    "scales": (ScalesRequest, scales),
    "regions": (RegionsRequest, regions),
    "row_conditions": (RowConditionsRequest, row_conditions),
}
"""Name → what is answered at once. The function gets the contents and the request."""
JOBS: dict[str, _Answer] = {
    "draw": (DrawRequest, draw),
    "row_pictures": (RowsRequest, row_pictures),
    "find": (FindRequest, find),
    "statistics": (StatisticsRequest, statistics),
    "reconstruct": (ReconstructRequest, reconstruct),
    "usage": (UsageRequest, usage),
}
"""Name → what waits in the queue. The function gets the contents, the request and a report."""


def make_app(contents: Contents, access: Access) -> Starlette:
    """Return the web application of a page.

    Args:
        contents: What the page shows.
        access: Who may open it.
    """
    queue = JobQueue()

    async def page(_: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def describe(_: Request) -> Response:
        return JSONResponse({**await run_in_threadpool(lambda: contents.described), "largest_file": LARGEST_FILE})

    async def answer(request: Request) -> Response:
        cls, function = _find(ANSWERS, request)
        values = from_dict(cls, await _body(request))
        return JSONResponse(await run_in_threadpool(function, contents, values))

    async def job(request: Request) -> Response:
        cls, function = _find(JOBS, request)
        values = from_dict(cls, await _body(request))
        events = queue.stream(partial(function, contents, values))
        first = await anext(events)  # a full queue is an error of the request
        return StreamingResponse(_lines(first, events), media_type="application/x-ndjson")

    return Starlette(
        routes=[
            Route("/", page),
            Route("/api/contents", describe),
            Route("/api/jobs/{name}", job, methods=["POST"]),
            Route("/api/{name}", answer, methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(Guard, access=access)],
        exception_handlers={HTTPException: _refused, Exception: _failed},
    )


def _find(table: dict[str, _Answer], request: Request) -> _Answer:
    name = request.path_params["name"]
    if name not in table:
        raise HTTPException(404, f"the studio has no answer to {name!r}: reload the page")
    return table[name]


async def _body(request: Request) -> dict[str, Any]:
    """The JSON of a request.

    Raises:
        HTTPException: It is too large, or no JSON object.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "send JSON: a request of another type may come from another page")
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_BYTES:
            raise HTTPException(413, f"the request is larger than {MAX_BYTES >> 20} MiB: send a smaller picture")
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise HTTPException(400, "the request is no JSON object: reload the page")
    return values


async def _lines(first: Event, events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
    yield _line(first)
    async for event in events:
        yield _line(event)


def _line(event: Event) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"


async def _refused(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return JSONResponse({"error": error.detail if isinstance(error, HTTPException) else ""}, status)


async def _failed(_: Request, error: Exception) -> Response:
    status = 503 if isinstance(error, BusyError) else 400 if isinstance(error, UserError) else 500
    return JSONResponse({"error": message_of(error)}, status)
