"""What a server tells its operators: Prometheus metrics, a log of one JSON object per line, and OpenTelemetry spans.

Labels of metrics are route templates, methods and statuses, never text chosen by a caller. JSON escapes control characters, so no
text can forge a line of the log. Spans are made where the extra `otel` is installed and STEERING_TRACES is set: one for each
request, with those of its answers.
"""

import asyncio
import ctypes
import logging
import platform
import secrets
import sys
import time
from collections.abc import AsyncGenerator, Callable, Hashable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeAlias

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.stdlib import ProcessorFormatter
from structlog.typing import Processor

from steering import __version__
from steering.engine.api import EngineStats, Finish, GenerationRequest, TokenEvent
from steering.errors import InvalidRequest, SteeringError
from steering.injection.rows import SteeringReport

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


def current_request_id() -> str:
    """Returns the id of the request that this coroutine answers; empty outside of one."""
    return str(structlog.contextvars.get_contextvars().get("request_id", ""))


def new_request_id() -> str:
    """Returns an id for a request that brings none of its own."""
    return f"req-{secrets.token_hex(8)}"


def configure_logging(level: str) -> None:
    """Routes structlog and the standard library's loggers through one JSON renderer."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    written: list[Processor] = [ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer()]
    handler.setFormatter(ProcessorFormatter(foreign_pre_chain=shared, processors=written))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for verbose in ("alembic", "httpx2", "httpcore2"):
        logging.getLogger(verbose).setLevel(logging.WARNING)


UNMATCHED = "unmatched"
ALERTED_CODES = ("storage_full", "store_corrupt", "out_of_memory")
"""Their series begin at 0, so that an alert on the increase sees the first error."""
LAG_PAUSE_SECONDS = 0.25  # pause between two measurements of the event loop
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_GAPS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_DOSES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0)
_LAGS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


def route_template(scope: Scope) -> str:
    """Returns `/v1/vectors/{name}` of the matched route, one constant for every path that matched none."""
    return str(getattr(scope.get("route"), "path", UNMATCHED))


class Metrics(Collector):
    """The metrics of one server, in a registry of its own so that several servers can run in one process."""

    def __init__(
        self, stats: Callable[[], EngineStats | None], jobs: Callable[[], Mapping[str, int]], *collectors: Collector
    ) -> None:
        """Makes the metrics. What `jobs` returns is the number of jobs by status; `collectors` are asked when Prometheus scrapes."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every counter, which nothing reads
        self._stats, self._jobs = stats, jobs
        self.not_ready: str | None = "not_ready"  # code of the reason, as of the last scrape
        registry = self._registry = CollectorRegistry()
        counter, histogram = partial(Counter, registry=registry), partial(Histogram, registry=registry)
        gauge = partial(Gauge, registry=registry)
        about = "Answered requests."
        self.requests = counter("steering_http_requests", about, ("method", "route", "status"))
        about = "From the first byte of the request to the last of the answer."
        self.seconds = histogram("steering_http_request_seconds", about, ("route",), buckets=_SECONDS)
        self.in_flight = gauge("steering_http_requests_in_flight", "Requests being answered.")
        about = "From admission to the first token of a streamed answer."
        self.first_token_seconds = histogram("steering_first_token_seconds", about, buckets=_SECONDS)
        about = "Generated tokens at which a flag of the request held, by the side of its bound."
        self.flagged_tokens = counter("steering_flagged_tokens", about, ("bound",))
        about = "Between two tokens of one streamed answer."
        self.token_gap_seconds = histogram("steering_token_gap_seconds", about, buckets=_GAPS)
        about = "Measured relative dose of steered answers, summed over interventions and layers."
        self.relative_dose = histogram("steering_relative_dose", about, buckets=_DOSES)
        self.errors = counter("steering_errors", "Error responses, by code.", ("code",))
        for code in ALERTED_CODES:
            self.errors.labels(code)
        self.key_requests = counter("steering_key_requests", "Requests, by key.", ("key",))
        about = "Tokens of prompts and answers that were admitted, by key."
        self.key_tokens = counter("steering_key_tokens", about, ("key",))
        about = "Requests that were answered 429, by key and by the limit that was reached."
        self.key_refusals = counter("steering_key_refusals", about, ("key", "reason"))
        self.connections = gauge("steering_connections", "Open connections.")
        about = "How much later than due the event loop continued: while it is late, nothing is answered."
        self.loop_lag_seconds = histogram("steering_event_loop_lag_seconds", about, buckets=_LAGS)
        about = "One small read of the database, twice a second."
        self.database_seconds = histogram("steering_database_read_seconds", about, buckets=_SECONDS)
        about = "Background accesses to the database that failed, by what they were for; `renew` is the lease of this server."
        self.database_failures = counter("steering_database_failures", about, ("work",))
        about = "When this server last renewed its lease, which other servers take it for dead without."
        self.lease_renewed = gauge("steering_lease_renewed_timestamp_seconds", about)
        libraries = {name: version(name) for name in ("torch", "transformers")}
        build = Info("steering_build", "Versions of the server and of what it computes with.", registry=registry)
        build.info({"version": __version__, "python": platform.python_version(), **libraries})
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        for collector in (self, *collectors):
            registry.register(collector)

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        """Counts one answered request."""
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        route = route_template(scope)
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def observe_dose(self, reports: Sequence[SteeringReport]) -> None:
        """Counts the dose of each steered answer."""
        for report in reports:
            if report.doses:
                self.relative_dose.observe(report.total)

    def keep_keys(self, names: AbstractSet[str]) -> None:
        """Removes the series of keys that are not among these: deleted ones, here or on another server."""
        for counter in (self.key_requests, self.key_tokens, self.key_refusals):
            counted = {sample.labels["key"] for metric in counter.collect() for sample in metric.samples}
            for name in counted - names:
                counter.remove_by_labels({"key": name})

    async def measure_loop(self) -> None:
        """Measures how late the event loop continues, until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_PAUSE_SECONDS
            await asyncio.sleep(LAG_PAUSE_SECONDS)
            self.loop_lag_seconds.observe(max(loop.time() - due, 0.0))

    def collect(self) -> Iterator[Metric]:
        """Yields the statistics of the engine, the jobs of this process and its memory, when Prometheus scrapes."""
        yield GaugeMetricFamily("steering_ready", "1 while /health/ready answers 200.", float(self.not_ready is None))
        about = "1 for the reason why the server is not ready, by code."
        reasons = {} if self.not_ready is None else {self.not_ready: 1.0}
        yield _labelled("steering_not_ready", about, "code", reasons)
        stats = self._stats()
        if stats is not None:
            yield from _engine_metrics(stats)
        yield _labelled("steering_jobs", "Jobs of this server, by status.", "status", self._jobs())
        yield from _memory_metrics()

    def render(self) -> bytes:
        """Returns the text format that Prometheus reads."""
        return generate_latest(self._registry)


class TokenClock:
    """Measures the time to the first token of a stream, and between the tokens of each of its choices."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._started: float | None = time.perf_counter()
        self._last: dict[Hashable, float] = {}

    def observe(self, choice: Hashable) -> None:
        """Counts one token."""
        now = time.perf_counter()
        if self._started is not None:
            self._metrics.first_token_seconds.observe(now - self._started)
            self._started = None
        elif choice in self._last:
            self._metrics.token_gap_seconds.observe(now - self._last[choice])
        self._last[choice] = now


