"""Prometheus metrics. Labels are route templates, methods and statuses, never text chosen by a caller."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import Scope

from steering.engine.api import EngineStats

UNMATCHED = "unmatched"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


def route_template(scope: Scope) -> str:
    """Returns `/v1/vectors/{name}` of the matched route, one constant for every path that matched none."""
    return str(getattr(scope.get("route"), "path", UNMATCHED))


class Metrics:
    """The metrics of one server, in a registry of its own so that several servers can run in one process."""

    def __init__(self, stats: Callable[[], EngineStats | None]) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "steering_http_requests", "Answered requests.", ("method", "route", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            "steering_http_request_seconds",
            "From the first byte of the request to the last of the answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.in_flight = Gauge("steering_http_requests_in_flight", "Requests being answered.", registry=self._registry)
        self.first_token_seconds = Histogram(
            "steering_first_token_seconds",
            "From admission to the first token of a streamed answer.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.flagged_tokens = Counter(
            "steering_flagged_tokens",
            "Generated tokens at which a flag of the request held, by the side of its bound.",
            ("bound",),
            registry=self._registry,
        )
        self._registry.register(_EngineCollector(stats))

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        """Counts one answered request."""
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        route = route_template(scope)
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def render(self) -> bytes:
        """Returns the text format that Prometheus reads."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """Collects the engine's statistics when Prometheus scrapes."""

    def __init__(self, stats: Callable[[], EngineStats | None]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        if stats is None:
            return
        yield GaugeMetricFamily("steering_engine_alive", "1 while the engine's loop runs.", float(stats.alive))
        executor = GaugeMetricFamily("steering_engine_executor", "1 for the active executor.", labels=["executor"])
        executor.add_metric([stats.executor], 1.0)
        yield executor
        yield GaugeMetricFamily("steering_engine_running", "Rows in the batch.", stats.running)
        yield GaugeMetricFamily("steering_engine_waiting", "Rows waiting for the batch.", stats.waiting)
        yield CounterMetricFamily("steering_engine_steps", "Forward passes.", stats.steps)
        yield CounterMetricFamily("steering_generated_tokens", "Tokens generated.", stats.generated_tokens)
        yield CounterMetricFamily("steering_prompt_tokens", "Prompt tokens read.", stats.prompt_tokens)
        yield CounterMetricFamily("steering_cached_tokens", "Prompt tokens taken from cache.", stats.cached_tokens)
