"""What a request reads besides its prompts and answers counts against the tokens per minute of its key, too."""

import re
from statistics import fmean
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from steering.concepts.loader import load_concept, load_instructed
from steering.engine.transformers.engine import TransformersEngine
from steering.model.loading import opened
from steering.pairs import PairSet
from steering.workflows.describe import WRITING
from steering.workflows.texts import ANSWER, NEUTRAL, as_prompts, text_lengths
from tests.app.conftest import Server, StartServer
from tests.app.policy.conftest import directions
from tests.app.policy.test_keys import ADMIN, BEARER, bearer, code, created
from tests.families import LLAMA_LIKE, build

WORD, TOKENS, N = "abc", 4, 2
COMPARE: dict[str, Any] = {"prompt": WORD, "max_tokens": TOKENS, "n": N, "steering": [{"vector": "mood"}]}
ECHO: dict[str, Any] = {"model": "tiny", "prompt": [WORD, "de"], "max_tokens": TOKENS, "echo": True}
DOSE: dict[str, Any] = {
    "kind": "dose_response", "vector": "mood", "prompts": ["the road", "a river"], "neutral": ["so"], "strengths": [1],
    "random_directions": 0, "max_tokens": TOKENS,
}  # fmt: skip
REPORT: dict[str, Any] = {"kind": "report", "vector": "mood", "strength": 1.0, "prompts": ["the road"], "max_tokens": 4}
RATINGS = 2 * 2 * 3


@pytest.fixture
async def server(start: StartServer, hf_byte_tokenizer: PreTrainedTokenizerFast) -> Server:
    """A server over a tiny model that needs a key, with a vector."""
    model = build("LlamaForCausalLM", **{**LLAMA_LIKE, "max_position_embeddings": 2048})  # for a judge's questions
    engine = TransformersEngine(opened(model, hf_byte_tokenizer, name="tiny"))
    one = await start(engine, api_keys=ADMIN, max_evaluation_answers=1500)
    one.client.headers.update(BEARER)
    body = {"name": "mood", "directions": directions(engine.info.d_model, 0), "description": "a good mood"}
    assert (await one.client.post("/v1/vectors", json=body)).status_code == 201
    return one


async def counted(server: Server, path: str, body: dict[str, Any]) -> int:
    """How many tokens a request takes."""
    key = await created(server, scopes=["generate", "write"], limits={"tokens_per_minute": 1})
    refused = await server.client.post(path, json=body, headers=bearer(key["key"]))
    assert code(refused) == (429, "rate_limited"), refused.text
    (found,) = re.findall(r"takes (\d+) tokens", refused.text)
    return int(found)


async def test_a_comparison_counts_what_is_read_to_measure_its_answers(server: Server) -> None:
    prompt = len(server.engine.tokenizer.encode(WORD))
    answers = 2 * (prompt + N * TOKENS)
    measured = N * (1 + 2) * (prompt + TOKENS)  # the unsteered model reads each answer, and the steered one its own
    assert await counted(server, "/v1/compare", COMPARE) == answers + measured
    readout = {**COMPARE, "readout": ["mood"]}
    assert await counted(server, "/v1/compare", readout) == answers + measured + 2 * N * TOKENS


async def test_prompts_that_are_scored_and_continued_count_twice(server: Server) -> None:
    prompts = sum(len(server.engine.tokenizer.encode(one)) for one in ECHO["prompt"])
    assert await counted(server, "/v1/completions", ECHO) == prompts + 2 * TOKENS
    assert await counted(server, "/v1/completions", {**ECHO, "logprobs": 1}) == 2 * prompts + 2 * TOKENS
    assert await counted(server, "/v1/completions", {**ECHO, "logprobs": 1, "max_tokens": 0}) == prompts


async def test_the_loaded_model_as_the_judge_counts_its_questions_and_ratings(server: Server) -> None:
    judged = {**DOSE, "judge": {"by": "self"}}
    without, counts = [await counted(server, "/v1/evaluations", body) for body in (DOSE, judged)]

    async def passed(body: dict[str, Any]) -> int:
        before = server.engine.stats()
        answer = await server.client.post("/v1/evaluations?wait=true", json=body)
        assert answer.status_code == 200, answer.text
        after = server.engine.stats()
        found = [one.prompt_tokens + one.cached_tokens + one.generated_tokens for one in (before, after)]
        return found[1] - found[0]

    await passed(DOSE)  # its parts are stored, and found again by the next ones
    taken = -await passed(DOSE) + await passed(judged)
    broken = 2 * RATINGS * TOKENS  # a byte that is no character is written as three
    assert abs(counts - without - taken) <= broken < taken / 10


