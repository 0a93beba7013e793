"""One error shape everywhere: for bodies that are no JSON, numbers that are none, addresses that do not exist, and our own faults."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from structlog.testing import capture_logs

from app.core import errors as http_errors
from app.core.errors import OUTCOMES, outcome_of, public_error
from steering import errors
from tests.app.conftest import Server, StartServer
from tests.fakes import ScriptedEngine

JSON = {"content-type": "application/json"}


def check_shape(answer: httpx2.Response) -> dict[str, str]:
    """The error of an answer, which must be in our shape."""
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["code"], str)
    assert answer.headers["x-request-id"]
    error: dict[str, str] = body["error"]
    return error


def test_every_error_of_the_tree_has_an_outcome() -> None:
    tree = [errors.SteeringError]
    for kind in tree:
        tree.extend(kind.__subclasses__())
        assert 400 <= outcome_of(kind("x")).status < 600
    own = {kind for kind in tree if kind.__module__ in ("steering.errors", "app.core.errors")}
    assert set(OUTCOMES) <= own


def test_statuses_are_those_of_the_contract() -> None:
    expected = {
        errors.InvalidRequest: 400, errors.VectorModelMismatch: 400, errors.ContextLengthExceeded: 400,
        errors.LimitExceeded: 400, errors.UnsupportedParameter: 400, http_errors.InvalidApiKey: 401,
        http_errors.InsufficientScope: 403, errors.VectorNotFound: 404, errors.JobNotFound: 404, errors.LinkNotFound: 404,
        errors.VectorInUse: 409, http_errors.JobCancelled: 409,
        http_errors.BodyTooLarge: 413, http_errors.UnsupportedMediaType: 415, errors.NonfiniteActivations: 422,
        errors.Overloaded: 429, http_errors.RateLimited: 429, errors.InternalError: 500, errors.NotReady: 503,
        http_errors.Draining: 503, errors.EngineDead: 503, errors.StoreUnavailable: 503, errors.OutOfMemory: 507,
        errors.StorageFull: 507,
    }  # fmt: skip
    assert {kind: outcome_of(kind("x")).status for kind in expected} == expected
    for kind in (errors.Overloaded, errors.NotReady, http_errors.Draining, http_errors.RateLimited, errors.EngineDead):
        assert outcome_of(kind("x")).retry_after


def test_what_every_start_and_restart_answers_is_logged_as_no_failure() -> None:
    expected = {errors.NotReady: "info", http_errors.Draining: "info", errors.EngineDead: "error", errors.StoreUnavailable: "error"}  # fmt: skip
    with capture_logs() as logs:
        for kind in expected:
            public_error(kind("x"))
    assert [line["log_level"] for line in logs] == list(expected.values())


GENERATE = b'{"prompt": "a", "temperature": %s}'
BAD_BODIES = {
    "NaN": GENERATE % b"NaN",
    "Infinity": GENERATE % b"Infinity",
    "-Infinity": GENERATE % b"-Infinity",
    "1e400": GENERATE % b"1e400",
    "a quoted number": GENERATE % b'"1"',
    "a quoted nan": GENERATE % b'"nan"',
    "true": GENERATE % b"true",
    "5000 digits": GENERATE % (b"9" * 5000),
    "400 digits": GENERATE % (b"9" * 400),
    "a list": GENERATE % b"[1]",
    "a lone surrogate": b'{"prompt": "\\ud800"}',
    "a lone surrogate as a key": b'{"prompt": "a", "\\udfff": 1}',
    "bytes that are not UTF-8": b'{"prompt": "\xff"}',
    "no JSON": b"{",
    "two values": b"{} {}",
    "a comment": b'{"prompt": "a" /* hi */}',
    "nothing": b"",
    "null": b"null",
    "a list as the body": b"[]",
    "20,000 levels": b'{"prompt": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "65 levels": b'{"prompt": ' + b"[" * 64 + b"]" * 64 + b"}",
    "brackets after an open string": b'["\\"' + b'\\"' * 100_000,
    "an unknown key": b'{"prompt": "a", "top_q": 1}',
    "an unknown key inside steering": b'{"prompt": "a", "steering": [{"vector": "a", "strenght": 1}]}',
    "a chat template": b'{"messages": [{"role": "user", "content": "a"}], "chat_template": "{{ 1 }}"}',
    "an unknown role": b'{"messages": [{"role": "tool", "content": "a"}]}',
    "a condition 200 deep": b'{"prompt": "a", "steering": [{"vector": "a", "when": ' + b'{"not": ' * 200
    + b'{"vector": "a", "above": 0}' + b"}" * 200 + b"}]}",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_bodies_that_cannot_be_right_are_400_and_are_not_repeated(server: Server, name: str) -> None:
    answer = await server.client.post("/v1/generate", content=BAD_BODIES[name], headers=JSON)
    error = check_shape(answer)
    assert (answer.status_code, error["code"]) == (400, "invalid_request"), answer.text
    assert len(answer.content) < 1000
    assert "999999" not in answer.text


async def test_the_field_is_named_and_unions_do_not_show(server: Server) -> None:
    body = {"prompt": "a", "steering": [{"vector": "a", "strength": "strong"}]}
    error = check_shape(await server.client.post("/v1/generate", json=body))
    assert error["param"] == "steering.0.strength"
    error = check_shape(await server.client.post("/v1/generate", json={"prompt": "a", "n": 0}))
    assert error["param"] == "n"


@pytest.mark.parametrize(
    ("body", "param", "known"),
    [
        ({"top_q": 1}, "top_q", "temperature, top_p, top_k"),
        ({"steering": [{"vector": "a", "strenght": 1}]}, "steering.0.strenght", "vector, operation, strength, unit"),
        ({"steering": [{"vector": "a", "layers": {"from": 1, "till": 2}}]}, "steering.0.layers.till", "from, to"),
        ({"steering": [{"vector": "a", "when": {"not": {"of": 1}}}]}, "steering.0.when.not.of", "above, below"),
    ],
)
async def test_a_key_that_is_not_known_is_rejected_with_the_known_ones(
    server: Server, body: dict[str, Any], param: str, known: str
) -> None:
    error = check_shape(await server.client.post("/v1/generate", json={"prompt": "a", **body}))
    assert error["param"] == param
    assert f"{param}: this key is not known; known here: " in error["message"]
    assert known in error["message"]
    assert "..." not in error["message"]


async def test_an_unknown_parameter_of_a_query_is_rejected_with_the_known_ones(server: Server) -> None:
    error = check_shape(await server.client.get("/v1/vectors?sort=name"))
    assert error["param"] == "sort"
    assert "limit, cursor" in error["message"]
    for method, path, known in (
        ("GET", "/version", "none"),
        ("GET", "/v1/steering", "namespace"),
        ("POST", "/v1/generate", "namespace"),
    ):
        error = check_shape(await server.client.request(method, f"{path}?sort=name", json={"prompt": "a"}))
        assert (error["code"], error["param"]) == ("invalid_request", "sort")
        assert error["message"].endswith(f"known: {known}")


async def test_depth_within_the_limit_is_read(server: Server) -> None:
    strings = {"prompt": '[{"' * 100}
    assert (await server.client.post("/v1/generate", json=strings)).status_code == 200


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
async def test_a_page_of_another_site_cannot_post(server: Server, media_type: str | None) -> None:
    headers = {} if media_type is None else {"content-type": media_type}
    answer = await server.client.post("/v1/generate", content=b'{"prompt": "a"}', headers=headers)
    assert (answer.status_code, check_shape(answer)["code"]) == (415, "unsupported_media_type")
    preflight = await server.client.options("/v1/generate", headers={"origin": "http://evil.example"})
    assert preflight.status_code == 405
    assert "access-control-allow-origin" not in preflight.headers


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_413_before_it_is_parsed(start: StartServer, chunked: bool) -> None:
    server = await start(max_body_bytes=1000)
    taken = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield b"[" * 100

    content = pieces() if chunked else b"[" * 1001
    answer = await server.client.post("/v1/generate", content=content, headers=JSON)
    assert (answer.status_code, check_shape(answer)["code"]) == (413, "body_too_large")
    fine = json.dumps({"prompt": "a" * (1000 - 14)}).encode()
    assert len(fine) == 1000
    assert (await server.client.post("/v1/generate", content=fine, headers=JSON)).status_code == 200


async def test_a_vector_may_be_larger_than_other_bodies(start: StartServer) -> None:
    server = await start(max_body_bytes=100, max_upload_bytes=1000)
    await server.register()
    answer = await server.client.post("/v1/vectors", json={"name": "a" * 2000, "directions": {}})
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/nowhere/%0d%0aX-Evil:1", 404, "not_found"),
        ("GET", "/v1/generate", 405, "method_not_allowed"),
        ("DELETE", "/v1/vectors", 405, "method_not_allowed"),
        ("GET", "/v1/vectors/", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("GET", "/v1/jobs/nobody", 404, "job_not_found"),
        ("DELETE", "/v1/jobs/nobody", 404, "job_not_found"),
        ("GET", "/v1/jobs/nobody/events", 404, "job_not_found"),
        ("GET", "/v1/concepts/nothing", 404, "concept_not_found"),
    ],
)
async def test_addresses_that_do_not_exist(server: Server, method: str, path: str, status: int, code: str) -> None:
    answer = await server.client.request(method, path)
    assert (answer.status_code, check_shape(answer)["code"]) == (status, code)


async def test_a_fault_of_ours_says_nothing_of_the_inside(start: StartServer) -> None:
    server = await start(ScriptedEngine(failure=RuntimeError("/home/secret.py at 0x7f00 token sk-123")))
    answer = await server.client.post("/v1/generate", json={"prompt": "a"}, headers={"x-request-id": "mine-1"})
    assert (answer.status_code, check_shape(answer)["code"]) == (500, "internal_error")
    assert answer.headers["x-request-id"] == "mine-1"
    for secret in ("secret", "0x7f", "sk-", "Traceback", ".py"):
        assert secret not in answer.text


async def test_request_ids_are_echoed_if_well_formed(server: Server) -> None:
    echoed = await server.client.get("/health/live", headers={"x-request-id": "abc-123"})
    assert echoed.headers["x-request-id"] == "abc-123"
    for bad in ("", "a" * 65, "a b", "<b>", "a;b"):
        answer = await server.client.get("/nowhere", headers={"x-request-id": bad})
        assert answer.headers["x-request-id"].startswith("req-")


async def test_security_headers_are_on_every_answer(server: Server) -> None:
    for path in ("/", "/health/live", "/nowhere", "/v1/vectors"):
        headers = (await server.client.get(path)).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers
