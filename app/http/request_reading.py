"""The door: what every request passes before its handler, in this order: key, scope, draining, media type, size, JSON.

It is a route class, so it knows which route was matched (no second reading of the path) and acts before the body is
read. A handler behind it runs only while its client is there: a plain request is cancelled when its client leaves.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from app.http.sse import ended, gone
from app.settings import Settings
from app.state import AppState, state_of
from steering.errors import BodyTooLarge, InvalidRequest, LimitExceeded, SteeringError, UnsupportedMediaType

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
CLIENT_GONE = 499
"""Recorded, never received: the client left before its answer."""

_THREAD_BYTES = 256_000
"""A body larger than this is parsed in a thread, so that the event loop goes on."""

_MARKS = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[{]|[\]}]', re.DOTALL)


def needs(scope: str) -> dict[str, Any]:
    """`openapi_extra` of a route that asks another scope than `read` for GET and `write` for the rest."""
    return {"x-scope": scope}


class ApiRoute(APIRoute):
    """A route behind the door. media_type: what its body must be. upload: the larger body limit. scope_needed: of the key."""

    media_type: ClassVar[str] = "application/json"
    upload: ClassVar[bool] = False

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        extra = dict(options.get("openapi_extra") or {})
        extra.setdefault("x-scope", "read" if set(options.get("methods") or ()) <= {"GET", "HEAD"} else "write")
        self.scope_needed = str(extra["x-scope"])
        super().__init__(path, endpoint, **{**options, "openapi_extra": extra})

    def get_route_handler(self) -> Handler:
        """The handler FastAPI would run, with the door before it."""
        handler = super().get_route_handler()

        async def through_the_door(request: Request) -> Response:
            state = state_of(request)
            key = state.keys.identify(request.headers)
            key.require(self.scope_needed)
            request.state.key = key
            state.check_open()
            return await while_client_stays(state, request, handler, await self._checked(request, state.settings))

        return through_the_door

    async def _checked(self, request: Request, settings: Settings) -> Request:
        """The request with its body read, bounded and parsed. A route without a body leaves it unread."""
        if not self._takes_body():
            return request
        limit = settings.max_upload_bytes if self.upload else settings.max_body_bytes
        body = await read_body(request, limit, settings.body_seconds)
        if body:
            given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if given != self.media_type:
                raise UnsupportedMediaType(f"send the body as {self.media_type}")
        if self.media_type != "application/json" or not body:
            return ReadRequest(request, body, None)
        if len(body) > _THREAD_BYTES:
            parsed = await asyncio.to_thread(parse_json, body, settings.max_json_depth)
        else:
            parsed = parse_json(body, settings.max_json_depth)
        return ReadRequest(request, body, parsed)

    def _takes_body(self) -> bool:
        return self.body_field is not None or self.media_type != "application/json"


class UploadRoute(ApiRoute):
    """JSON that may be as large as a vector."""

    upload: ClassVar[bool] = True


class BinaryRoute(UploadRoute):
    """One file as the body."""

    media_type: ClassVar[str] = "application/octet-stream"


class ReadRequest(Request):
    """A request whose body has been read and parsed already."""

    def __init__(self, request: Request, body: bytes, parsed: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._read, self._parsed = body, parsed

    async def body(self) -> bytes:
        """The whole body."""
        return self._read

    async def json(self) -> Any:
        """The parsed body."""
        return self._parsed


async def read_body(request: Request, limit: int, seconds: float) -> bytes:
    """The body, chunked or not. Raises BodyTooLarge as soon as it is known, InvalidRequest when it comes too slowly."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        raise BodyTooLarge(f"the body may have {limit} bytes")
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise BodyTooLarge(f"the body may have {limit} bytes")
                chunks.append(chunk)
    except TimeoutError:
        raise InvalidRequest(f"the body did not arrive within {seconds:g} s") from None
    return b"".join(chunks)


def parse_json(body: bytes, depth_limit: int) -> Any:
    """JSON by the strict rules: no NaN or Infinity, no half surrogates, no endless numbers, no deep nesting."""
    depth = 0
    for mark in _MARKS.finditer(body):
        first = body[mark.start()]
        if first in b"[{":
            depth += 1
            if depth > depth_limit:
                raise InvalidRequest(f"the body is nested deeper than {depth_limit}")
        elif first in b"]}":
            depth -= 1
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None


async def while_client_stays(state: AppState, original: Request, handler: Handler, request: Request) -> Response:
    """Runs the handler until it answers, its client leaves, the server must stop, or its time is over.

    `original` lends its `receive`. A streaming answer is only begun here; it minds its client itself.
    """
    work = asyncio.ensure_future(handler(request))
    leaving = asyncio.ensure_future(gone(original.receive))
    seconds = state.settings.request_seconds
    try:
        awaited: set[asyncio.Future[Any]] = {work, leaving, state.interrupted}
        await asyncio.wait(awaited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        if leaving.done():
            return Response(status_code=CLIENT_GONE)
        raise _stop_reason(state, seconds)
    except ClientDisconnect:
        return Response(status_code=CLIENT_GONE)
    finally:
        await ended(leaving)
        await ended(work)


def _stop_reason(state: AppState, seconds: float) -> SteeringError:
    if state.interrupted.done():
        return state.interrupted.result()
    return LimitExceeded(f"the request took longer than {seconds:g} s")
