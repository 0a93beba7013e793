"""Phases over HTTP: which scope steering without one has in chats, what switches it off, and calls that stay as unsteered."""

import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

from steering.engine.api import CapturePrompt, CaptureSpec, GenerationRequest, TokenEvent
from steering.model.prompt import ModelTokenizer
from steering.pairs import ChatMessage
from steering.spec import TokenScope
from tests.app.conftest import Server, StartServer
from tests.app.openai.test_tools import TOOLS, Speaker, tiny
from tests.app.policy.conftest import directions

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 3}
ANSWERS = TokenScope(phase=("answer",))
HELD = TokenScope(tokens="generated", phase=("answer",))
EVERYWHERE = TokenScope()


class Thinker(Speaker):
    """A model whose template thinks."""

    def __init__(self) -> None:
        super().__init__("hermes")
        self.family.chat_template += "{# <think></think> #}"
        marks = [AddedToken(one, special=False, normalized=False) for one in ("<think>", "</think>")]
        self.family.backend_tokenizer.add_tokens(marks)
        self.tokenizer = ModelTokenizer(self.family, vocab_size=280)
        self.says = "Fine."

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """See Speaker.generate. All readouts are 1."""
        async for event in super().generate(request):
            yield event if event.finish else replace(event, readout={one.name: 1.0 for one in request.readings})


async def asked(server: Server, path: str, **body: Any) -> list[TokenScope]:
    """Sends a request, and returns the scopes that the engine was given."""
    answer = await server.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return [one.spec.scope for one in server.scripted.requests[-1].plan.interventions]


async def test_steering_without_a_scope_acts_on_answers_where_there_are_other_phases(start: StartServer) -> None:
    thinking = await start(Thinker())
    await thinking.register("mood")
    plain: list[dict[str, Any]] = [{"vector": "mood"}]
    mixed = [*plain, {"vector": "mood", "hold": {"score": 0.1}}, {"vector": "mood", "scope": {"tokens": "all"}}]
    assert await asked(thinking, "/v1/generate", **ASK, steering=mixed) == [ANSWERS, HELD, EVERYWHERE]
    assert await asked(thinking, "/v1/generate", prompt="Hello", steering=plain) == [EVERYWHERE]
    assert await asked(thinking, "/v1/compare", **ASK, steering=plain, baseline="base") == [ANSWERS]
    mandatory: dict[str, Any] = {"mandatory": [{"vector": "mood"}]}
    assert (await thinking.client.put("/v1/policy", json=mandatory)).status_code == 200
    assert await asked(thinking, "/v1/generate", **ASK, steering=plain) == [ANSWERS, EVERYWHERE]
    mandatory = {"mandatory": [{"vector": "mood", "scope": {"phase": ["answer"]}}]}
    assert (await thinking.client.put("/v1/policy", json=mandatory)).status_code == 200
    assert await asked(thinking, "/v1/generate", **ASK, steering=[]) == [TokenScope(phase=("answer", "json"))]
    assert (await thinking.client.put("/v1/policy", json={})).status_code == 200
    profile = {"interventions": plain}
    assert (await thinking.client.put("/v1/profiles/glad", json=profile)).status_code in (200, 201)
    assert await asked(thinking, "/v1/chat/completions", **ASK, model="tiny@glad") == [ANSWERS]
    assert (await thinking.client.put("/v1/steering", json=profile)).status_code == 200
    assert await asked(thinking, "/v1/chat/completions", **ASK, model="tiny") == [ANSWERS]
    assert await asked(thinking, "/v1/generate", prompt="Hello") == [EVERYWHERE]
    written = {"interventions": [{"vector": "mood", "scope": {"tokens": "all"}}]}
    assert (await thinking.client.put("/v1/steering", json=written)).status_code == 200
    assert await asked(thinking, "/v1/generate", **ASK) == [EVERYWHERE], "the plan is not that of an absent scope"


