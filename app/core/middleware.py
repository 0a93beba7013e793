"""Pure ASGI middleware around every request: id, log line, metrics, host list, security headers, unexpected errors."""

import ipaddress
import logging
import re
import time
from collections.abc import Iterator
from http import HTTPStatus

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.errors import HostRefused, public_error, response_of
from app.core.settings import Settings
from app.core.state import ServerState
from app.core.telemetry import new_request_id, route_template

log = structlog.get_logger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1", "[::1]")
PIECE_BYTES = 1 << 16
"""What is sent at once of a whole answer."""
HEALTH_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
ASKED_BY_ADDRESS = HEALTH_PATHS | {"/metrics"}
"""Of a container, by orchestrators and Prometheus; only health needs no key."""
SECURITY_HEADERS = (
    ("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)


class RequestMiddleware:
    """Gives each request an id (the caller's if it is well-formed) and headers, logs and counts it, and answers exceptions."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")  # is written to logs and headers
        request_id = given if _REQUEST_ID.fullmatch(given) else new_request_id()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in SECURITY_HEADERS:
                    headers.setdefault(name, value)
            for piece in _pieces(message):
                await send(piece)

        started = time.perf_counter()
        with structlog.contextvars.bound_contextvars(request_id=request_id), self._state.count_request() as admission:
            scope.setdefault("state", {})["admission"] = admission
            try:
                await self._app(scope, receive, send_with_headers)
            except Exception as error:
                failure = public_error(error)
                scope["state"]["error_code"] = failure.code
                if status == 0:
                    await response_of(failure, scope)(scope, receive, send_with_headers)
            finally:
                self._record(scope, status, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        """Counts and logs a request: the template of its route, never its path, body or key. No label is chosen by a caller."""
        state, metrics = scope["state"], self._state.metrics
        code, key = state.get("error_code"), state["key"].name if "key" in state else None
        metrics.observe(scope, status, seconds)
        if code is not None:
            metrics.errors.labels(code).inc()
        if key is not None:
            metrics.key_requests.labels(key).inc()
            if status == HTTPStatus.TOO_MANY_REQUESTS:
                metrics.key_refusals.labels(key, state.get("limit", code)).inc()
        route = route_template(scope)
        log.log(
            logging.DEBUG if route in HEALTH_PATHS else logging.INFO,  # probes ask every few seconds
            "request",
            method=scope["method"][:16],
            route=route,
            status=status,
            code=code,
            milliseconds=round(1000 * seconds, 1),
            key=key,
            client=client_address(scope, self._state.settings.client_header),
        )


def _pieces(message: Message) -> Iterator[Message]:
    """Cuts the body of a whole answer. Each piece is sent once its client has taken those before it, and the answer counts as memory of
    its request until then. The last body of a stream is empty."""
    if message["type"] != "http.response.body" or message.get("more_body"):
        yield message
        return
    body, start = message.get("body", b""), 0
    while len(body) - start > PIECE_BYTES:
        yield {**message, "body": body[start : start + PIECE_BYTES], "more_body": True}
        start += PIECE_BYTES
    yield {**message, "body": body[start:]}


def client_address(scope: Scope, header: str | None) -> str | None:
    """Returns the address of the client for the log: the last of `header`, which is the one that our proxy saw, else the peer."""
    peer = scope.get("client")
    if header is not None and (values := Headers(scope=scope).getlist(header)):
        last = values[-1].rpartition(",")[2].strip()
        try:
            return str(ipaddress.ip_address(last))
        except ValueError:
            pass
    return None if peer is None else str(peer[0])


class HostMiddleware:
    """Accepts only requests whose Host header names this server, where the names are known.

    On a loopback address they are, so a page of another site that reaches the port through a domain of its own (DNS
    rebinding) is refused. Elsewhere a key is required and the operator may list them; ASKED_BY_ADDRESS is then answered under
    any name. Starlette's middleware decides; the refusal has our body.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._allowed = settings.allowed_hosts + (_LOOPBACK_HOSTS if settings.loopback else ())
        self._exempt: frozenset[str] = frozenset() if settings.loopback else ASKED_BY_ADDRESS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one ASGI connection."""
        accepted = scope["type"] != "http" or not self._allowed or scope["path"] in self._exempt

        async def accept(scope: Scope, _receive: Receive, _send: Send) -> None:
            nonlocal accepted
            accepted = len(Headers(scope=scope).getlist("host")) == 1

        async def discard(_message: Message) -> None:
            return

        if not accepted:
            await TrustedHostMiddleware(accept, self._allowed, www_redirect=False)(scope, receive, discard)
        if accepted:
            await self._app(scope, receive, send)
        else:
            refused = HostRefused("this server does not answer to that host name")
            scope["state"]["error_code"] = refused.code
            await response_of(refused, scope)(scope, receive, send)
