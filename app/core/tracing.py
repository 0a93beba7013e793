"""Traces: an OpenTelemetry span for each request, with those of its answers, where the extra `otel` is installed and
STEERING_TRACES is set."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.logs import current_request_id
from app.core.metrics import route_template
from steering import __version__
from steering.engine.api import Finish, GenerationRequest, TokenEvent
from steering.errors import InvalidRequest, SteeringError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

Observer: TypeAlias = Callable[[GenerationRequest, AsyncGenerator[TokenEvent, None]], AsyncGenerator[TokenEvent, None]]

_CONTEXT_HEADERS = (b"traceparent", b"tracestate")
_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)


def current_observer() -> Observer | None:
    """Returns what makes the spans of answers to the request that this coroutine serves; None without traces."""
    return _observer.get()


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
            f"STEERING_TRACES needs the Python package {error.name!r}: "
            "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http",
            param="traces",
        ) from error
    resource = Resource.create({"service.version": __version__})
    named = str(resource.attributes["service.name"])
    if named.startswith("unknown_service"):  # the library's name where nobody gave one
        resource = resource.merge(Resource({"service.name": "steering-server"}))
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class TraceMiddleware:
    """Opens a span around each request, a child of the caller's if it sent `traceparent`.

    Its name is the template of the route, never the path. Events say when the response and its body began: for a stream
    the latter is the first token. Each answer has spans of its own (AnswerSpans).
    """

    def __init__(self, app: ASGIApp, provider: "TracerProvider") -> None:
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context  # noqa: PLC0415 - optional
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        self._app = app
        self._tracer = provider.get_tracer("steering-server", __version__)
        self._extract = TraceContextTextMapPropagator().extract
        self._server, self._error, self._context = SpanKind.SERVER, StatusCode.ERROR, set_span_in_context

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

            observing = _observer.set(AnswerSpans(self._tracer, self._context(span), current_request_id()))
            try:
                await self._app(scope, receive, observed)
            finally:
                _observer.reset(observing)
                route, state = route_template(scope), scope["state"]
                span.update_name(f"{method} {route}")
                attributes = {
                    "http.request.method": method,
                    "http.route": route,
                    "steering.request_id": current_request_id(),
                    "steering.key": getattr(state.get("key"), "name", None),
                    "steering.error_code": state.get("error_code"),
                }
                span.set_attributes({name: value for name, value in attributes.items() if value is not None})


@dataclass(slots=True, eq=False)
class _Observed:
    """What was seen of one answer. Times are of the monotonic clock."""

    asked: float = field(default_factory=time.monotonic)
    scheduled: float | None = None
    first: float | None = None
    last: float = 0.0
    tokens: int = 0
    finish: Finish | None = None
    error: str | None = None

    def add(self, event: TokenEvent) -> None:
        self.last = time.monotonic()
        if self.first is None:
            self.first, self.scheduled = self.last, event.scheduled
        self.tokens += event.token_id >= 0
        self.finish = event.finish


@dataclass(frozen=True, slots=True, eq=False)
class AnswerSpans:
    """Makes the spans `queue`, `prefill` and `decode` of an answer when it has ended, from the times at which its events came.

    Every choice and arm of a request has its own, children of the request's span. An answer that fails before its first event, or
    whose client leaves before it, has one span `failed`. Attributes have the names of the conventions `gen_ai.*` where these have one.
    """

    tracer: "Tracer"
    parent: "Context"
    request_id: str

    async def __call__(
        self, request: GenerationRequest, events: AsyncGenerator[TokenEvent, None]
    ) -> AsyncGenerator[TokenEvent, None]:
        """Yields the events of an answer."""
        seen = _Observed()
        try:
            async for event in events:
                seen.add(event)
                yield event
        except SteeringError as error:
            seen.error = error.code
            raise
        except (asyncio.CancelledError, GeneratorExit):
            if seen.finish is None:
                seen.error = "cancelled"
            raise
        finally:
            self._write(request, seen)

    def _write(self, request: GenerationRequest, seen: _Observed) -> None:
        prompt: dict[str, Any] = {}
        failure = {} if seen.error is None else {"error.type": seen.error}
        answer: dict[str, Any] = {"gen_ai.usage.output_tokens": seen.tokens, **failure}
        if (finish := seen.finish) is not None:
            prompt["gen_ai.usage.input_tokens"] = finish.prompt_tokens
            prompt["gen_ai.usage.cache_read.input_tokens"] = finish.cached_tokens
            answer["gen_ai.response.finish_reasons"] = (finish.reason,)
        shared = {
            "steering.request_id": self.request_id,
            "steering.fingerprint": request.plan.fingerprint,
            "steering.seed": str(request.sampling.seed),  # up to 64 bits, and attributes have 63
        }
        spans: list[tuple[str, float, float, dict[str, Any]]] = []
        if (first := seen.first) is not None:
            scheduled = min(max(seen.scheduled or seen.asked, seen.asked), first)
            spans += [("queue", seen.asked, scheduled, {}), ("prefill", scheduled, first, prompt)]
            spans += [("decode", first, seen.last, answer)]
        elif failure:
            spans += [("failed", seen.asked, time.monotonic(), failure)]
        to_unix = time.time_ns() - time.monotonic_ns()
        for name, start, end, own in spans:
            begun = to_unix + round(1e9 * start)
            span = self.tracer.start_span(name, self.parent, attributes=shared | own, start_time=begun)
            span.end(to_unix + round(1e9 * end))
