"""A judge over HTTP: a real endpoint on this machine is asked, its failures are counted, and no caller chooses its address."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import ValidationError

from app.core.settings import Settings
from tests.app.conftest import Server, StartServer
from tests.fakes import ScriptedEngine

DOSE: dict[str, Any] = {
    "kind": "dose_response", "vector": "mood", "prompts": ["the road", [{"role": "user", "content": "How was it?"}]],
    "neutral": ["so"], "strengths": [1], "random_directions": 0, "max_tokens": 4,
}  # fmt: skip
RATINGS = 2 * 2 * 3


def completion(text: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


class Endpoint:
    """An OpenAI-compatible server. reply(question) -> (status, body, headers)."""

    def __init__(self, reply: Callable[[str], tuple[int, bytes, dict[str, str]]]) -> None:
        self.reply, self.bodies, self.keys, self.paths = reply, list[Any](), set[str | None](), set[str]()
        self.address = ""

    @contextmanager
    def serving(self) -> Iterator["Endpoint"]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.bodies.append(body)
                endpoint.keys.add(self.headers["Authorization"])
                endpoint.paths.add(self.path)
                status, content, headers = endpoint.reply(body["messages"][0]["content"])
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.address = f"http://127.0.0.1:{server.server_address[1]}/v1"
        try:
            yield self
        finally:
            server.shutdown()
            thread.join(30)
            server.server_close()


def settings(address: str) -> dict[str, Any]:
    return {"judge_base_url": address, "judge_model": "judge-1", "judge_api_key": "secret-of-the-judge"}


async def judged(server: Server, **judge: Any) -> dict[str, Any]:
    """The answer to an evaluation with a judge."""
    await server.register("mood", description="a good mood")
    answer = await server.client.post("/v1/evaluations?wait=true", json={**DOSE, "judge": judge})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_the_operators_endpoint_is_asked_three_questions_an_answer(start: StartServer) -> None:
    with Endpoint(lambda _: (200, completion("Rating: 2"), {})).serving() as endpoint:
        found = await judged(await start(ScriptedEngine(length=3), **settings(endpoint.address)), by="endpoint")
    judgement = found["judgement"]
    assert (judgement["by"], judgement["concept"], judgement["ratings"]) == ("endpoint", "a good mood", RATINGS)
    assert judgement["failures"] == {}
    assert [point["strength"] for point in judgement["points"]] == [0.0, 1.0]
    for point in judgement["points"]:
        assert (point["judged"], point["failed"], point["overall"]["mean"]) == (2, 0, 2.0)
    assert len(endpoint.bodies) == RATINGS
    assert endpoint.paths == {"/v1/chat/completions"}
    assert endpoint.keys == {"Bearer secret-of-the-judge"}
    assert {(body["model"], body["temperature"]) for body in endpoint.bodies} == {("judge-1", 0)}
    questions = [body["messages"][0]["content"] for body in endpoint.bodies]
    assert sum("<instruction>\nHow was it?\n" in question for question in questions) == 2, "without marks of a template"
    assert "secret-of-the-judge" not in json.dumps(found)


FAILURES: list[tuple[tuple[int, bytes, dict[str, str]], str]] = [
    ((500, b"", {}), "unreachable"),
    ((401, completion("Rating: 2"), {}), "unreachable"),
    ((200, b"no json", {}), "unreachable"),
    ((200, b'{"choices": []}', {}), "unreachable"),
    ((200, completion(None), {}), "unreachable"),
    ((200, completion(2), {}), "unreachable"),
    ((200, completion("x" * (2 << 20)), {}), "unreachable"),
    ((200, completion("Rating: 2")[:-9], {"Content-Length": "9999"}), "unreachable"),
    ((200, completion("I cannot say."), {}), "unreadable"),
]


@pytest.mark.parametrize(("reply", "reason"), FAILURES)
async def test_a_judge_that_fails_is_counted_and_no_zero(
    start: StartServer, reply: tuple[int, bytes, dict[str, str]], reason: str
) -> None:
    with Endpoint(lambda _: reply).serving() as endpoint:
        found = await judged(await start(ScriptedEngine(length=3), **settings(endpoint.address)), by="endpoint")
    assert found["judgement"]["failures"] == {reason: RATINGS}
    assert all((point["overall"], point["failed"]) == (None, 2) for point in found["judgement"]["points"])
    assert f"{RATINGS} of {RATINGS} ratings" in found["warnings"][-1]


async def test_capabilities_tell_whom_an_evaluation_may_name(start: StartServer) -> None:
    for given, expected in (({}, ["self"]), (settings("http://127.0.0.1:1/v1"), ["self", "endpoint"])):
        answer = await (await start(**given)).client.get("/v1/capabilities")
        assert answer.json()["judges"] == expected
        assert "secret-of-the-judge" not in answer.text


async def test_a_redirect_is_not_followed(start: StartServer) -> None:
    with Endpoint(lambda _: (200, completion("Rating: 2"), {})).serving() as elsewhere:
        there = {"Location": f"{elsewhere.address}/chat/completions"}
        with Endpoint(lambda _: (307, b"", there)).serving() as endpoint:
            found = await judged(await start(ScriptedEngine(length=3), **settings(endpoint.address)), by="endpoint")
    assert found["judgement"]["failures"] == {"unreachable": RATINGS}
    assert elsewhere.bodies == []


async def test_an_unreachable_address_is_reported(start: StartServer) -> None:
    with Endpoint(lambda _: (200, b"", {})).serving() as endpoint:
        address = endpoint.address
    found = await judged(await start(ScriptedEngine(length=3), **settings(address)), by="endpoint")
    assert found["judgement"]["failures"] == {"unreachable": RATINGS}


async def test_an_answer_that_drips_ends_in_time(start: StartServer) -> None:
    """A byte now and then keeps every single read within the limit."""
    with dripping() as address:
        server = await start(ScriptedEngine(length=3), **settings(address), judge_seconds=0.5)
        found = await asyncio.wait_for(judged(server, by="endpoint"), 30)
    assert found["judgement"]["failures"] == {"unreachable": RATINGS}


@contextmanager
def dripping() -> Iterator[str]:
    """An endpoint that sends a space ten times a second until nobody listens."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                for _ in range(600):
                    self.wfile.write(b" ")
                    time.sleep(0.1)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join(30)
        server.server_close()


