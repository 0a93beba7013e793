"""What an operator sees: capabilities, version, tokenizing, metrics with bounded labels, logs without secrets, OpenAPI."""

import hashlib
import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from structlog.stdlib import ProcessorFormatter

from app.core.requests import ApiRoute
from app.core.settings import SCOPES, Settings
from app.core.synchronization import prune
from app.core.telemetry import configure_logging
from app.main import ROUTERS
from steering.conditions import CONDITIONS
from steering.operations import OPERATIONS
from steering.store.store import Store
from steering.workflows.extract import METHOD_NAMES
from tests.app.conftest import Server, StartServer
from tests.scripted_model import SCRIPTED_MODEL, WORDS

MONITORING = (Path(__file__).resolve().parents[3] / "docs" / "monitoring.md").read_text(encoding="utf-8")


async def test_capabilities_are_read_from_the_tables(server: Server) -> None:
    shown = (await server.client.get("/v1/capabilities")).json()
    assert (shown["d_model"], shown["layers"]) == (SCRIPTED_MODEL.d_model, SCRIPTED_MODEL.layer_count)
    assert shown["operations"] == list(OPERATIONS)
    assert shown["methods"] == list(METHOD_NAMES)
    assert shown["conditions"] == list(CONDITIONS)
    assert shown["scopes"] == list(SCOPES)
    assert shown["model"]["name"] == "scripted"
    assert isinstance(shown["playground"], bool)


async def test_version(server: Server) -> None:
    assert (await server.client.get("/version")).json()["name"] == "steering-server"


async def test_tokenize_and_back(server: Server) -> None:
    there = (await server.client.post("/tokenize", json={"prompt": "héllo", "texts": True})).json()
    assert there["count"] == len(there["tokens"]) == len(there["texts"]) == 6
    back = (await server.client.post("/detokenize", json={"tokens": there["tokens"]})).json()
    assert back == {"text": "héllo"}
    chat = (await server.client.post("/tokenize", json={"messages": [{"role": "user", "content": "a"}]})).json()
    assert "texts" not in chat or chat["texts"] is None
    for wrong in ([256 + len(WORDS)], [-1], [2**40], [1.5], ["a"], [True]):
        assert (await server.client.post("/detokenize", json={"tokens": wrong})).status_code == 400


async def series(server: Server) -> list[str]:
    """Every line of the metrics that is a measurement."""
    text = (await server.client.get("/metrics")).text
    return [line.rsplit(" ", 1)[0] for line in text.splitlines() if not line.startswith("#")]


async def test_odd_paths_and_names_make_no_new_series(server: Server) -> None:
    async def visit(word: str) -> None:
        await server.client.get(f"/{word}")
        await server.client.get(f"/v1/vectors/{word}")
        await server.client.request("BREW", f"/v1/vectors/{word}")

    await visit("first")
    await series(server)
    before = await series(server)
    for index in range(300):
        await visit(f"name-{index}")
    assert await series(server) == before
    joined = "\n".join(before)
    assert 'route="/v1/vectors/{name}"' in joined
    assert 'route="unmatched"' in joined
    assert "name-1" not in joined


async def test_metrics_speak_of_the_engine_and_count_what_left(server: Server) -> None:
    await server.client.post("/v1/generate", json={"prompt": "abc", "max_tokens": 5, "stream": True})
    text = (await server.client.get("/metrics")).text
    assert "steering_generated_tokens_total 5.0" in text
    assert "steering_prompt_tokens_total 3.0" in text
    assert "steering_engine_alive 1.0" in text
    assert "steering_first_token_seconds_count 1.0" in text
    assert 'steering_http_requests_total{method="POST",route="/v1/generate",status="200"} 1.0' in text
    assert "steering_http_requests_in_flight 1.0" in text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/generate", {"prompt": "ab"}),
        ("/v1/completions", {"prompt": "ab", "model": "scripted"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "ab"}], "model": "scripted"}),
        ("/v1/compare", {"prompt": "ab", "arms": [{"name": "base", "steering": []}]}),
    ],
)
async def test_the_times_of_tokens_are_those_of_streams(server: Server, path: str, body: dict[str, Any]) -> None:
    for stream in (False, True):
        answer = await server.client.post(path, json={**body, "max_tokens": 4, "stream": stream})
        assert answer.status_code == 200, answer.text
        text = (await server.client.get("/metrics")).text
        assert f"steering_first_token_seconds_count {float(stream)}" in text
        assert f"steering_token_gap_seconds_count {3.0 * stream}" in text


