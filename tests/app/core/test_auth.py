"""Keys: every route but health and the playground's page asks for one, by the route itself and not by its address."""

import logging
import re
from itertools import product

import httpx2
import pytest
from fastapi.routing import APIRoute

from app.api.keys import ApiKeys
from app.core.requests import ApiRoute
from app.core.settings import Settings
from app.main import ROUTERS
from tests.app.conftest import Server, StartServer, refusal

KEY = "sk-right-key-0123456789"
READER = "sk-reader-key-0123456789"
GENERATOR = "sk-generator-key-0123456789"
KEYS = f"{KEY},{READER}:read,{GENERATOR}:generate"
BEARER = {"authorization": f"Bearer {KEY}"}
OPEN = {"/health", "/health/live", "/health/ready"}
ROUTES = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
GUARDED = [(sorted(route.methods or ())[0], route.path) for route in ROUTES if route.path not in OPEN]


@pytest.fixture
async def locked(start: StartServer) -> Server:
    """A server with keys."""
    return await start(api_keys=KEYS)


def test_every_route_but_a_short_list_needs_a_key() -> None:
    assert {route.path for route in ROUTES if not isinstance(route, ApiRoute)} == OPEN
    assert len(GUARDED) > 25


async def test_without_a_key_every_route_is_401(locked: Server) -> None:
    wrong: list[dict[str, str]] = [
        {},
        {"authorization": "Bearer wrong-key-0123456789"},
        {"authorization": f"Basic {KEY}"},
    ]
    for (method, path), headers in product(GUARDED, wrong):
        address = re.sub(r"\{\w+\}", "something", path)
        answer = await locked.client.request(method, address, headers=headers, content=b"{not even json")
        assert answer.status_code == 401, (method, path, headers)
        assert refusal(answer)["code"] == "invalid_api_key", (method, path, headers)
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_the_short_list_is_open(locked: Server) -> None:
    for path in OPEN:
        assert (await locked.client.get(path)).status_code == 200
    assert (await locked.client.get("/")).status_code in (200, 404)


WRONG = [
    KEY.upper(), KEY + " ", " " + KEY, KEY[:-1], KEY + "0", "", KEY + "\t", f"{KEY},{READER}", KEY + ":read", "*",
]  # fmt: skip


async def test_a_key_is_right_to_the_letter(locked: Server) -> None:
    for given in WRONG:
        answer = await locked.client.get("/v1/vectors", headers={"authorization": f"Bearer {given}"})
        assert answer.status_code == 401, given


async def test_two_authorization_headers_are_one_too_many(locked: Server) -> None:
    headers = httpx2.Headers([("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")])
    assert (await locked.client.get("/v1/vectors", headers=headers)).status_code == 401


async def test_the_right_key_opens(locked: Server) -> None:
    assert (await locked.client.get("/v1/vectors", headers=BEARER)).status_code == 200
    assert (await locked.client.get("/v1/vectors", headers={"authorization": f"bearer {KEY}"})).status_code == 200


ODD = [
    "//v1/vectors", "/v1//vectors", "/v1/../v1/vectors", "/v1%2fvectors", "/V1/vectors", "/v1/vectors/", "/health/../v1/vectors",
    "/health/live/../../v1/vectors", "/assets/../v1/vectors", "/v1/vectors;/health/live", "/v1/vectors%3f/health/live",
    "/v1/vectors?", "/v1/vectors?limit=1", "/%76%31/vectors", "/v1/%76ectors",
]  # fmt: skip


async def test_odd_addresses_never_open_without_a_key(locked: Server) -> None:
    """An address that answers with a key needs one; all others answer to nobody."""
    answers = {}
    for path in ODD:
        request = locked.client.build_request("GET", "/")
        request.url = request.url.copy_with(raw_path=path.encode())
        without = (await locked.client.send(request)).status_code
        request.headers.update(BEARER)
        answers[path] = [(await locked.client.send(request)).status_code, without]
    allowed = ([200, 401], [404, 404], [404, 401], [405, 405], [307, 307])
    assert [path for path, found in answers.items() if found not in allowed] == [], answers
    assert sum(found[0] == 200 for found in answers.values()) >= 4, "or this test could not fail"


