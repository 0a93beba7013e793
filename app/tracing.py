"""Traces: one OpenTelemetry span for each request, where the extra `otel` is installed and STEERING_TRACES is set."""

from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.logs import current_request_id
from app.metrics import route_template
from steering import __version__
from steering.errors import InvalidRequest

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_CONTEXT_HEADERS = (b"traceparent", b"tracestate")


def open_traces() -> "TracerProvider":
    """Returns a provider that sends spans by OTLP over HTTP, as the environment says (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME).

    Raises InvalidRequest where the extra is not installed.
    """
    try:  # imported here: optional, and loaded only by servers that trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise InvalidRequest(
            f"STEERING_TRACES needs the Python package {error.name!r}: pip install 'steering-server[otel]'",
            param="traces",
        ) from error
    resource = Resource.create({"service.version": __version__})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class TraceMiddleware:
    """Opens a span around each request, a child of the caller's if it sent `traceparent`.

    Its name is the template of the route, never the path. Events say when the response and its body began: for a stream
    the latter is the first token.
    """

    def __init__(self, app: ASGIApp, provider: "TracerProvider") -> None:
        from opentelemetry.trace import SpanKind, StatusCode  # noqa: PLC0415 - optional
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        self._app = app
        self._tracer = provider.get_tracer("steering-server", __version__)
        self._extract = TraceContextTextMapPropagator().extract
        self._server, self._error = SpanKind.SERVER, StatusCode.ERROR

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _CONTEXT_HEADERS}  # fmt: skip
        method = scope["method"][:16]
        with self._tracer.start_as_current_span(method, self._extract(headers), self._server) as span:
            begun = False

            async def observed(message: Message) -> None:
                nonlocal begun
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    span.add_event("response started")
                    if message["status"] >= 500:
                        span.set_status(self._error)
                elif not begun and message.get("body"):
                    begun = True
                    span.add_event("body started")
                await send(message)

            try:
                await self._app(scope, receive, observed)
            finally:
                route = route_template(scope)
                span.update_name(f"{method} {route}")
                span.set_attributes(_attributes(scope, method, route))


def _attributes(scope: Scope, method: str, route: str) -> dict[str, Any]:
    state = scope.get("state", {})
    found = {
        "http.request.method": method,
        "http.route": route,
        "steering.request_id": current_request_id(),
        "steering.key": getattr(state.get("key"), "name", None),
        "steering.error_code": state.get("error_code"),
    }
    return {name: value for name, value in found.items() if value is not None}