async def test_chats_with_tools_have_other_phases_and_the_operator_decides(start: StartServer) -> None:
    for answers_only, expected in ((True, ANSWERS), (False, EVERYWHERE)):
        speaker = Speaker("hermes")
        speaker.says = "Fine."
        server = await start(speaker, answers_only=answers_only)
        await server.register("mood")
        steering = [{"vector": "mood"}]
        assert await asked(server, "/v1/chat/completions", **TOOLS, steering=steering) == [expected]
        assert await asked(server, "/v1/chat/completions", **ASK, model="tiny", steering=steering) == [EVERYWHERE]


async def test_a_call_is_that_of_the_unsteered_model_and_is_replayed(start: StartServer) -> None:
    """The family's calls have no marker: a replay of token ids knows from its record that tools were offered."""
    engine = tiny("llama3_json")
    server = await start(engine)
    made = {"name": "mood", "directions": directions(engine.info.d_model, 1)}
    assert (await server.client.post("/v1/vectors", json=made)).status_code == 201
    ask = {**TOOLS, "max_tokens": 400, "temperature": 1.0, "tool_choice": "required", "parallel_tool_calls": False}

    async def called(scope: dict[str, Any] | None, strength: float = 6.0) -> dict[str, Any]:
        item = {"vector": "mood", "layers": "all", "strength": strength} | ({} if scope is None else {"scope": scope})
        answer = await server.client.post("/v1/chat/completions", json={**ask, "steering": [item]})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        (call,) = found["choices"][0]["message"]["tool_calls"]
        found["call"] = call["function"]
        return found

    plain, steered, other = await called(None, 0.0), await called(None), await called({"phase": ["tool"]})
    assert steered["call"] == plain["call"] != other["call"]
    (applied,) = steered["steering"]["applied"]
    assert applied["scope"] == {"tokens": "all", "phase": ["answer"]}
    assert (applied["tokens"], applied["fired"]) == (0, False)
    record = other["steering"]["record"]
    assert record["tools"] is True
    again = await server.client.post("/v1/replay", json=record)
    assert again.status_code == 200, again.text
    assert again.json()["steering"]["applied"][0]["tokens"] == other["steering"]["applied"][0]["tokens"] > 0
    assert other["call"]["name"] in again.json()["choices"][0]["text"]


async def test_listed_tokens_have_their_phase_and_monitors_are_limited_to_some(start: StartServer) -> None:
    thinker = Thinker()
    thinker.says = "<think>no</think>\nYes"
    server = await start(thinker)
    await server.register("mood")
    expected = ["thinking"] * 5 + ["answer"] * 3  # the markers are tokens
    body = {**ASK, "max_tokens": 40, "logprobs": True}
    plain = await server.client.post("/v1/generate", json=body)
    assert [token["phase"] for token in plain.json()["choices"][0]["tokens"]] == expected
    events = (await server.client.post("/v1/generate", json={**body, "stream": True})).text.split(
        "event: token\ndata: "
    )
    assert [json.loads(event.partition("\n")[0])["phase"] for event in events[1:]] == expected
    arms = {**body, "steering": [{"vector": "mood"}], "baseline": "base"}
    compared = (await server.client.post("/v1/compare", json=arms)).json()["arms"]
    assert [[token["phase"] for token in arm["choices"][0]["tokens"]] for arm in compared] == [expected] * 2

    watch = {"name": "watch", "vector": "mood", "above": 0.0, "phase": ["answer"]}
    for fields, status in ((watch, 200), ({**watch, "at": "prompt"}, 400), ({**watch, "phase": ["all"]}, 400)):
        answer = await server.client.put("/v1/policy", json={"monitors": [fields]})
        assert answer.status_code == status, answer.text
    (known,) = (await server.client.get("/v1/monitors")).json()["data"]
    assert known["phase"] == ["answer"]


