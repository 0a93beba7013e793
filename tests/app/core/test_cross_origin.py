"""Pages of other origins: no answer lets them read it, and no preflight is a way past the key."""

import re

import httpx2
import pytest

from tests.app.conftest import Server
from tests.app.document import DOCUMENT

ORIGIN = {"origin": "http://evil.example", "access-control-request-method": "POST"}
PATHS = sorted({re.sub(r"\{[^}]*\}", "x", path) for path in DOCUMENT["paths"]})


def allowed(headers: httpx2.Headers) -> list[str]:
    """Returns the headers that would let another origin read an answer."""
    return [name for name in headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize("path", ["/v1/vectors", "/v1/vectors/nobody", "/health/live", "/", "/nowhere"])
async def test_no_answer_allows_another_origin(server: Server, path: str) -> None:
    assert allowed((await server.client.get(path, headers=ORIGIN)).headers) == []
    assert allowed((await server.client.post(path, json={}, headers=ORIGIN)).headers) == []


async def test_a_preflight_is_answered_by_no_route(server: Server) -> None:
    for path in PATHS:
        answer = await server.client.options(path, headers=ORIGIN)
        assert answer.status_code in (404, 405), path
        assert allowed(answer.headers) == []
