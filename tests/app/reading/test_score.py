"""Scores over HTTP equal what transformers computes directly, plain and steered; the greedy choice is the one that is generated."""

import re
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from steering.engine.api import CapturePrompt, Prompt
from steering.engine.transformers.engine import TransformersEngine
from steering.model.layout import find_layout
from steering.model.loading import opened
from steering.pairs import ChatMessage
from steering.workflows import logprobs as workflow
from tests.app.conftest import Server, StartServer
from tests.fakes import ScriptedEngine
from tests.families import FAMILIES
from tests.scripted_model import ScriptedTokenizer

DIRECTION = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(3)), dim=0)
STEERING = [{"vector": "any", "strength": 6.0, "unit": "raw", "scope": {"tokens": "generated"}}]


async def scored(server: Server, **body: Any) -> dict[str, Any]:
    answer = await server.client.post("/v1/score", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def direct(model: PreTrainedModel, ids: list[int], start: int, steered: bool) -> tuple[list[float], list[bool]]:
    """Log-probabilities of ids[start:], and whether each is the argmax. steered: adds to every position from start - 1 on after block 1."""

    def add(_module: Any, _inputs: Any, output: Any) -> Any:
        residual = (output[0] if isinstance(output, tuple) else output).clone()
        residual[:, start - 1 :] += 6.0 * DIRECTION
        return (residual, *output[1:]) if isinstance(output, tuple) else residual

    handles = [find_layout(model).blocks[1].register_forward_hook(add)] if steered else []
    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, start - 1 : -1]
    for handle in handles:
        handle.remove()
    following = torch.tensor(ids[start:])
    logprobs = torch.log_softmax(logits, -1).gather(1, following[:, None])[:, 0]
    return logprobs.tolist(), (logits.argmax(-1) == following).tolist()


@pytest.fixture(params=["llama", "gpt2", "gemma3"])
async def served(
    start: StartServer, hf_byte_tokenizer: PreTrainedTokenizerFast, request: pytest.FixtureRequest
) -> tuple[Server, PreTrainedModel]:
    """A server over a tiny model with a vector, and the same model."""
    engine = TransformersEngine(opened(FAMILIES[request.param](), hf_byte_tokenizer, name="tiny"))
    server = await start(engine)
    await server.client.post("/v1/vectors", json={"name": "any", "directions": {"1": DIRECTION.tolist()}})
    return server, FAMILIES[request.param]()


@pytest.mark.parametrize("steering", [[], STEERING])
async def test_scores_equal_a_direct_computation(
    served: tuple[Server, PreTrainedModel], steering: list[dict[str, Any]]
) -> None:
    server, model = served
    prompt, texts = "The trip was", [" good", " terrible, by far", "x"]
    found = await scored(server, prompt=prompt, continuations=texts, steering=steering)
    before = list(server.engine.tokenizer.encode(prompt))
    assert found["prompt_tokens"] == len(before)
    assert (found["steering"]["vectors"] == {}) == (not steering)
    assert found["items"] is None
    for text, one in zip(texts, found["scores"], strict=True):
        assert one["text"] == text
        logprobs, greedy = direct(model, before + one["token_ids"], len(before), bool(steering))
        assert one["logprobs"] == pytest.approx(logprobs, abs=1e-4)
        assert (one["greedy"], one["all_greedy"]) == (greedy, all(greedy))
        assert one["sum"] == pytest.approx(sum(logprobs), abs=1e-3)


async def test_texts_are_scored_from_their_second_token(served: tuple[Server, PreTrainedModel]) -> None:
    server, model = served
    texts = ["Once upon a time", "H"]
    found = await scored(server, texts=texts)
    for text, one in zip(texts, found["scores"], strict=True):
        ids = list(server.engine.tokenizer.encode(text))
        assert one["token_ids"] == ids
        logprobs, greedy = direct(model, ids, 1, steered=False)
        assert (one["logprobs"][0], one["greedy"][0]) == (None, None)
        assert one["logprobs"][1:] == pytest.approx(logprobs, abs=1e-4)
        assert one["greedy"][1:] == greedy
    (alone,) = await workflow.score(server.engine, [CapturePrompt((72,))])
    assert (alone.logprobs, alone.sum, alone.all_greedy) == ([None], 0.0, None), "nothing is scored of a single token"


