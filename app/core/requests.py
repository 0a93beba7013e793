"""Route classes: check key, scope, drain, media type, size and JSON of a request, in this order, before its handler.

A route class knows which route was matched (the path is not parsed a second time) and acts before the body is read. The
handler runs only while its client is connected: a plain request is cancelled when its client disconnects.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, ClassVar, TypeAlias

from fastapi import Depends, Security
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from app.core.admission import Admission, Key
from app.core.answers import while_connected
from app.core.errors import BodyTooLarge, JobCancelled, UnsupportedMediaType, status_of
from app.core.settings import Settings
from app.core.state import ServerState, state_of
from app.core.telemetry import current_request_id
from steering.errors import InvalidRequest, LimitExceeded
from steering.spec import Spec
from steering.strict_json import Size, load_json, size_of
from steering.threads import run_in_thread

BEARER = HTTPBearer(scheme_name="key", auto_error=False, description="An API key of this server.")
"""Reads the Authorization header; also describes it in the OpenAPI document."""
Handler: TypeAlias = Callable[[Request], Coroutine[Any, Any, Response]]
CLIENT_DISCONNECTED = 499  # logged and never received: the client disconnected before the response
BINARY: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
"""OpenAPI's description of a body that is one file."""
AUDITED = ("name", "version", "namespace")
"""Query parameters that say what a request changes."""
FILE_RATIO = 3
"""Memory of a file that is read, in bytes for each of its bytes: tensors in float32, and the stored vector."""
_INLINE_BYTES = 64_000
"""A larger body is counted and parsed in a thread, where the parser does not hold up the event loop."""


def needs(scope: str) -> dict[str, Any]:
    """Returns the `openapi_extra` of a route that needs another scope than `read` for GET and `write` otherwise."""
    return {"x-scope": scope}