@pytest.mark.parametrize(
    ("body", "passes"), [({**DOSE, "strengths": [1, 2, 3]}, 1 + 1 + 3), ({**REPORT, "seeds": [0, 1]}, 2 * (1 + 2))]
)
async def test_answers_to_neutral_prompts_are_counted_each_time_they_are_read(
    server: Server, body: dict[str, Any], passes: int
) -> None:
    """They are written, and read without steering and at each strength."""
    few, many = [await counted(server, "/v1/evaluations", {**body, "neutral": ["so"] * count}) for count in (1, 3)]
    each = TOKENS + sum(len(server.engine.tokenizer.encode(one)) for one in body["prompts"]) / len(body["prompts"])
    assert many - few == pytest.approx(2 * passes * each, abs=1)


async def test_ratings_of_the_loaded_model_are_answers_of_an_evaluation(server: Server) -> None:
    many = {**DOSE, "prompts": ["the road"] * 200}  # 401 answers and 1200 ratings
    assert await counted(server, "/v1/evaluations", many) > 0, "without the ratings it is within the limit"
    refused = await server.client.post("/v1/evaluations", json={**many, "judge": {"by": "self"}})
    assert code(refused) == (400, "limit_exceeded")


@pytest.mark.parametrize(("more", "passes"), [({}, 2), ({"card_position": "max"}, 3)])
async def test_a_description_counts_what_the_model_writes_and_reads(
    server: Server, more: dict[str, Any], passes: int
) -> None:
    described = {"name": "calm", "describe": {"trait": "calm", "opposite": "angry"}, **more}
    answers = 2 * len(load_instructed())
    assert await counted(server, "/v1/vectors/extract", described) == passes * answers * WRITING.max_tokens


@pytest.mark.parametrize(("kl_coefficient", "neutral"), [(0, 0), (1, 4)])
async def test_training_counts_the_texts_of_every_step(server: Server, kl_coefficient: int, neutral: int) -> None:
    """4 pairs a step, with both signs; and 2 neutral answers, which are read twice."""
    body = {
        "name": "calm",
        "pairs": [{"positive": "good day", "negative": "bad day!"}] * 8,
        "method": "trained",
        "layers": [1, 2],
    }
    few, many = [
        await counted(
            server, "/v1/vectors/extract", {**body, "training": {"steps": steps, "kl_coefficient": kl_coefficient}}
        )
        for steps in (10, 20)
    ]
    of_pairs = fmean(text_lengths(server.engine, PairSet(("good day",) * 8, ("bad day!",) * 8)))
    asked = [len(server.engine.tokenizer.encode(one)) for one in as_prompts(server.engine, load_instructed()[:NEUTRAL])]
    assert many - few == pytest.approx(2 * 10 * (16 * of_pairs + neutral * (fmean(asked) + ANSWER.max_tokens)), abs=1)


async def test_a_report_counts_the_pairs_of_other_concepts(server: Server) -> None:
    texts = [text for pair in load_concept("sentiment") for text in pair]
    read = sum(len(server.engine.tokenizer.encode(text)) for text in texts)
    none, one = [
        await counted(server, "/v1/evaluations", {**REPORT, "side_effects": names})
        for names in (["mood"], ["sentiment"])
    ]
    assert one - none == read > 0


async def test_texts_in_which_the_attending_token_is_looked_for_count_twice(server: Server) -> None:
    texts, attending = ["the road ahead", "a road away"], {"span": "road", "read": "attending"}
    pairs = [{"positive": texts[0], "negative": texts[1]}]
    for path, body in (
        ("/v1/activations", {"texts": texts}),
        ("/v1/latent-space", {"texts": texts}),
        ("/v1/clusters", {"texts": texts}),
        ("/v1/vectors/extract", {"name": "way", "pairs": pairs}),
    ):
        plain, twice = [
            await counted(server, path, {**body, "position": position}) for position in ({"span": "road"}, attending)
        ]
        assert twice == 2 * plain