async def test_missing_ratings_are_reported_and_not_stored(start: StartServer) -> None:
    with Endpoint(lambda _: (500, b"", {})).serving() as endpoint:
        server = await start(ScriptedEngine(length=3), **settings(endpoint.address))
        await server.register("mood", description="a good mood")
        body = {**DOSE, "judge": {"by": "endpoint"}, "save": True}
        answer = await server.client.post("/v1/evaluations?wait=true", json=body)
    assert any("ratings" in warning for warning in answer.json()["warnings"])
    card = (await server.client.get("/v1/vectors/mood")).json()["quality"]
    assert not any("ratings" in warning for warning in card["warnings"])


async def test_the_loaded_model_may_judge_and_its_failures_are_counted(start: StartServer) -> None:
    found = await judged(await start(ScriptedEngine(length=3)), by="self", concept="joy")
    assert (found["judgement"]["by"], found["judgement"]["concept"]) == ("self", "joy")
    assert found["judgement"]["failures"] == {"unreadable": RATINGS}, "the scripted model knows no numbers"


@pytest.mark.parametrize(
    "judge",
    [
        {"by": "endpoint"},
        {"by": "http://127.0.0.1:1/v1"},
        {"by": "endpoint", "base_url": "http://127.0.0.1:1/v1"},
        {"by": "self", "concept": ""},
        {},
        "self",
    ],
)
async def test_no_caller_names_an_address_and_no_endpoint_is_asked_that_is_not_there(
    server: Server, judge: Any
) -> None:
    await server.register("mood")
    answer = await server.client.post("/v1/evaluations", json={**DOSE, "judge": judge})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"].partition(".")[0]) == (400, "judge")
    assert (await server.client.get("/v1/jobs")).json()["data"] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"judge_base_url": "http://host/v1"},
        {"judge_model": "m"},
        {"judge_base_url": "file:///etc/passwd", "judge_model": "m"},
        {"judge_base_url": "http://", "judge_model": "m"},
        {"judge_base_url": "http://me:secret@host/v1", "judge_model": "m"},
        {"judge_base_url": "http://host/v1?x=1", "judge_model": "m"},
        {"judge_base_url": "host/v1", "judge_model": "m"},
        {"judge_base_url": "http://host:port/v1", "judge_model": "m"},
    ],
)
def test_an_address_that_cannot_be_is_refused_at_the_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(**wrong)
    assert "secret" not in str(refused.value)
    assert "secret" not in repr(Settings(**settings("http://host:1/v1")))
