"""Pure ASGI wrappers around every request: id, log line, count, host list, security headers, and the last safety net."""

import re
import secrets
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.errors import hidden, response_of
from app.http.sse import STRAIGHT_SEND
from app.metrics import route_template
from app.settings import Settings
from app.state import AppState
from steering.errors import HostRefused

log = structlog.get_logger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
SECURITY_HEADERS = (
    ("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)


def request_id_of(headers: Headers) -> str:
    """The caller's id if it is well formed (it ends up in logs and headers), else one of ours."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"


class RequestMiddleware:
    """Gives each request its id and headers, writes its log line, counts it, and answers what nobody caught."""

    def __init__(self, app: ASGIApp, state: AppState) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope))
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in SECURITY_HEADERS:
                    headers.setdefault(name, value)
            await send(message)

        started = time.perf_counter()
        with structlog.contextvars.bound_contextvars(request_id=request_id), self._state.request_under_way() as lease:
            scope.setdefault("state", {}).update({"lease": lease, STRAIGHT_SEND: send})
            try:
                await self._app(scope, receive, send_with_headers)
            except Exception as error:
                log.exception("request_failed", route=route_template(scope))
                if status == 0:
                    await response_of(hidden(error))(scope, receive, send_with_headers)
            finally:
                seconds = time.perf_counter() - started
                self._state.metrics.observe(scope, status, seconds)
                _log_line(scope, status, seconds)


def _log_line(scope: Scope, status: int, seconds: float) -> None:
    """One line a request: the template of its route, never its address, body or key."""
    key = scope.get("state", {}).get("key")
    log.info(
        "request",
        method=scope["method"][:16],
        route=route_template(scope),
        status=status,
        milliseconds=round(1000 * seconds, 1),
        key=getattr(key, "name", None),
    )


class HostMiddleware:
    """Answers only requests that name this server in Host, where it is known what that may be.

    On a loopback address the names are known, and a page of another site that reaches the port through a name of its
    own (DNS rebinding) is refused. Elsewhere the operator may list them.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        allowed = settings.allowed_hosts + (_LOOPBACK_HOSTS if settings.loopback else ())
        self._allowed = frozenset(host.lower() for host in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._allowed and not self._known(Headers(scope=scope)):
            refusal = HostRefused("this server does not answer to that host name")
            await response_of(refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _known(self, headers: Headers) -> bool:
        hosts = headers.getlist("host")
        return len(hosts) == 1 and re.sub(r":\d{1,5}$", "", hosts[0].lower()) in self._allowed