async def test_scopes_are_required(locked: Server) -> None:
    reader = {"authorization": f"Bearer {READER}"}
    generator = {"authorization": f"Bearer {GENERATOR}"}
    refused = [
        ("POST", "/v1/vectors", reader), ("DELETE", "/v1/vectors/a", reader), ("PUT", "/v1/profiles/a", reader),
        ("PUT", "/v1/steering", reader), ("POST", "/v1/generate", reader), ("GET", "/metrics", reader),
        ("DELETE", "/v1/jobs/a", reader), ("GET", "/v1/vectors", generator), ("POST", "/v1/vectors/extract", generator),
    ]  # fmt: skip
    for method, path, headers in refused:
        answer = await locked.client.request(method, path, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope"), path
    assert (await locked.client.get("/v1/vectors", headers=reader)).status_code == 200
    assert (await locked.client.get("/metrics", headers=BEARER)).status_code == 200
    answer = await locked.client.post("/v1/generate", json={"prompt": "a"}, headers=generator)
    assert answer.status_code == 200


async def test_each_key_shares_prompts_with_itself_alone(locked: Server) -> None:
    """Or one caller could learn from `cached_tokens` how another's prompts begin."""

    async def salts(key: str) -> set[str]:
        headers, before = {"authorization": f"Bearer {key}"}, len(locked.scripted.requests)
        answer = await locked.client.post("/v1/generate", json={"prompt": "a", "max_tokens": 2}, headers=headers)
        record = answer.json()["steering"]["record"]
        for path, body in (
            ("compare", {"prompt": "a", "max_tokens": 2, "arms": [{"name": "one"}, {"name": "two"}]}),
            ("replay", record),
        ):
            again = await locked.client.post(f"/v1/{path}", json=body, headers=headers)
            assert again.status_code == 200, again.text
        found = locked.scripted.requests[before:]
        assert len(found) == 4
        return {request.cache_salt for request in found}

    mine, others = await salts(KEY), await salts(GENERATOR)
    assert len(mine) == len(others) == 1
    assert mine != others


async def test_keys_are_never_logged_nor_kept(locked: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await locked.client.get("/v1/vectors", headers=BEARER)
    await locked.client.get("/v1/vectors", headers={"authorization": "Bearer sk-wrong-key-0123456789"})
    assert KEY not in caplog.text
    assert "sk-wrong" not in caplog.text
    ring = ApiKeys(Settings(api_keys=KEYS))
    assert all(KEY not in repr(entry) for entry in vars(ring).values())


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost:80@evil", "", "192.168.0.1"])
async def test_a_loopback_server_answers_to_its_own_names_only(server: Server, host: str) -> None:
    answer = await server.client.get("/health/live", headers={"host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_refused")
    for own in ("localhost", "LOCALHOST:8000", "127.0.0.1:9", "[::1]:8000"):
        assert (await server.client.get("/health/live", headers={"host": own})).status_code == 200
    two = httpx2.Headers([("host", "localhost"), ("host", "evil.example")])
    assert (await server.client.get("/health/live", headers=two)).status_code == 403


async def test_elsewhere_the_operator_may_list_the_names(start: StartServer) -> None:
    anywhere = await start(api_keys=KEY, host="0.0.0.0")
    assert (await anywhere.client.get("/health/live", headers={"host": "model.example"})).status_code == 200
    listed = await start(api_keys=KEY, host="0.0.0.0", allowed_hosts="model.example")
    bearer = {"authorization": f"Bearer {KEY}"}
    for path in ("/v1/models", "/metrics/", "/health/other", "//health/live", "/health/live/"):
        refused = await listed.client.get(path, headers={**bearer, "host": "other.example"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "host_refused"), path
    assert (await listed.client.get("/v1/models", headers={**bearer, "host": "model.example:443"})).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
async def test_a_probe_by_the_address_of_its_pod_is_answered(start: StartServer, path: str) -> None:
    """service A19, D2: kubelet sends the address of the pod as Host, which no list of names contains."""
    listed = await start(api_keys=KEY, host="0.0.0.0", allowed_hosts="model.example")
    assert (await listed.client.get(path, headers={"host": "10.42.0.17:8000"})).status_code == 200


async def test_prometheus_asks_by_the_address_of_a_pod_with_a_key(start: StartServer) -> None:
    listed = await start(api_keys=KEY, host="0.0.0.0", allowed_hosts="model.example")
    by_address = {"host": "10.42.0.17:8000"}
    assert (await listed.client.get("/metrics", headers=by_address)).status_code == 401
    bearer = {"authorization": f"Bearer {KEY}"}
    assert (await listed.client.get("/metrics", headers={**by_address, **bearer})).status_code == 200
