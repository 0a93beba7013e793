"""With traces, each request is a span: named by its route, with the caller's trace, the status and the key's name, no prompt."""

import sys
from collections.abc import AsyncIterator

import httpx2
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from app.main import create_app
from app.settings import Settings
from app.tracing import open_traces
from steering.errors import InvalidRequest, OutOfMemory
from tests.app.conftest import BASE_URL, memory_store, state
from tests.fakes import ScriptedEngine

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "x-request-id": "req-of-the-test"}


class Traced:
    """A server with traces, and the spans of its requests."""

    def __init__(self, client: httpx2.AsyncClient, engine: ScriptedEngine, exporter: InMemorySpanExporter) -> None:
        self.client, self.engine, self._exporter = client, engine, exporter

    def spans(self) -> tuple[ReadableSpan, ...]:
        """The spans that have ended, oldest first."""
        return self._exporter.get_finished_spans()


@pytest.fixture
async def traced() -> AsyncIterator[Traced]:
    provider, exporter, engine = TracerProvider(), InMemorySpanExporter(), ScriptedEngine()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = create_app(Settings(), lambda _: engine, memory_store, provider)
    async with app.router.lifespan_context(app):
        await state(app).loaded.wait()
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url=BASE_URL) as client:
            yield Traced(client, engine, exporter)


async def test_a_request_is_a_span_in_the_trace_of_its_caller(traced: Traced) -> None:
    answer = await traced.client.post("/v1/generate", json={"prompt": "secret", "max_tokens": 2}, headers=PARENT)
    assert answer.status_code == 200
    (span,) = traced.spans()
    assert span.name == "POST /v1/generate"
    assert f"{span.context.trace_id:032x}" == TRACE
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/generate",
        "http.response.status_code": 200,
        "steering.request_id": "req-of-the-test",
        "steering.key": "anonymous",
    }
    assert "secret" not in span.to_json()


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None
    )  # as if not installed
    with pytest.raises(
        InvalidRequest, match=r"STEERING_TRACES needs .*opentelemetry.* pip install 'steering-server\[otel\]'"
    ):
        open_traces()


async def test_a_stream_says_when_its_first_token_came(traced: Traced) -> None:
    body = {"prompt": "a", "max_tokens": 4, "stream": True}
    assert (await traced.client.post("/v1/generate", json=body)).status_code == 200
    (span,) = traced.spans()
    started, body_started = span.events
    assert (started.name, body_started.name) == ("response started", "body started")
    assert span.start_time <= started.timestamp <= body_started.timestamp <= span.end_time


async def test_errors_and_unknown_routes_have_spans_of_bounded_names(traced: Traced) -> None:
    traced.engine.failure = OutOfMemory("planted")
    assert (await traced.client.post("/v1/generate", json={"prompt": "a"})).status_code == 507
    assert (await traced.client.get("/odd/path?with=query")).status_code == 404
    failed, unknown = traced.spans()
    assert failed.status.status_code is StatusCode.ERROR
    assert (failed.attributes or {})["steering.error_code"] == "out_of_memory"
    assert (unknown.name, unknown.status.status_code) == ("GET unmatched", StatusCode.UNSET)