async def test_a_readout_and_an_explanation_can_be_limited_to_phases(start: StartServer) -> None:
    thinker = Thinker()
    server = await start(thinker)
    await server.register("mood")
    question = {"role": "user", "content": "Well?"}
    talk = {"messages": [question, {"role": "assistant", "content": "<think>no</think>\nYes"}]}
    ids = thinker.tokenizer.encode(
        (ChatMessage("user", "Well?"), ChatMessage("assistant", talk["messages"][1]["content"]))
    )
    asked = {"vectors": ["mood"], "layers": [1], **talk}
    whole = (await server.client.post("/v1/readout", json=asked)).json()["texts"][0]
    scores, start_of = whole["readout"]["mood"]["1"]["scores"], ids.index(thinker.tokenizer.encode("<think>")[-1])
    assert whole["phases"] is None
    for phase, positions in (
        ("thinking", range(start_of, start_of + 5)),
        ("answer", range(start_of + 5, start_of + 8)),
    ):
        answer = await server.client.post("/v1/readout", json={**asked, "phase": [phase]})
        assert answer.status_code == 200, answer.text
        (found,) = answer.json()["texts"]
        assert [at for at, one in enumerate(found["phases"]) if one == phase] == list(positions)
        read = found["readout"]["mood"]["1"]
        assert read["mean"] == pytest.approx(fmean(scores[at] for at in positions), abs=1e-5)
        assert (read["last"], read["max"]) == (scores[positions[-1]], max(scores[at] for at in positions))
        asked_of = {**talk, "phase": [phase], "threshold": 0.0, "position": "max"}
        explained = await server.client.post("/v1/explain", json=asked_of)
        if phase == "thinking":
            error = explained.json()["error"]
            assert (explained.status_code, error["param"]) == (400, "phase"), "neutral text has none"
            assert "give 'answer' among the phases" in error["message"]
            continue
        assert explained.status_code == 200, explained.text
        (text,) = explained.json()["texts"]
        assert text["tokens"] == len(positions)
        assert {token["index"] for concept in text["concepts"] for token in concept["tokens"]} <= set(positions)
    for body, says in (
        ({"texts": ["plain"], "phase": ["answer"]}, "text 0 is plain"),
        ({"messages": [question], "phase": ["answer"]}, "ends with an answer to another message"),
        ({**talk, "phase": ["tool"]}, "text 0 has no token in the phases tool"),
    ):
        refused = await server.client.post("/v1/readout", json={"vectors": ["mood"], **body})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "phase"), refused.text
        assert says in refused.json()["error"]["message"]


async def test_a_vector_is_extracted_from_thinking_or_from_answers(start: StartServer) -> None:
    thinker = Thinker()
    server = await start(thinker)
    texts = [
        [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"<think>{a}</think>\n{b}{n}"}]
        for n in range(6)
        for a, b in (("no", "Yes"), ("maybe", "Well"))
    ]
    body = {"pairs": [{"positive": p, "negative": n} for p, n in zip(texts[::2], texts[1::2], strict=True)]}
    for phase in ("thinking", "answer"):
        asked = {**body, "name": phase, "phase": [phase], "holdout": 0, "layers": [1]}
        answer = await server.client.post("/v1/vectors/extract?wait=true", json=asked)
        vector = answer.json()
        assert vector["provenance"]["phase"] == [phase]
        found = torch.tensor((await server.client.get(f"/v1/vectors/{phase}/directions")).json()["1"])
        means = []
        for text in texts:
            messages = tuple(ChatMessage(one["role"], one["content"]) for one in text)  # type: ignore[arg-type]
            at = [i for i, one in enumerate(thinker.tokenizer.conversation_phases(messages)) if one == phase]
            (capture,) = await thinker.capture([CapturePrompt(messages)], CaptureSpec((1,), "all"))
            means.append(capture.activations[0, at].mean(dim=0))
        expected = (torch.stack(means[::2]) - torch.stack(means[1::2])).mean(dim=0)
        assert torch.allclose(found, expected / expected.norm(), atol=1e-4)
    for fields, says in (
        ({"position": "mean"}, "takes no 'position'"),
        ({"method": "trained"}, "no method 'trained'"),
        ({"phase": ["tool"]}, "text 0 has no token in the phases tool"),
    ):
        refused = await server.client.post(
            "/v1/vectors/extract?wait=true", json={**body, "name": "x", "phase": ["answer"], **fields}
        )
        assert says in refused.text