class ApiRoute(APIRoute):
    """A route that needs a key, of the scope `scope_needed`."""

    media_type: ClassVar[str] = "application/json"  # of its body
    upload: ClassVar[bool] = False  # whether its body has the larger limit

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        extra = dict(options.get("openapi_extra") or {})
        extra.setdefault("x-scope", "read" if set(options.get("methods") or ()) <= {"GET", "HEAD"} else "write")
        self.scope_needed = str(extra["x-scope"])
        dependencies = [*(options.get("dependencies") or ()), Security(BEARER)]  # describes the key in OpenAPI
        super().__init__(path, endpoint, **{**options, "openapi_extra": extra, "dependencies": dependencies})
        query = _query_parameters(self.dependant)
        strict = any(isinstance(kind, type) and issubclass(kind, Spec) for kind in query.values())
        self._known_query = None if strict else frozenset(query)  # None: a model of the whole query checks it

    def get_route_handler(self) -> Handler:
        """Returns FastAPI's handler with the checks before it."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            state = state_of(request)
            key = await state.identify(request)
            key.require(self.scope_needed)
            request.state.key = key
            state.check_open()
            self._check_query(request)
            admission: Admission = request.state.admission
            admission.closing.callback(state.rate_limits.admit(key))
            admission.key = key
            try:
                parsed = await self._read(request, state.settings)
            except ClientDisconnect:  # a body that is cut off changed nothing, and is no fault of the server
                return Response(status_code=CLIENT_DISCONNECTED)
            status, refused = CLIENT_DISCONNECTED, False
            request.state.deadline = deadline = time.monotonic() + state.settings.request_seconds
            try:  # a streaming response is only started here; it watches for disconnects itself
                response = await while_connected(state, request.receive, handler(parsed), deadline)
                status = response.status_code
            except ClientDisconnect:
                response = Response(status_code=CLIENT_DISCONNECTED)
            except Exception as error:
                status = status_of(error)
                # the work of a job that was cancelled may have stored something
                refused = 400 <= status < CLIENT_DISCONNECTED and not isinstance(error, JobCancelled)
                raise
            finally:
                if not refused:
                    await self._audit(state, key, parsed, status)
            return response

        return handle

    async def _audit(self, state: ServerState, key: Key, request: Request, status: int) -> None:
        """Records a write, which is committed whatever ends its handler. What was refused changed nothing. The target is what the path
        names, else the name in the body, and what the query adds to it."""
        if self.scope_needed in ("write", "admin") and request.method not in ("GET", "HEAD"):
            body = request.parsed if isinstance(request, ParsedRequest) else None
            body = getattr(request.state, "described", body)  # what a handler has read in a file
            target: dict[str, Any] = dict(request.path_params)
            if not target and isinstance(body, dict) and isinstance(name := body.get("name"), str):
                target["name"] = name
            target |= {name: request.query_params[name] for name in AUDITED if name in request.query_params}
            await state.record(key, request.method, self.path, target, current_request_id(), status)

    def _check_query(self, request: Request) -> None:
        """Rejects query parameters given twice, and unknown ones on routes without a model of the whole query."""
        names = Counter(name for name, _ in request.query_params.multi_items())
        for name, count in names.items():
            if count > 1:
                raise InvalidRequest(f"the query parameter {name[:40]!r} is given twice", param=name[:40])
            if self._known_query is not None and name not in self._known_query:
                known = ", ".join(sorted(self._known_query)) or "none"
                raise InvalidRequest(f"unknown query parameter {name[:40]!r}; known: {known}", param=name[:40])

    async def _read(self, request: Request, settings: Settings) -> Request:
        """Returns the request with its body read and parsed."""
        if self.body_field is None and self.media_type == "application/json":
            # to ignore a body is dangerous: `DELETE` with a version in it would delete every version
            if {"content-length", "transfer-encoding"} & set(request.headers) and (
                body := await read_body(request, settings.max_body_bytes, settings.body_seconds)
            ):
                what = f"{request.method} {request.scope['path'][:80]} takes no body, got {len(body)} bytes"
                raise InvalidRequest(f"{what}; its parameters belong in the address")
            return request
        encoding = request.headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            raise UnsupportedMediaType(f"send the body without a Content-Encoding, got {encoding[:40]!r}")
        limit = settings.max_upload_bytes if self.upload else settings.max_body_bytes
        body = await read_body(request, limit, settings.body_seconds)
        given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if body and given != self.media_type:
            named = repr(given[:40]) if given else "no Content-Type"
            raise UnsupportedMediaType(f"send the body as {self.media_type}, got {named}")
        return await self._parse(request, body, settings)

    async def _parse(self, request: Request, body: bytes, settings: Settings) -> "ParsedRequest":
        """Returns the request with its parsed body, None of a file. What it takes is counted and reserved before anything is parsed.

        A large body is also checked against its schema in the thread; FastAPI then accepts the model as it is.
        """
        admission: Admission = request.state.admission
        if not body or self.media_type == BinaryRoute.media_type:
            admission.reserve(FILE_RATIO * len(body))
            return ParsedRequest(request, body, None)
        small = len(body) <= _INLINE_BYTES
        size = size_of(body) if small else await run_in_thread(size_of, body)
        check_size(size, settings.max_upload_elements if self.upload else settings.max_body_elements, settings)
        admission.reserve(size.memory)
        if self.media_type != ApiRoute.media_type:  # its handler parses the lines one by one
            return ParsedRequest(request, body, None)
        if small:
            return ParsedRequest(request, body, load_json(body, "the body", depth=settings.max_json_depth))
        return await run_in_thread(self._validated, request, body, settings)

    def _validated(self, request: Request, body: bytes, settings: Settings) -> "ParsedRequest":
        parsed = load_json(body, "the body", depth=settings.max_json_depth)
        assert self.body_field is not None, "a route without a body refuses every body"
        model, findings = self.body_field.validate(parsed, loc=("body",))
        if findings:
            raise RequestValidationError(findings, body=parsed)
        return ParsedRequest(request, body, parsed, model)


def check_size(size: Size, most: int, settings: Settings) -> None:
    """Raises LimitExceeded for more values, or more lists and objects, than the operator allows."""
    if size.elements > most:
        raise LimitExceeded(f"the body has more than {most} elements")
    if size.containers > settings.max_body_elements:
        raise LimitExceeded(f"the body has more than {settings.max_body_elements} lists and objects")


def _query_parameters(dependant: Dependant) -> dict[str, Any]:
    """Returns names and annotations of the query parameters of a handler and its dependencies."""
    inner = [item for one in dependant.dependencies for item in _query_parameters(one).items()]
    return dict([*((one.alias, one.field_info.annotation) for one in dependant.query_params), *inner])


class UploadRoute(ApiRoute):
    """A route with a JSON body that may be as large as a vector."""

    upload: ClassVar[bool] = True


class BinaryRoute(UploadRoute):
    """A route with one file as the body."""

    media_type: ClassVar[str] = "application/octet-stream"


class JsonLinesRoute(UploadRoute):
    """A route with JSON lines as the body; its handler parses them."""

    media_type: ClassVar[str] = "application/jsonl"


class ParsedRequest(Request):
    """A request whose body has been read and parsed already, and checked against the schema of its route if a `model` is given."""

    def __init__(self, request: Request, body: bytes, parsed: Any, model: Any = None) -> None:
        super().__init__(request.scope, request.receive)
        self._content, self.parsed = body, parsed
        self._model = parsed if model is None else model

    async def body(self) -> bytes:
        """Returns the whole body."""
        return self._content

    async def json(self) -> Any:
        """Returns the parsed body, or its model."""
        return self._model


async def read_body(request: Request, limit: int, seconds: float) -> bytes:
    """Reads the body, chunked or not. Raises BodyTooLarge as soon as it is known, InvalidRequest when it is too slow."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        raise BodyTooLarge(f"the body is larger than {limit} bytes")
    memory: Admission = request.state.admission
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise BodyTooLarge(f"the body is larger than {limit} bytes")
                memory.reserve(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        raise InvalidRequest(f"the body did not arrive within {seconds:g} s") from None
    return b"".join(chunks)


def accepts_json(request: Request) -> bool:
    """Returns whether the client asks for JSON and not for a file (`Accept: application/json`)."""
    given = {part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "").split(",")}
    return "application/json" in given and "application/octet-stream" not in given


async def _state(request: Request) -> ServerState:
    return state_of(request)


StateDep = Annotated[ServerState, Depends(_state)]
