"""The web application: the page, and answers to its requests.

``POST /api/NAME`` with JSON answers in JSON; ``POST /api/jobs/NAME`` waits in the queue and answers with one JSON event
per line, see :class:`JobQueue`. An error is ``{"error": MESSAGE}``.
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
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
from imagepriors.studio.jobs import BusyError, Event, JobQueue, message_of, plain, use_set_threads
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
_AT_ONCE = 4
"""Requests outside the queue that are computed at the same time."""
_MOST_VALUES = 100_000
"""Values in a request; a picture is one. Reading them takes up to a second."""
_UPLOAD_S = 60.0
"""Seconds in which the body of a request must arrive."""
_LARGEST = 2**63 - 1
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
    """Return the web application of a page. Its ``state.queue`` is the queue of its jobs.

    Args:
        contents: What the page shows.
        access: Who may open it.
    """
    places = contents.places
    queue, turns = JobQueue(places), asyncio.Semaphore(_AT_ONCE)

    async def compute(function: Callable[..., Any], *values: Any) -> Any:
        async with turns:
            return await run_in_threadpool(_compute, function, *values)

    async def page(_: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def describe(_: Request) -> Response:
        described = await compute(lambda: contents.described)
        return JSONResponse({**described, "largest_file": LARGEST_FILE})

    async def answer(request: Request) -> Response:
        cls, function = _find(ANSWERS, request)
        values = await compute(_read, cls, await _body(request))
        return JSONResponse(await compute(function, contents, values))

    async def job(request: Request) -> Response:
        cls, function = _find(JOBS, request)
        values = await compute(_read, cls, await _body(request))
        events = queue.stream(partial(function, contents, values))
        first = await anext(events)  # a full queue is an error of the request
        # The header has proxies send each line at once.
        return StreamingResponse(
            _lines(first, events), media_type="application/x-ndjson", headers={"X-Accel-Buffering": "no"}
        )

    app = Starlette(
        routes=[
            Route("/", page),
            Route("/api/contents", _answering(describe, places)),
            Route("/api/jobs/{name}", _answering(job, places), methods=["POST"]),
            Route("/api/{name}", _answering(answer, places), methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(Guard, access=access)],
        exception_handlers={HTTPException: _refused},
    )
    app.state.queue = queue
    return app


def _compute(function: Callable[..., Any], *values: Any) -> Any:
    use_set_threads()
    return function(*values)


def _answering(endpoint: Callable[[Request], Any], places: Mapping[str, str]) -> Callable[[Request], Any]:
    """An endpoint whose errors are answers."""

    async def respond(request: Request) -> Response:
        try:
            response: Response = await endpoint(request)
        except HTTPException:
            raise
        except ClientDisconnect:
            return Response(status_code=400)
        except Exception as error:  # noqa: BLE001 - a bug is logged, and the page continues
            status = 503 if isinstance(error, BusyError) else 400 if isinstance(error, UserError) else 500
            return JSONResponse({"error": message_of(error, places)}, status)
        return response

    return respond


def _find(table: dict[str, _Answer], request: Request) -> _Answer:
    name = request.path_params["name"]
    if name not in table:
        raise HTTPException(404, f"the studio has no answer to {name[:80]!r}: reload the page")
    return table[name]


async def _body(request: Request) -> bytes:
    """The bytes of a request that says that it is JSON.

    Raises:
        HTTPException: It says something else, or is too large or too slow.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send JSON: a request of another type may come from another page")
    content = bytearray()
    try:
        async with asyncio.timeout(_UPLOAD_S):
            async for part in request.stream():
                content += part
                if len(content) > MAX_BYTES:
                    raise HTTPException(413, f"the request is larger than {MAX_BYTES >> 20} MiB: send less")
    except TimeoutError:
        raise HTTPException(408, f"the request took longer than {_UPLOAD_S:.0f} s: send less") from None
    return bytes(content)


def _read(cls: type[Any], content: bytes) -> Any:
    """The request in JSON; takes up to a second.

    Raises:
        UserError: It is no JSON object, has too many values, or is not of this request; the message names the field.
    """
    if sum(map(content.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise UserError(f"the request has more than {_MOST_VALUES:,} values: send less")
    try:
        values = json.loads(content, parse_int=_integer, parse_float=_number, parse_constant=_no_number)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UserError("the request is no JSON object of finite 64-bit numbers: reload the page")
    try:
        return from_dict(cls, values)
    except UserError as error:
        raise UserError(str(error).removeprefix(f"{cls.__module__}.{cls.__name__}: ")) from error


def _integer(text: str) -> int:
    value = int(text)
    return value if abs(value) <= _LARGEST else _no_number(text)


def _number(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is no finite number of 64 bits")


async def _lines(first: Event, events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
    yield _line(first)
    async for event in events:
        yield _line(event)


def _line(event: Event) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"


async def _refused(_: Request, error: Exception) -> Response:
    status, text = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, "")
    return JSONResponse({"error": plain(text)}, status)
