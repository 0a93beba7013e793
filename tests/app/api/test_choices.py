"""The evaluation `choices`: planted preferences for choices, letters and steering come out, each where it belongs."""

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from app.cli.main import main
from steering.client import Client
from steering.engine.api import Capture, CapturePrompt, CaptureSpec, Prompt
from steering.lab import choices
from steering.pairs import ChatMessage
from steering.schemas.choices import ChoiceItem
from tests.app.conftest import D_MODEL, Server, StartServer
from tests.app.policy.test_keys import ADMIN, BEARER, bearer, created
from tests.app.running import running
from tests.fakes import ScriptedEngine
from tests.scripted_model import SCRIPTED_MODEL, ScriptedTokenizer

PREFERENCE, BIAS, MOVE = 1.0, 2.0, 2.0
"""Logits of a letter: of a choice with "good", of the letter A, and of a choice with "good" per unit of strength."""
ITEMS: list[dict[str, Any]] = [
    {"question": "Which one?", "choices": ["a good day", "a bad day"], "answer": 0},
    {"question": "Which one?", "choices": ["a bad night", "a good night"], "answer": 1},
    {"question": "Which is worse?", "choices": ["a good sea", "a bad sea"], "answer": 1},
]
STEERING = [{"vector": "sentiment", "strength": 1.0}]


class Chooser(ScriptedEngine):
    """Prefers good choices and the letter A; one other token has the logit 0."""

    def _read(self, ids: tuple[int, ...], prompt: CapturePrompt, spec: CaptureSpec) -> Capture:
        read = super()._read(ids, prompt, spec)
        if read.logits is None:
            return read
        strength = sum(one.spec.strength for one in prompt.plan.interventions)
        logits = torch.full_like(read.logits, -1e4)
        logits[:, ord("?")] = 0.0
        for letter, choice in re.findall(r" \((\w)\) (.*)\n", bytes(ids).decode()):
            logits[:, ord(letter)] = (PREFERENCE + MOVE * strength) * ("good" in choice) + BIAS * (letter == "A")
        return Capture(read.token_ids, read.activations, logits)


