"""A sweep over the OpenAPI document: many requests of every route with a foreign key, a reader's key, a key at its limit and under a policy.

Nothing is ungoverned, nothing foreign is read or changed, nothing is uncounted. SWEEP_REQUESTS is how many requests each route
gets: 2 by default, 100 for the long form. SWEEP_ROUTES, a regular expression, chooses routes.
"""

import json
import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import httpx2
import pytest
from transformers import PreTrainedTokenizerFast

from app.core.admission import Key
from steering.schemas.governance import KeyLimitsFields
from tests.app.api.test_extract import PAIRS
from tests.app.conftest import Server, StartServer, refusal
from tests.app.document import DOCUMENT
from tests.app.policy import test_governed_routes, test_namespaces
from tests.app.policy.conftest import directions, tiny_engine
from tests.app.policy.governed_routes import GOVERNED, MESSAGES, Governed
from tests.app.policy.namespaced_routes import LISTED, NAMED, NEAR, OWN, UNKNOWN, WRITTEN, Case
from tests.app.policy.test_governed_routes import answered, values
from tests.app.policy.test_namespaces import ADMIN, ALPHA, bearer, send, snapshot
from tests.families import D_MODEL

REQUESTS = int(os.environ.get("SWEEP_REQUESTS", "2"))
WORDS = ("road", "river", "bread", "door", "night", "apple", "stone", "letter", "window", "winter")

