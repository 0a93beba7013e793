"""Texts are read for the key that asks, so that the engine can take those of several keys in turns."""

from collections.abc import Sequence
from typing import Any

import pytest

from steering.engine.api import Capture, CapturePrompt, CaptureSpec
from tests.app.conftest import StartServer
from tests.app.policy.test_keys import ADMIN, BEARER, bearer, created
from tests.fakes import ScriptedEngine

PAIRS = [{"positive": f"good day {i}", "negative": f"bad day {i}"} for i in range(12)]


class ClientsEngine(ScriptedEngine):
    """A scripted engine that keeps for whom it read texts."""

    def __init__(self) -> None:
        super().__init__()
        self.clients = set[str]()

    async def capture(self, prompts: Sequence[CapturePrompt], spec: CaptureSpec, **options: Any) -> tuple[Capture, ...]:
        """See Engine.capture."""
        self.clients.add(spec.client)
        return await super().capture(prompts, spec, **options)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/activations", {"texts": ["a good day"], "layers": [2]}),
        ("/v1/explain", {"texts": ["a good day"], "vectors": ["mood"]}),
        ("/v1/score", {"items": [{"prompt": "a", "choices": [" good", " bad"]}]}),
        ("/v1/vectors/extract?wait=true", {"name": "found", "pairs": PAIRS}),
        (
            "/v1/evaluations?wait=true",
            {"kind": "dose_response", "vector": "mood", "prompts": ["a", "b"], "strengths": [1]},
        ),
    ],
)
async def test_texts_are_read_for_the_key_that_asks(path: str, body: dict[str, Any], start: StartServer) -> None:
    engine = ClientsEngine()
    server = await start(engine, api_keys=ADMIN)
    server.client.headers.update(BEARER)
    await server.register("mood")
    key = await created(server, scopes=["read", "generate", "write"])
    engine.clients.clear()
    answer = await server.client.post(path, json=body, headers=bearer(key["key"]))
    assert answer.is_success, answer.text
    assert engine.clients == {key["id"]}
