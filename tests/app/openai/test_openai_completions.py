"""Text completions and embeddings by the unmodified openai package, checked against transformers."""

import base64
import struct
from typing import Any

import openai
import pytest
import torch
from openai import AsyncOpenAI
from transformers import AutoModelForCausalLM, PreTrainedModel

from app.api.completions import Offsets
from steering.engine import installed_engines
from tests.app.core.listening import Listening
from tests.contracts.engines import ContractEngines
from tests.narrowing import present


async def test_completions_take_texts_and_token_ids(client: AsyncOpenAI, model: str, listening: Listening) -> None:
    once, twice = (list(listening.engine.tokenizer.encode(text)) for text in ("Once", "Twice"))
    one = await client.completions.create(model=model, prompt="Once", max_tokens=3, seed=1)
    ids = await client.completions.create(model=model, prompt=once, max_tokens=3, seed=1)
    assert one.choices[0].text == ids.choices[0].text
    several = await client.completions.create(model=model, prompt=["Once", "Twice"], n=2, max_tokens=3, seed=1)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == one.choices[0].text
    assert several.usage is not None
    assert several.usage.prompt_tokens == len(once + twice)
    default = await client.completions.create(model=model, prompt="Once")
    assert default.usage is not None
    assert default.usage.completion_tokens <= 16
    texts = {0: "", 1: ""}
    async for chunk in await client.completions.create(
        model=model, prompt=["Once", "Twice"], max_tokens=3, seed=1, stream=True, logprobs=1
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts[0] == one.choices[0].text
    refused: list[dict[str, Any]] = [{"suffix": "x"}, {"best_of": 3}, {"prompt": ["a"] * 17}, {"max_tokens": 0}]
    for changes in refused:
        with pytest.raises(openai.BadRequestError):
            await client.completions.create(**{"model": model, "prompt": "a", **changes})


async def test_embeddings_in_both_encodings(client: AsyncOpenAI, model: str, listening: Listening) -> None:
    width = listening.engine.info.d_model
    default = await client.embeddings.create(model=model, input=["a good day", "a bad day"])
    numbers = await client.embeddings.create(model=model, input=["a good day", "a bad day"], encoding_format="float")
    assert [len(one.embedding) for one in default.data] == [width, width]
    # the texts may be read in one pass or in two, which differ in the last bits
    assert default.data[0].embedding == pytest.approx(numbers.data[0].embedding, abs=1e-5)
    first = await client.embeddings.create(
        model=model, input="a good day", extra_body={"layer": 0, "position": "last"}, encoding_format="base64"
    )
    raw = base64.b64decode(str(first.data[0].embedding))
    assert len(struct.unpack(f"<{width}f", raw)) == width
    profile = f"{model}@cheerful"  # which would change nothing
    refused: list[dict[str, Any]] = [
        {"dimensions": 4},
        {"extra_body": {"layer": 99}},
        {"input": []},
        {"model": profile},
    ]
    for changes in refused:
        with pytest.raises(openai.BadRequestError):
            await client.embeddings.create(**{"model": model, "input": "a", **changes})
    with pytest.raises(openai.NotFoundError):
        await client.embeddings.create(model=f"{model}@nobody", input="a")


def computed(model: PreTrainedModel, ids: list[int]) -> list[float]:
    """Returns the log-probabilities of all tokens but the first, by transformers itself."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    return torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()


@pytest.mark.parametrize("listening", installed_engines(), indirect=True)
async def test_echo_gives_the_log_probabilities_that_transformers_computes(
    client: AsyncOpenAI, model: str, listening: Listening, contract_engines: ContractEngines
) -> None:
    text = "The hill is warm"
    ids = list(listening.engine.tokenizer.encode(text))
    expected = computed(AutoModelForCausalLM.from_pretrained(contract_engines.folder, dtype=torch.float32), ids)
    special = len(ids) - len(text)
    for max_tokens in (0, 1):
        answer = await client.completions.create(
            model=model, prompt=[text, text], echo=True, logprobs=1, max_tokens=max_tokens, temperature=0
        )
        assert len(answer.choices) == 2
        for choice in answer.choices:
            logprobs = choice.logprobs
            assert logprobs is not None
            assert logprobs.token_logprobs is not None
            assert logprobs.top_logprobs is not None
            assert logprobs.text_offset is not None
            assert choice.text.startswith(text)
            assert len(logprobs.token_logprobs) == len(ids) + max_tokens
            assert logprobs.token_logprobs[0] is None
            found = [value for value in logprobs.token_logprobs[1 : len(ids)] if value is not None]
            assert found == pytest.approx(expected, abs=1e-4)
            best = [max(top.values()) for top in logprobs.top_logprobs[1:] if top]
            assert all(own <= one + 1e-6 for own, one in zip(found, best, strict=False))
            assert logprobs.text_offset[special : len(ids)] == list(range(len(text)))


async def test_tokens_within_a_character_are_told_apart(client: AsyncOpenAI, model: str) -> None:
    text = "a👩é b"
    answer = await client.completions.create(model=model, prompt=text, echo=True, logprobs=5, max_tokens=0)
    logprobs = present(answer.choices[0].logprobs)
    tokens, offsets = present(logprobs.tokens), present(logprobs.text_offset)
    first = len(tokens) - len(text.encode())
    assert tokens[first : first + 3] == ["a", r"bytes:\xf0", r"bytes:\x9f"]
    assert offsets[first:] == [0, 1, 1, 1, 1, 2, 2, 3, 4]
    for token, value, top in zip(tokens, present(logprobs.token_logprobs), present(logprobs.top_logprobs), strict=True):
        if value is not None:  # of the first token
            assert top[token] == value
            assert len(top) >= 5


@pytest.mark.parametrize("listening", ["transformers"], indirect=True)
async def test_tokens_of_a_stream_begin_where_they_are_in_the_text(client: AsyncOpenAI, model: str) -> None:
    offsets, text = list[int](), ""
    async for chunk in await client.completions.create(
        model=model, prompt="a", logit_bias={"97": 100}, stop=["aab"], max_tokens=5, temperature=0, logprobs=0, stream=True
    ):  # fmt: skip
        text += chunk.choices[0].text
        if (found := chunk.choices[0].logprobs) is not None:
            offsets += present(found.text_offset)
    assert (text, offsets) == ("aaaaa", [0, 1, 2, 3, 4])


@pytest.mark.parametrize("listening", ["transformers"], indirect=True)
async def test_the_bytes_of_chat_tokens_are_those_of_the_text(client: AsyncOpenAI, model: str) -> None:
    for byte in (0xC3, 0xA9):
        answer = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "a"}], logit_bias={str(byte): 100}, max_tokens=1,
            temperature=0, logprobs=True, top_logprobs=1,
        )  # fmt: skip
        (token,) = present(present(answer.choices[0].logprobs).content)
        assert token.bytes == [byte]


@pytest.mark.parametrize(
    ("tokens", "starts"),
    [
        ((b"h", b"\xc3", b"\xa9", b"!"), [0, 1, 1, 2]),
        ((b"h", b"\xc3", b"\x01", b"!"), [0, 1, 2, 3]),  # h, U+FFFD, U+0001, !
        ((b"\xe0", b"\x80", b"h"), [0, 1, 2]),  # two replacements: no character begins with both bytes
        ((b"\xf0\x9f", b"\x98\x80", b"h"), [0, 0, 1]),
        ((b"\xf0\x9f", b"\x98", b"a\xc3", b"\xa9"), [0, 0, 1, 2]),
        ((b"", b"a", b""), [0, 0, 1]),
    ],
)
def test_a_token_begins_where_its_character_or_its_replacement_does(
    tokens: tuple[bytes, ...], starts: list[int]
) -> None:
    offsets = Offsets()
    assert [offsets.before(token) for token in tokens] == starts
    assert offsets.characters == len(b"".join(tokens).decode(errors="replace"))


async def test_steering_of_a_prompt_that_is_only_scored_is_measured(client: AsyncOpenAI, model: str) -> None:
    """As where a token is generated, which takes its prompt under the same steering."""
    steering = [{"vector": "mood", "strength": 0.05, "layers": [1], "scope": {"tokens": "prompt"}}]
    options: dict[str, Any] = {"model": model, "prompt": "Once", "echo": True, "extra_body": {"steering": steering}}
    applied = []
    for tokens in (0, 1):
        answer = await client.completions.create(**options, logprobs=0, max_tokens=tokens)
        (one,) = present(answer.model_extra)["steering"]["applied"]
        applied.append(one)
    scored, generated = applied
    assert scored.pop("relative_dose")["1"] == pytest.approx(generated.pop("relative_dose")["1"], abs=1e-4)
    assert scored == generated
    assert scored["fired"]
    unscored = await client.completions.create(**options, max_tokens=0)
    (one,) = present(unscored.model_extra)["steering"]["applied"]
    assert not one["fired"], "nothing is read"