async def test_flags_are_limited_to_phases_and_refused_where_there_are_none(start: StartServer) -> None:
    thinker = Thinker()
    thinker.says = "<think>no</think>\nYes"
    server = await start(thinker)
    await server.register("mood")
    flag = [{"vector": "mood", "above": 0.5, **phase} for phase in ({}, {"phase": ["thinking"]}, {"phase": ["answer"]})]
    body = {**ASK, "max_tokens": 40, "flag": flag}
    choice = (await server.client.post("/v1/generate", json=body)).json()["choices"][0]
    assert [one["tokens"] for one in choice["flags"]] == [list(range(8)), list(range(5)), list(range(5, 8))]
    assert choice["flags"][1]["phase"] == ["thinking"]
    events = (await server.client.post("/v1/generate", json={**body, "stream": True})).text.split(
        "event: token\ndata: "
    )
    assert [json.loads(one.partition("\n")[0])["flags"] for one in events[1:]] == [[0, 1]] * 5 + [[0, 2]] * 3
    refused = await server.client.post("/v1/generate", json={**ASK, "flag": [{**flag[0], "phase": ["tool"]}]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "flag")
    assert "tokens of this request can be in answer, prompt, thinking" in refused.text


async def test_stored_steering_of_other_phases_warns_and_steering_of_the_request_is_refused(start: StartServer) -> None:
    server = await start(Thinker())
    await server.register("mood")
    interventions = [{"vector": "mood", "scope": {"phase": ["tool"]}}]
    for put in ("/v1/steering", "/v1/profiles/calls"):
        stored = await server.client.put(put, json={"interventions": interventions})
        assert stored.status_code in (200, 201), stored.text
    for fields in ({}, {"steering": {"profile": "calls"}}):
        answer = await server.client.post("/v1/generate", json={**ASK, **fields})
        assert answer.status_code == 200, answer.text
        says = "scope.phase tool does not act: tokens of this request can be in answer, prompt, thinking"
        assert says in answer.json()["steering"]["warnings"]
        again = await server.client.post("/v1/replay", json=answer.json()["steering"]["record"])
        assert says in again.json()["steering"]["warnings"]
    for own in (interventions, {"profile": "calls", "interventions": interventions}):
        refused = await server.client.post("/v1/generate", json={**ASK, "steering": own})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "scope"), refused.text


async def test_rules_follow_the_offered_tools_and_the_record(start: StartServer) -> None:
    server = await start(Thinker())
    await server.register("mood")
    thought = {"role": "assistant", "content": "Yes", "reasoning_content": "Hm"}
    open_one = {"role": "assistant", "content": "<think>So"}
    talk: dict[str, Any] = {
        "model": "tiny",
        "max_tokens": 3,
        "steering": [{"vector": "mood", "scope": {"phase": ["answer"]}}],
    }
    ask, continues = ASK["messages"], {"continue_final_message": True, "add_generation_prompt": False}
    for fields, tools, thinking in (
        ({"messages": [*ask, thought, *ask]}, None, "possible"),
        ({"messages": ask, "tools": TOOLS["tools"]}, True, "possible"),
        ({"messages": ask, "tools": TOOLS["tools"], "tool_choice": "none"}, None, "possible"),
        ({"messages": [*ask, open_one], **continues}, None, "begun"),
        ({"messages": [*ask, {**open_one, "content": "So"}], **continues}, None, "none"),
    ):
        answer = await server.client.post("/v1/chat/completions", json={**talk, **fields})
        assert answer.status_code == 200, answer.text
        record, rules = answer.json()["steering"]["record"], server.scripted.requests[-1].plan.phases
        assert (record.get("tools"), record.get("thinking")) == (tools, thinking), fields
        assert rules is not None
        assert (rules.possible >= {"tool"}, rules.thinks) == (bool(tools), thinking in ("begun", "possible"))
        assert (await server.client.post("/v1/replay", json=record)).status_code == 200
        assert server.scripted.requests[-1].plan.phases == rules