async def test_a_conversation_and_token_ids_are_prompts_too(served: tuple[Server, PreTrainedModel]) -> None:
    server, model = served
    chat = [{"role": "user", "content": "Hello"}]
    found = await scored(server, messages=chat, continuations=["Good"])
    before = list(server.engine.tokenizer.encode((ChatMessage("user", "Hello"),)))
    (one,) = found["scores"]
    assert one["token_ids"] == list(b"Good")
    assert one["logprobs"] == pytest.approx(direct(model, before + one["token_ids"], len(before), False)[0], abs=1e-4)
    again = await scored(server, prompt=before, continuations=["Good"])
    assert again["scores"] == found["scores"]


@pytest.mark.parametrize("steering", [[], STEERING])
async def test_items_are_scored_as_alone(
    served: tuple[Server, PreTrainedModel], steering: list[dict[str, Any]]
) -> None:
    server, _ = served
    items: list[dict[str, Any]] = [
        {"prompt": "The trip was", "choices": [" good", " bad", "x"]},
        {"messages": [{"role": "user", "content": "Hello"}], "choices": ["Good"]},
        {"prompt": [84, 104, 101], "choices": [" end", " beginning of it"]},
    ]
    found = await scored(server, items=items, steering=steering)
    assert (found["scores"], found["prompt_tokens"]) == (None, None)
    for item, one in zip(items, found["items"], strict=True):
        texts = item.pop("choices")
        alone = await scored(server, **item, continuations=texts, steering=steering)
        assert one["prompt_tokens"] == alone["prompt_tokens"]
        assert [score["text"] for score in one["scores"]] == texts
        for score, expected in zip(one["scores"], alone["scores"], strict=True):
            assert score["token_ids"] == expected["token_ids"]
            assert score["logprobs"] == pytest.approx(expected["logprobs"], abs=1e-4)


class PairTokenizer(ScriptedTokenizer):
    """Bytes, but "ab" is the one token 256, and every text begins with token 257."""

    def encode(self, prompt: Prompt, most: int | None = None) -> tuple[int, ...]:
        del most
        assert isinstance(prompt, str)
        parts = re.findall(rb"ab|.", prompt.encode(), re.DOTALL)
        ids = [256 if part == b"ab" else part[0] for part in parts]
        return (257, *ids)


@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [
        ("xy", "zab", (ord("z"), 256)),
        ("xa", "bz", (ord("b"), ord("z"))),  # joined it would be x, ab, z: the prompt's own tokens are kept
        ("x", "ab", (256,)),
    ],
)
def test_the_tokens_of_the_prompt_are_kept(prompt: str, text: str, expected: tuple[int, ...]) -> None:
    assert workflow.continuation_ids(PairTokenizer(), prompt, text) == expected
    assert workflow.continuation_ids(PairTokenizer(), (1, 2), text) == PairTokenizer().encode(text)[1:]