class Salted(Chooser):
    """Notes with which salts it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.salts: list[str | None] = []

    async def capture(
        self,
        prompts: Sequence[CapturePrompt],
        spec: CaptureSpec,
        *,
        progress: Callable[[int, int], None] | None = None,
        priority: int = 1,
    ) -> tuple[Capture, ...]:
        self.salts.append(spec.cache_salt)
        return await super().capture(prompts, spec, progress=progress, priority=priority)


class Waiting(Chooser):
    """Reads nothing before its gate opens."""

    def __init__(self, gate: asyncio.Event) -> None:
        super().__init__()
        self.reading = gate

    async def capture(
        self,
        prompts: Sequence[CapturePrompt],
        spec: CaptureSpec,
        *,
        progress: Callable[[int, int], None] | None = None,
        priority: int = 1,
    ) -> tuple[Capture, ...]:
        await self.reading.wait()
        return await super().capture(prompts, spec, progress=progress, priority=priority)


async def measured(server: Server, **body: Any) -> dict[str, Any]:
    answer = await server.client.post("/v1/evaluations?wait=true", json={"kind": "choices", "items": ITEMS, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def mass(*logits: float) -> float:
    return sum(map(math.exp, logits)) / (1.0 + sum(map(math.exp, logits)))


async def test_planted_preferences_come_out(start: StartServer) -> None:
    server = await start(Chooser())
    await server.register()
    found = await measured(server, steering=STEERING)
    unsteered, steered = ([one[name] for one in found["items"]] for name in ("unsteered", "steered"))
    # A outweighs the preference, so each rotation picks A; the bias for A cancels in the log odds
    assert [one["accuracy"] for one in unsteered] == [0.5, 0.5, 0.5]
    assert [one["consistency"] for one in unsteered] == [0.0, 0.0, 0.0]
    assert [one["log_odds"] for one in unsteered] == pytest.approx([1.0, 1.0, -1.0], abs=1e-5)
    expected = (mass(PREFERENCE + BIAS, 0.0) + mass(BIAS, PREFERENCE)) / 2
    assert [one["mass"] for one in unsteered] == pytest.approx([expected] * 3, abs=1e-5)
    assert found["unsteered"]["letters"] == {"A": 1.0, "B": 0.0}
    # with steering the good choice is picked in both rotations
    assert [one["accuracy"] for one in steered] == [1.0, 1.0, 0.0]
    assert [one["consistency"] for one in steered] == [1.0, 1.0, 1.0]
    assert [one["log_odds"] for one in steered] == pytest.approx([3.0, 3.0, -3.0], abs=1e-5)
    assert found["steered"]["letters"] == {"A": 0.5, "B": 0.5}
    assert found["change"]["log_odds"]["mean"] == pytest.approx(2 / 3, abs=1e-5)
    change = found["change"]["accuracy"]
    assert change["mean"] == pytest.approx(1 / 6)
    assert change["interval"][0] < change["mean"] < change["interval"][1]
    consistency = found["steered"]["consistency"]
    assert consistency["mean"] == 1.0
    assert consistency["interval"] == pytest.approx([0.4385, 1.0], abs=1e-4), "three items do not show that all agree"
    assert [one["vector"] for one in found["interventions"]] == ["sentiment@1"]


async def test_without_steering_there_is_nothing_to_compare(start: StartServer) -> None:
    server = await start(Chooser())
    found = await measured(server, steering=[], items=ITEMS[:1])
    assert (found["steered"], found["change"], found["fingerprint"]) == (None, None, "")
    assert found["unsteered"]["log_odds"]["interval"] is None
    assert found["unsteered"]["accuracy"]["mean"] == 0.5


async def test_more_than_two_choices_and_a_model_without_a_template(start: StartServer) -> None:
    server = await start(Chooser(info=replace(SCRIPTED_MODEL, chat_template=False)))
    item = {"question": "Which?", "choices": ["bad", "worse", "good", "awful"], "answer": 2}
    found = await measured(server, steering=[], items=[item])
    (one,) = found["items"]
    first = PREFERENCE + BIAS - math.log(3.0)
    later = PREFERENCE - math.log(math.exp(BIAS) + 2.0)
    assert one["unsteered"]["log_odds"] == pytest.approx((first + 3 * later) / 4, abs=1e-5)
    assert (one["unsteered"]["accuracy"], one["unsteered"]["consistency"]) == (0.25, 0.0)
    assert found["unsteered"]["letters"] == {"A": 1.0, "B": 0.0, "C": 0.0, "D": 0.0}
    turned = {**item, "choices": ["good", "awful", "bad", "worse"], "answer": 0}
    again = await measured(server, steering=[], items=[turned])
    assert again["items"][0]["unsteered"] == pytest.approx(one["unsteered"]), (
        "the letter that was given counts for nothing"
    )


def test_every_choice_stands_once_under_every_letter() -> None:
    for count in (2, 3, 5):
        item = ChoiceItem(question="a", choices=("b",) * count, answer=0)
        for place in range(count):
            assert {order[place] for order in choices.rotations(item)} == set(range(count))
            assert {order.index(place) for order in choices.rotations(item)} == set(range(count))


async def test_each_rotation_is_one_prompt_and_all_of_them_count(start: StartServer) -> None:
    server = await start(Chooser(), api_keys=ADMIN)
    server.client.headers.update(BEARER)
    await server.register()
    item = {"question": "Which?", "choices": ["bad", "worse", "good"], "answer": 2}
    body = {"kind": "choices", "items": [item], "steering": STEERING}
    await measured(server, items=[item], steering=STEERING)
    prompts = server.scripted.captured
    assert len(prompts) == 3 * 2
    tokens = sum(map(len, prompts))
    for allowed, status in ((tokens - 1, 429), (tokens, 202)):
        key = await created(server, name=f"key-{allowed}", scopes=["write"], limits={"tokens_per_minute": allowed})
        answer = await server.client.post("/v1/evaluations", json=body, headers=bearer(key["key"]))
        assert answer.status_code == status, answer.text
        if status == 429:
            assert f"takes {tokens} tokens" in answer.json()["error"]["message"]


async def test_beginnings_are_shared_among_the_calls_of_one_key_alone(start: StartServer) -> None:
    engine = Salted()
    server = await start(engine, api_keys=ADMIN)
    server.client.headers.update(BEARER)
    for name in ("one", "other"):
        key = await created(server, name=name, scopes=["write"])
        for _ in range(2):
            body = {"kind": "choices", "items": ITEMS[:1], "steering": []}
            answer = await server.client.post("/v1/evaluations?wait=true", json=body, headers=bearer(key["key"]))
            assert answer.status_code == 200, answer.text
    first, again, other, other_again = engine.salts
    assert first == again != other == other_again
    assert None not in engine.salts


class CountingTokenizer(ScriptedTokenizer):
    """Counts how often it encodes each conversation."""

    def __init__(self) -> None:
        self.counts = Counter[Prompt]()

    def encode(self, prompt: Prompt, most: int | None = None) -> tuple[int, ...]:
        if isinstance(prompt[0], ChatMessage):
            self.counts[prompt] += 1
        return super().encode(prompt, most)


async def test_a_prompt_is_encoded_when_it_is_checked_and_when_it_is_read(start: StartServer) -> None:
    engine, tokenizer = Chooser(), CountingTokenizer()
    engine.tokenizer = tokenizer
    server = await start(engine)
    await server.register()
    await measured(server, steering=STEERING)
    assert list(tokenizer.counts.values()) == [2] * 6, "neither for each letter nor for each plan"


async def test_memory_is_reserved_until_the_job_ends(start: StartServer) -> None:
    gate = asyncio.Event()
    server = await start(Waiting(gate))
    job = (await server.client.post("/v1/evaluations", json={"kind": "choices", "items": ITEMS, "steering": []})).json()
    assert server.state.job_memory.reserved > 0
    gate.set()
    await server.client.get(f"/v1/jobs/{job['id']}/events")
    assert server.state.job_memory.reserved == 0


async def test_mandatory_steering_alone_is_nothing_to_compare(start: StartServer) -> None:
    server = await start(Chooser())
    await server.register()
    assert (await server.client.put("/v1/policy", json={"mandatory": STEERING})).status_code == 200
    bodies: list[dict[str, Any]] = [{"steering": []}, {}]
    for fields in bodies:
        found = await measured(server, **fields)
        assert (found["steered"], found["change"], found["interventions"]) == (None, None, [])
        assert [one["unsteered"]["accuracy"] for one in found["items"]] == [1.0, 1.0, 0.0]


async def test_roles_need_a_template(start: StartServer) -> None:
    server = await start(Chooser(info=replace(SCRIPTED_MODEL, chat_template=False)))
    await server.register()
    steering = [{**STEERING[0], "scope": {"roles": ["user"]}}]
    answer = await server.client.post("/v1/evaluations", json={"kind": "choices", "items": ITEMS, "steering": steering})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_request", "scope")


class OneTokenTokenizer(ScriptedTokenizer):
    """Writes every letter as the same token."""

    def encode(self, prompt: Prompt, most: int | None = None) -> tuple[int, ...]:
        return tuple(ord("?") if 65 <= token <= 90 else token for token in super().encode(prompt, most))


async def test_letters_that_are_the_same_token_are_refused(start: StartServer) -> None:
    engine = Chooser()
    engine.tokenizer = OneTokenTokenizer()
    server = await start(engine)
    answer = await server.client.post("/v1/evaluations", json={"kind": "choices", "items": ITEMS, "steering": []})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "items")


async def test_the_job_keeps_no_question(start: StartServer) -> None:
    server = await start(Chooser())
    body = {"kind": "choices", "items": ITEMS, "steering": []}
    job = (await server.client.post("/v1/evaluations", json=body)).json()
    assert job["kind"] == "choices"
    listed = (await server.client.get("/v1/jobs")).text
    assert "Which one?" not in listed


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"items": []}, "invalid_request", "items"),
        ({"items": [{**ITEMS[0], "answer": 2}]}, "invalid_request", "items.0"),
        ({"items": [{**ITEMS[0], "choices": ["one"]}]}, "invalid_request", "items.0.choices"),
        ({"items": [ITEMS[0], {**ITEMS[0], "question": "a" * 5000}]}, "context_length_exceeded", "items.1"),
        ({"items": [{**ITEMS[0], "question": "a" * 900}]}, "limit_exceeded", "items"),
        ({"items": [{**ITEMS[0], "choices": [str(i) for i in range(26)]}]}, "limit_exceeded", "items"),
        ({"items": ITEMS * 2}, "limit_exceeded", "items"),
        ({"steering": [{"vector": "nothing"}]}, "vector_not_found", "vector"),
    ],
)
async def test_what_cannot_be_measured_is_refused(
    start: StartServer, changes: dict[str, Any], code: str, param: str
) -> None:
    server = await start(Chooser(), max_texts=5, max_scored_tokens=15, max_evaluation_answers=25)
    body = {"kind": "choices", "items": ITEMS, "steering": [], **changes}
    answer = await server.client.post("/v1/evaluations", json=body)
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert server.scripted.captured == []


def test_the_command_prints_measures_and_letters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in ITEMS), encoding="utf-8")
    with running(Chooser()) as address, Client(address) as client:
        client.register_vector("sentiment", {"1": [1.0] * D_MODEL})
        with pytest.raises(SystemExit) as ended:
            main(["choices", str(file), "--steer", "sentiment=1", "--url", address])
        assert not ended.value.code
        found = client.choices(ITEMS, steering=STEERING)
    out = capsys.readouterr().out
    assert "3 questions" in out
    assert re.search(r"log_odds .*\+0\.333 .*\+1\.000 .*\+0\.667", out)
    assert re.search(r"picks A .*1\.000 .*0\.500", out)
    assert [row["steered_log_odds"] for row in found.rows()] == pytest.approx([3.0, 3.0, -3.0], abs=1e-5)