class _Mallinfo(ctypes.Structure):
    """The result of mallinfo2(3). Large blocks that are mapped by themselves are in `hblkhd`, all others in `uordblks`."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names.split())


def allocated_bytes() -> int | None:
    """Returns what the process has allocated from the C library and not freed; None where the library does not count it."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return None
    mallinfo.restype = _Mallinfo
    found = mallinfo()
    return int(found.uordblks) + int(found.hblkhd)


def _labelled(name: str, about: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, about, labels=[label])
    for labelled, value in values.items():
        family.add_metric([labelled], value)
    return family


def _memory_metrics() -> Iterator[Metric]:
    """Counts what is in use. Freed memory is kept (app/core/process_settings.py), so the size of the process hides a slow leak."""
    allocated = allocated_bytes()
    if allocated is not None:
        about = "Memory in use, from the C library: tensors and large objects."
        yield GaugeMetricFamily("steering_allocated_bytes", about, allocated)
    about = "Blocks in use, from Python's allocator of small objects."
    yield GaugeMetricFamily("steering_python_blocks", about, sys.getallocatedblocks())


def _engine_metrics(stats: EngineStats) -> Iterator[Metric]:
    gauge, counter = GaugeMetricFamily, CounterMetricFamily
    yield gauge("steering_engine_alive", "1 while the engine's loop runs.", float(stats.alive))
    yield _labelled("steering_engine_executor", "1 for the active executor.", "executor", {stats.executor: 1.0})
    sizes = {form: float(size) for form, size in stats.weight_bytes.items()}
    about = "Weights of linear layers by their format."
    yield _labelled("steering_engine_weight_bytes", about, "format", sizes)
    yield gauge("steering_engine_running", "Rows in the batch.", stats.running)
    yield gauge("steering_engine_waiting", "Rows waiting for the batch.", stats.waiting)
    about = "Time that requests waited for a row of the batch."
    yield SummaryMetricFamily("steering_queue_wait_seconds", about, stats.admitted, stats.queue_seconds)
    yield counter("steering_engine_steps", "Forward passes.", stats.steps)
    yield counter("steering_generated_tokens", "Tokens generated.", stats.generated_tokens)
    yield counter("steering_prompt_tokens", "Prompt tokens read.", stats.prompt_tokens)
    yield counter("steering_cached_tokens", "Prompt tokens taken from cache.", stats.cached_tokens)
    yield gauge("steering_background_running", "Background sequences in the batch.", stats.background_running)
    yield gauge("steering_background_waiting", "Background work that waits.", stats.background_waiting)
    blocks = {"used": stats.blocks_used, "cached": stats.blocks_cached, "total": stats.blocks_total}
    yield _labelled("steering_cache_blocks", "Blocks of the key-value cache.", "state", blocks)
    yield counter("steering_preemptions", "Sequences that were preempted.", stats.preemptions)