def test_rows_are_read_in_parts_whose_logits_fit() -> None:
    def lengths(first: int) -> list[list[int]]:
        rows = [CapturePrompt((1,) * length, first=first) for length in (3, 4, 40, 2, 2, 9)]
        found = workflow.parts(rows, workflow.LOGITS_BOUND // 10)
        assert [row for part in found for row in part] == rows
        return [[len(row.prompt) for row in part] for part in found]

    assert lengths(0) == [[3, 4], [40], [2, 2], [9]]
    assert lengths(2) == [[3, 4], [40], [2, 2, 9]]


SHORT = {"prompt": "a", "choices": ["b"]}
USER = {"role": "user", "content": "a"}
CHAT = {"messages": [{"role": "user", "content": "a" * 5000}]}
REFUSED: list[tuple[dict[str, Any], str, str | None]] = [
    ({}, "invalid_request", None),
    ({"prompt": "a"}, "invalid_request", None),
    ({"prompt": "a", "messages": [{"role": "user", "content": "a"}], "continuations": ["b"]}, "invalid_request", None),
    ({"texts": ["a"], "continuations": ["b"]}, "invalid_request", None),
    ({"prompt": "a", "continuations": []}, "invalid_request", "continuations"),
    ({"prompt": "a", "continuations": [""]}, "invalid_request", "continuations.0"),
    ({"prompt": "a", "continuations": ["c", "b" * 5000]}, "context_length_exceeded", "continuations.1"),
    ({"prompt": "a" * 5000, "continuations": ["b"]}, "context_length_exceeded", "prompt"),
    ({"texts": ["b" * 5000]}, "context_length_exceeded", "texts"),
    ({"texts": ["a" * 501]}, "limit_exceeded", "texts"),
    ({"prompt": "a" * 100, "continuations": ["b"] * 5}, "limit_exceeded", "continuations"),
    ({"prompt": "a", "continuations": ["b"] * 6}, "limit_exceeded", "continuations"),
    ({"texts": ["a"], "steering": [{"vector": "nothing"}]}, "vector_not_found", "vector"),
    ({"items": []}, "invalid_request", "items"),
    ({"items": [{"prompt": "a"}]}, "invalid_request", "items.0.choices"),
    ({"items": [{"choices": ["a"]}]}, "invalid_request", "items.0"),
    ({"items": [{"prompt": "a", "choices": ["b"]}], "texts": ["a"]}, "invalid_request", None),
    ({"items": [{"prompt": "a", "choices": ["b"]}], "prompt": "a"}, "invalid_request", None),
    ({"items": [{"prompt": "a", "choices": ["b", ""]}]}, "invalid_request", "items.0.choices.1"),
    ({"items": [{"prompt": "a" * 200, "choices": ["b"] * 2}] * 2}, "limit_exceeded", "items.1.choices"),
    ({"items": [{"prompt": "a", "choices": ["b"] * 6}]}, "limit_exceeded", "items"),
    ({"items": [{"prompt": "a", "choices": ["b", "c" * 5000]}]}, "context_length_exceeded", "items.0.choices.1"),
    ({"items": [SHORT, {"prompt": "a" * 5000, "choices": ["b"]}]}, "context_length_exceeded", "items.1.prompt"),
    ({"items": [SHORT, {**CHAT, "choices": ["b"]}]}, "context_length_exceeded", "items.1.messages"),
    ({"items": [SHORT, {"prompt": [10**6], "choices": ["b"]}]}, "invalid_request", "items.1.prompt"),
    ({"items": [SHORT, {"messages": [USER] * 4, "choices": ["b"]}]}, "limit_exceeded", "items.1.messages"),
]


@pytest.mark.parametrize(("body", "code", "param"), REFUSED)
async def test_what_cannot_be_scored_is_refused(
    start: StartServer, body: dict[str, Any], code: str, param: str | None
) -> None:
    server = await start(max_scored_tokens=500, max_texts=5, max_messages=3)
    answer = await server.client.post("/v1/score", json=body)
    error = answer.json()["error"]
    assert (answer.status_code in (400, 404), error["code"], error["param"]) == (True, code, param)
    assert server.scripted.captured == []


class CountingTokenizer(ScriptedTokenizer):
    """Lists what it encoded."""

    def __init__(self) -> None:
        self.encoded: list[Prompt] = []

    def encode(self, prompt: Prompt, most: int | None = None) -> tuple[int, ...]:
        self.encoded.append(prompt)
        return super().encode(prompt, most)


async def test_a_prompt_is_tokenized_once_and_too_many_tokens_are_refused_after_it(start: StartServer) -> None:
    engine, tokenizer = ScriptedEngine(), CountingTokenizer()
    engine.tokenizer = tokenizer
    server = await start(engine, max_scored_tokens=500)
    prompt = "a" * 100
    body = {"prompt": prompt, "continuations": ["b", "c", "d", "e", "f", "g"]}
    assert (await server.client.post("/v1/score", json=body)).status_code == 400
    assert tokenizer.encoded == [prompt]
    tokenizer.encoded.clear()
    await scored(server, prompt=prompt, continuations=["b", "c"])
    assert tokenizer.encoded.count(prompt) == 1