async def test_the_doses_of_a_comparison_are_counted(server: Server) -> None:
    await server.register()
    body = {"prompt": "ab", "steering": [{"vector": "sentiment"}], "n": 2, "max_tokens": 4}
    for answers, stream in enumerate((False, True), start=1):
        assert (await server.client.post("/v1/compare", json={**body, "stream": stream})).status_code == 200
        text = (await server.client.get("/metrics")).text
        assert f"steering_relative_dose_count {2.0 * answers}" in text, "of the steered arm alone"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What goes into the server's log. Standard error is the whole process's: a thread of another test may die there."""
    configure_logging("info")  # a test before may have started a server with another level
    ours = next(one for one in logging.getLogger().handlers if isinstance(one.formatter, ProcessorFormatter))
    assert isinstance(ours, logging.StreamHandler)
    found = io.StringIO()
    before = ours.setStream(found)
    yield found
    ours.setStream(before)


async def test_nothing_a_caller_wrote_can_forge_a_log_line_or_is_kept(
    server: Server, written: io.StringIO, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, logger="app")
    forged = 'x\r\n{"event": "forged"}'
    await server.client.post("/v1/generate", json={"prompt": f"my secret prompt {forged}"})
    await server.client.get("/v1/vectors/a%0d%0aforged")
    await server.client.post("/v1/vectors", json={"name": forged, "directions": {"1": [1.0] * 8}})
    await server.client.get("/nowhere", headers={"x-request-id": "abc"})
    lines = [record for record in caplog.records if record.name.startswith("app")]
    assert len([one for one in lines if "request" in one.getMessage()]) >= 4
    assert not any(word in one.getMessage() for one in lines for word in ("forged", "secret prompt"))
    events = [json.loads(line) for line in written.getvalue().splitlines()]
    assert len([one for one in events if one["event"] == "request"]) >= 4
    assert all({"event", "level"} <= set(one) for one in events)
    assert "forged" not in written.getvalue() + capfd.readouterr().err


async def requests_logged(server: Server, written: io.StringIO, **headers: str) -> list[dict[str, Any]]:
    """The log lines of one refused request, sent with some headers."""
    await server.client.get("/nowhere", headers={name.replace("_", "-"): value for name, value in headers.items()})
    return [line for line in map(json.loads, written.getvalue().splitlines()) if line["event"] == "request"]


async def test_a_request_is_logged_with_the_address_of_its_client(server: Server, written: io.StringIO) -> None:
    (line,) = await requests_logged(server, written, x_forwarded_for="203.0.113.9")
    assert (line["client"], line["status"]) == ("127.0.0.1", 404)


async def test_the_log_has_the_fields_that_the_page_describes(server: Server, written: io.StringIO) -> None:
    (line,) = await requests_logged(server, written)
    section = MONITORING.split("## Logs")[1].split("## Alerts")[0]
    assert line.keys() <= set(re.findall(r"`(\w+)`", section))


async def test_behind_a_proxy_the_address_is_the_last_of_its_header(start: StartServer, written: io.StringIO) -> None:
    """The addresses before it were written by the client, who may forge them."""
    server = await start(client_header="X-Forwarded-For")
    for value in ("198.51.100.1, 203.0.113.9", "203.0.113.9, 2001:db8::1", "forged, not an address", "203.0.113.9\t"):
        lines = await requests_logged(server, written, x_forwarded_for=value)
    assert [line["client"] for line in lines] == ["203.0.113.9", "2001:db8::1", "127.0.0.1", "203.0.113.9"]


async def test_health_checks_are_logged_for_debugging_only(server: Server, written: io.StringIO) -> None:
    for path in ("/health", "/health/live", "/health/ready"):
        assert (await server.client.get(path)).status_code == 200
    assert [line["route"] for line in await requests_logged(server, written)] == ["unmatched"]


async def test_the_document_lists_every_route_in_our_words(server: Server) -> None:
    document = (await server.client.get("/openapi.json")).json()
    listed = {(method.upper(), path) for path, one in document["paths"].items() for method in one}
    routes = [one for router in ROUTERS for one in router.routes if isinstance(one, APIRoute)]
    expected = {
        (method, one.path.replace(":path", ""))
        for one in routes
        for method in one.methods or ()
        if one.path != "/openapi.json"
    }
    assert listed == expected
    described = document["components"]["responses"]
    assert "rate_limited" in described["Error429"]["description"]
    assert all(
        one["content"]["application/json"]["schema"]["$ref"].endswith("ErrorAnswer") for one in described.values()
    )
    text = json.dumps(document)
    assert "HTTPValidationError" not in text
    for path, operations in document["paths"].items():
        for operation in operations.values():
            errors = {status: one for status, one in operation["responses"].items() if status >= "4"}
            assert {"403", "500", "503"} <= set(errors)
            assert ("413" in errors) == ("requestBody" in operation)
            forms = {"/api/": "TextError", "/v1/messages": "TypedError"}
            form = next((form for prefix, form in forms.items() if path.startswith(prefix)), "Error")
            assert all(one == {"$ref": f"#/components/responses/{form}{status}"} for status, one in errors.items())
            assert operation.get("description"), path
            assert ("security" in operation) == (not path.startswith("/health"))


async def test_results_of_old_batches_are_deleted_with_the_other_old_records(memory: Store) -> None:
    store = memory
    await store.outputs.append("out-1", 0, "line")
    await store.shared.links.put("a" * 16, "compare", {})
    await prune(store, Settings())
    assert await store.outputs.read("out-1", 0) == "line"
    assert len((await store.shared.links.find(None))[0]) == 1
    await prune(store, Settings.model_construct(audit_days=1, job_days=1, output_days=-1, link_days=-1))
    assert await store.outputs.read("out-1", 0) is None
    assert await store.shared.links.find(None) == ([], None)


def test_every_route_of_ours_says_which_scope_it_needs() -> None:
    for router in ROUTERS:
        for route in router.routes:
            if isinstance(route, ApiRoute):
                assert route.scope_needed in SCOPES


async def test_the_document_can_be_switched_off(start: StartServer) -> None:
    server = await start(openapi=False)
    assert (await server.client.get("/openapi.json")).status_code == 404


async def test_the_page_says_plainly_when_the_playground_is_not_built(server: Server) -> None:
    answer = await server.client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    if not (await server.client.get("/v1/capabilities")).json()["playground"]:
        assert answer.status_code == 404
        assert "make web" in answer.text
    assert "http://" not in answer.text
    assert "https://" not in answer.text


async def test_metrics_show_gaps_doses_keys_errors_jobs_and_blocks(start: StartServer) -> None:
    server = await start(api_keys="sk-metrics-key-0123456789")
    server.client.headers["authorization"] = "Bearer sk-metrics-key-0123456789"
    await server.register("mood")
    ask = {"prompt": "ab", "max_tokens": 3, "steering": [{"vector": "mood", "strength": 0.1}]}
    await server.client.post("/v1/generate", json={**ask, "stream": True})
    await server.client.get("/v1/vectors/nobody")
    text = (await server.client.get("/metrics")).text
    name = "key-" + hashlib.sha256(b"sk-metrics-key-0123456789").hexdigest()[:8]
    for line in (
        "steering_token_gap_seconds_count 2.0",
        "steering_relative_dose_count 1.0",
        f'steering_key_tokens_total{{key="{name}"}} 5.0',
        f'steering_key_requests_total{{key="{name}"}} 3.0',
        'steering_errors_total{code="vector_not_found"} 1.0',
        'steering_jobs{status="running"} 0.0',
        'steering_cache_blocks{state="used"} 0.0',
        'steering_engine_executor{executor="eager"} 1.0',
        "# TYPE steering_python_blocks gauge",
    ):
        assert line in text, line
