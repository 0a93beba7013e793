"""Nothing that a caller sends holds the event loop or the interpreter: the longest pause of each is measured while the server works.

Pauses are counted in processor seconds of this process, so that other processes of the machine do not lengthen them.
"""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from steering.model.prompt import ModelTokenizer
from tests.app.conftest import Server, StartServer
from tests.byte_tokenizer import build_byte_tokenizer
from tests.fakes import ScriptedEngine
from tests.scripted_model import SCRIPTED_MODEL

BOUND, REFERENCE = 0.25, 0.04
"""Processor seconds of a pause where the work of `reference` takes so many; where it takes longer, a pause may too, in proportion. Where
nothing is bounded before it begins, most of these requests hold the loop or the interpreter for longer."""
TICK = 0.001


def reference() -> float:
    """Returns the processor seconds of some work of Python: more on a slow processor, or one whose other half is busy."""
    before = time.process_time()
    sum(number * number for number in range(1_000_000))
    return time.process_time() - before


class Pauses:
    """The longest times in which the event loop, and a thread that only ticks, did not run. bound: what they may be."""

    loop = interpreter = 0.0
    bound = BOUND

    async def watch_loop(self) -> None:
        """Ticks on the event loop until it is cancelled."""
        while True:
            before = time.process_time()
            await asyncio.sleep(TICK)
            self.loop = max(self.loop, time.process_time() - before)

    @contextmanager
    def watch_interpreter(self) -> Iterator[None]:
        """Ticks in a thread."""
        stopped = threading.Event()

        def tick() -> None:
            while not stopped.is_set():
                before = time.process_time()
                time.sleep(TICK)
                self.interpreter = max(self.interpreter, time.process_time() - before)

        thread = threading.Thread(target=tick)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()


async def sent(server: Server, path: str, content: bytes) -> tuple[int, Pauses]:
    """Sends a body; returns the status and the pauses meanwhile."""
    pauses, before = Pauses(), reference()
    watching = asyncio.create_task(pauses.watch_loop())
    try:
        with pauses.watch_interpreter():
            answer = await server.client.post(path, content=content, headers={"content-type": "application/json"})
    finally:
        watching.cancel()
    pauses.bound = BOUND * max(before, reference(), REFERENCE) / REFERENCE
    return answer.status_code, pauses


@pytest.fixture
async def with_real_tokenizer(start: StartServer) -> Server:
    """A server whose engine has the tokenizer of a model, and its context."""
    engine = ScriptedEngine()
    length = SCRIPTED_MODEL.context_length
    engine.tokenizer = ModelTokenizer(build_byte_tokenizer(), vocab_size=262, context_length=length)  # type: ignore[assignment]
    return await start(engine, max_scored_tokens=600_000)


REFUSED = json.dumps({"prompt": "the road " * 220_000}).encode()
CONVERSATION = json.dumps({"messages": [{"role": "user", "content": "the road <|end|>" * 120_000}]}).encode()


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/v1/generate", REFUSED),
        ("/v1/generate", CONVERSATION),
        ("/v1/logit-lens", REFUSED),
        ("/v1/score", json.dumps({"texts": ["the road " * 220_000]}).encode()),
        ("/v1/embeddings", json.dumps({"model": "scripted", "input": "the road " * 220_000}).encode()),
    ],
)
async def test_a_long_prompt_is_refused(with_real_tokenizer: Server, path: str, content: bytes) -> None:
    status, pauses = await sent(with_real_tokenizer, path, content)
    assert status == 400
    assert pauses.loop < pauses.bound
    assert pauses.interpreter < pauses.bound


async def test_a_long_text_is_tokenized(with_real_tokenizer: Server) -> None:
    content = json.dumps({"prompt": "the road " * 60_000, "texts": True}).encode()
    status, pauses = await sent(with_real_tokenizer, "/tokenize", content)
    assert status == 200
    assert pauses.loop < pauses.bound
    assert pauses.interpreter < pauses.bound


async def test_a_text_beyond_the_bound_of_tokenizing_is_refused(with_real_tokenizer: Server) -> None:
    answer = await with_real_tokenizer.client.post("/tokenize", json={"prompt": "the road " * 70_000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "limit_exceeded")
    assert "600000" in answer.json()["error"]["message"]


async def test_log_probabilities_of_prompts_are_returned(server: Server) -> None:
    body = {"model": "scripted", "prompt": ["a" * 3000] * 4, "max_tokens": 0, "echo": True, "logprobs": 20}
    status, pauses = await sent(server, "/v1/completions", json.dumps(body).encode())
    assert status == 200
    assert pauses.loop < pauses.bound
    assert pauses.interpreter < pauses.bound


@pytest.mark.parametrize(
    ("path", "content", "expected"),
    [
        ("/v1/latent-space", b'{"texts": [' + b"[]," * 3_000_000 + b"[]]}", 400),
        ("/v1/latent-space", b'{"texts": [' + b"{}," * 3_000_000 + b"{}]}", 400),
        ("/v1/vectors", b'{"name": "x", "directions": {"1": [' + b"0.123456789," * 400_000 + b"0]}}", 400),
        (
            "/v1/latent-space",
            json.dumps({"texts": [[{"role": "user", "content": "a"}]] * 90_000, "layers": [1]}).encode(),
            400,
        ),
    ],
)
async def test_a_large_body_is_parsed(server: Server, path: str, content: bytes, expected: int) -> None:
    status, pauses = await sent(server, path, content)
    assert status == expected
    assert pauses.loop < pauses.bound
    assert pauses.interpreter < pauses.bound