SCOPES = ["generate", "read", "write"]
ROUTES = {
    f"{method.upper()} {path}": operation.get("x-scope", "")
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
"""Every route with the scope that it needs; empty for a route without a key."""
SHARED = {"GET /v1/links/{link_id}"}
"""Routes that return to every key what its name is known of."""

pytestmark = pytest.mark.timeout(600 + 60 * REQUESTS)

server, pair = test_namespaces.server, test_governed_routes.pair


def drawn(number: int, body: Any) -> Any:
    """Returns a body with other words and another seed for each number; 0 leaves it as it is."""
    if number == 0 or body is None:
        return body
    random_ = random.Random(number)
    text = json.dumps(body).replace("the road", " ".join(random_.sample(WORDS, 3)))
    return json.loads(text.replace('"seed": 1', f'"seed": {number}'))


def cases(route: str, *others: Case) -> Iterator[Case]:
    """Yields REQUESTS requests of a route: those among `others`, which other tests send once, in turns."""
    known = [case for case in others if case.route == route] or [Case(route, _empty(route))]
    return (replace(case, body=drawn(i, case.body)) for i, case in enumerate(islice(cycle(known), REQUESTS)))


def _empty(route: str) -> Any:
    return None if route.split(maxsplit=1)[0] in ("GET", "DELETE") else {}


async def test_a_foreign_key_reads_and_changes_nothing_of_another_namespace(server: Server) -> None:
    before = await snapshot(server, ALPHA)
    for route in chosen(ROUTES.keys() - SHARED):
        for i, case in enumerate(cases(route, *NAMED, *LISTED)):
            await foreign_request(server, case, (OWN, NEAR, UNKNOWN)[i % 3])
    for route in chosen({case.route for case in WRITTEN}):  # last: it stores things under the same names
        for i, case in enumerate(cases(route, *WRITTEN)):
            answer = await send(server, case, (OWN, NEAR, UNKNOWN)[i % 3])
            assert answer.status_code == case.status, (case, answer.text)
            assert "alpha words" not in answer.text, case
            assert not answer.content or answer.json()["namespace"] == "beta", case
    assert await snapshot(server, ALPHA) == before


async def foreign_request(server: Server, case: Case, names: Mapping[str, str]) -> None:
    """Sends a request with a key of another namespace: the answer says nothing of what belongs to `alpha`."""
    answer = await send(server, case, names)
    text = answer.text
    for name in names.values():  # a refusal repeats the name that was sent
        text = text.replace(name, "NAME")
    assert "alpha" not in text, (case, answer.text)
    assert answer.status_code != 500, (case, answer.text)
    if ROUTES[case.route] in ("admin", "metrics"):
        assert answer.status_code == 403, (case, answer.text)
    elif case in NAMED:
        assert answer.status_code == case.status, (case, answer.text)


async def key_of(server: Server, scopes: list[str], **fields: Any) -> dict[str, Any]:
    """Returns a new key."""
    body = {"name": "sweep", "scopes": scopes, **fields}
    answer = await server.client.post("/v1/keys", json=body, headers=bearer(ADMIN))
    assert answer.status_code == 201, answer.text
    key: dict[str, Any] = answer.json()
    return key


async def test_a_readers_key_reads_and_writes_nothing(server: Server) -> None:
    reader = (await key_of(server, ["read"], namespace="alpha"))["key"]
    before = await snapshot(server, ALPHA)
    for route in chosen(route for route, scope in ROUTES.items() if scope):
        for i, case in enumerate(cases(route, *NAMED, *LISTED, *WRITTEN)):
            answer = await send(server, case, (OWN, NEAR)[i % 2], key=reader)
            refused = answer.status_code == 403 and code(answer) == "insufficient_scope"
            assert refused == (ROUTES[route] != "read"), (route, answer.text)
    assert await snapshot(server, ALPHA) == before


def chosen(routes: Iterable[str]) -> list[str]:
    """Returns the routes of this run: all of them, or those of SWEEP_ROUTES, a regular expression."""
    return sorted(route for route in routes if re.search(os.environ.get("SWEEP_ROUTES", ""), route))


def code(answer: httpx2.Response) -> str:
    """Returns the code of a refusal."""
    found: str = refusal(answer)["code"]
    return found


async def refusals(server: Server, key: Mapping[str, Any], reason: str) -> int:
    """Returns how many refusals of a key the metrics count."""
    text = (await server.client.get("/metrics", headers=bearer(ADMIN))).text
    line = f'steering_key_refusals_total{{key="{key["id"]}",reason="{reason}"}} '
    if reason == "storage_full":  # not 429: counted by code
        line = f'steering_errors_total{{code="{reason}"}} '
    return next((int(float(found.removeprefix(line))) for found in text.splitlines() if found.startswith(line)), 0)


async def test_a_key_at_its_limit_of_requests_is_refused_and_counted_on_every_route(server: Server) -> None:
    for route in chosen(route for route, scope in ROUTES.items() if scope):
        scopes = ["admin"] if ROUTES[route] in ("admin", "metrics") else SCOPES
        key = await key_of(server, scopes, limits={"requests_per_minute": 1})
        assert (await server.client.get("/v1/vectors", headers=bearer(key["key"]))).status_code == 200
        for case in cases(route, *NAMED, *LISTED, *WRITTEN):
            answer = await send(server, replace(case, file=False), OWN, key=key["key"])
            assert (answer.status_code, code(answer)) == (429, "rate_limited"), (route, answer.text)
        assert await refusals(server, key, "requests") == REQUESTS, route


@pytest.fixture
async def limited(start: StartServer, hf_byte_tokenizer: PreTrainedTokenizerFast) -> Server:
    """A server with keys over a tiny model, with two vectors."""
    opened = await start(tiny_engine(hf_byte_tokenizer), api_keys=ADMIN)
    for seed, name in enumerate(("mood", "other")):
        body = {"name": name, "directions": directions(opened.engine.info.d_model, seed)}
        assert (await opened.client.post("/v1/vectors", json=body, headers=bearer(ADMIN))).status_code == 201
    return opened


SLOW = {"POST /v1/evaluations", "POST /v1/vectors/extract"}
"""Routes that the short form asks only under a limit; test_governed_routes asks each once under a policy."""
GENERATING = {"POST /v1/generate", "POST /v1/compare", "POST /v1/chat/completions", "POST /v1/completions"}
GENERATING |= {"POST /v1/responses", "POST /v1/messages", "POST /api/chat", "POST /api/generate"}
BY_LINE = {"POST /v1/generate/batch", "POST /v1/score/batch"}
"""Their lines wait for tokens, they are not refused: see test_waiting_batches."""
JOBS = {*BY_LINE, "POST /v1/evaluations", "POST /v1/vectors/extract"}
TRAINING = {"name": "slow", "pairs": PAIRS, "method": "trained", "training": {"steps": 2000}}
STORING = (
    Governed("POST /v1/vectors", {"name": "mine", "directions": {"1": [1.0] * D_MODEL}}, ()),
    Governed("POST /v1/vectors/combine", {"name": "mine", "terms": [{"vector": "other"}]}, ()),
    Governed("POST /v1/vectors/extract?wait=true", {"name": "mine", "pairs": PAIRS}, ()),
    Governed("POST /v1/links", {"view": "compare", "state": {"prompt": "the road"}}, ()),
)
LIMITED: dict[str, tuple[dict[str, int], list[Governed]]] = {
    "tokens": (
        {"tokens_per_minute": 1},
        [
            *(case for case in GOVERNED if case.route not in BY_LINE),
            Governed("POST /tokenize", {"prompt": "the road"}, ()),
            Governed("POST /v1/messages/count_tokens", {"model": "tiny", "messages": MESSAGES}, ()),
        ],
    ),
    "rows": ({"rows": 2}, [case for case in GOVERNED if case.route in GENERATING]),
    "jobs": ({"jobs": 1}, [case for case in GOVERNED if case.route in JOBS]),
    "storage_full": ({"storage_bytes": 0}, [*STORING]),
}
"""By the reason that the metrics name: the limits of a key, and requests that reach them."""


@pytest.mark.parametrize("reason", ["tokens", "rows", "jobs", "storage_full"])
async def test_a_key_at_its_limit_is_refused_and_counted(limited: Server, reason: str) -> None:
    limit, cases_ = LIMITED[reason]
    key = await key_of(limited, SCOPES, limits=limit)
    if reason == "rows":  # as running requests do
        running_key = Key(key["id"], frozenset(SCOPES), KeyLimitsFields(rows=2))
        limited.state.rate_limits.take_rows(running_key, 2, 2)
    if reason == "jobs":
        running = await limited.client.post("/v1/vectors/extract", json=TRAINING, headers=bearer(key["key"]))
        assert running.status_code == 202, running.text
    expected = (507, reason) if reason == "storage_full" else (429, "rate_limited")
    counted = 0
    for case in cases_:
        if case.route not in chosen([case.route]):
            continue
        for number in range(REQUESTS):
            answer = await sent(limited, key, case, number)
            assert (answer.status_code, code(answer)) == expected, (case, answer.text)
        counted += REQUESTS
        assert await refusals(limited, key, reason) == counted, case
    assert len((await limited.client.get("/v1/vectors", headers=bearer(ADMIN))).json()["data"]) == 2


async def sent(server: Server, key: Mapping[str, Any], case: Governed, number: int) -> httpx2.Response:
    """Sends one of the requests of a case."""
    method, path = case.route.split()
    headers, body = bearer(key["key"]) | {"accept": "application/json"}, drawn(number, case.body)
    if case.lines:
        headers |= {"content-type": "application/jsonl"}
        return await server.client.request(method, path, content=json.dumps(body).encode(), headers=headers)
    return await server.client.request(method, path, json=body, headers=headers)


async def test_no_answer_under_a_policy_equals_an_ungoverned_one(pair: tuple[Server, Server]) -> None:
    for case in GOVERNED:
        if case.route not in chosen([case.route]) or (REQUESTS <= 2 and case.route in SLOW):
            continue
        for number in range(1, REQUESTS):  # 0 is what test_governed_routes sends
            drawn_case = replace(case, body=drawn(number, case.body))
            compared(case, *[await answered(server, drawn_case) for server in pair])


def compared(case: Governed, free: Any, governed: Any) -> None:
    """Asserts that no output of an answer under the policy is that of the answer without it. Texts of one character are those of
    single tokens, which coincide by chance; their log probabilities are compared."""
    for name in case.outputs:
        before, after = list(values(free, name)), list(values(governed, name))
        assert before, f"the answer has no {name}: {free}"
        if isinstance(before[0], str):
            outputs = {value for value in before if not isinstance(value, str) or len(value) > 1}
            assert not outputs & set(after), (case.route, name)
        else:
            assert not [a for a, b in zip(before, after, strict=False) if a == b], (case.route, name)
