"""The choice of a token: seeds, noise, filters, penalties and log-probabilities."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from steering.engine.api import GenerationRequest, SamplingParams
from steering.engine.transformers.request import Request
from steering.engine.transformers.sampling import (
    adjusted,
    candidates,
    every_token,
    gumbel,
    is_filtered,
    ranked,
    sample,
    uniform,
)
from steering.plan.types import UNSTEERED
from tests.engines import family_engine, run, run_all, sampling
from tests.reference_steps import ZERO, choose
from tests.steering.engine.loop.driven import open_stream

PROMPT = tuple(b"Tell me something")


def row(params: SamplingParams, ids: list[int] | None = None) -> Request:
    return Request(id=0, ids=ids or [1], prompt_length=1, plan=UNSTEERED, sampling=params, stream=open_stream())


async def test_same_seed_same_tokens_whoever_else_is_there(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        request = GenerationRequest(PROMPT, sampling(20, temperature=0.9, seed=11))
        alone = await run(engine, request)
        others = [GenerationRequest(PROMPT, sampling(20, temperature=0.9, seed=seed)) for seed in range(20)]
        crowd = await run_all(engine, [*others[:7], request, *others[7:]])
        assert crowd[7].tokens == alone.tokens
        assert crowd[7].tokens == crowd[12].tokens  # the other one with seed 11
        assert len({tuple(outcome.tokens) for outcome in crowd}) == 20


async def test_logprobs_are_the_models_own(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        outcome = await run(engine, GenerationRequest(PROMPT, sampling(5, temperature=0.7, seed=1, logprobs=5)))
        for event in outcome.events[:-1]:
            assert event.logprob is not None
            assert len(event.top_logprobs) == 5
            probabilities = [probability for _, probability in event.top_logprobs]
            assert probabilities == sorted(probabilities, reverse=True)
            assert sum(math.exp(p) for p in probabilities) <= 1.0 + 1e-5
            assert event.logprob <= probabilities[0] + 1e-6


def test_noise_is_gumbel_noise() -> None:
    """Kolmogorov-Smirnov over 2 million tokens, whose 0.1 % point is 1.95 / sqrt(n)."""
    rows, vocab = 40, 50_000
    numbers = uniform(range(rows), range(rows), vocab, torch.device("cpu"))
    found = gumbel(numbers).flatten().to(torch.float64).sort().values
    distribution = torch.exp(-torch.exp(-found))
    steps = torch.arange(len(found), dtype=torch.float64) / len(found)
    assert float((distribution - steps).abs().max()) < 1.95 / len(found) ** 0.5
    assert float(found.max()) > 12.0


@pytest.mark.parametrize("others", [-math.inf, 0.0], ids=["the only one allowed", "much better than the others"])
@pytest.mark.parametrize("filters", [{}, {"top_k": 5}])
def test_a_token_whose_uniform_number_is_0_can_be_chosen(filters: dict[str, Any], others: float) -> None:
    seed, token = ZERO
    assert uniform([seed], [0], 264, torch.device("cpu"))[0, token] == 0.0
    logits = torch.full((1, 264), others)
    logits[0, token] = 50.0
    assert sample(logits, [row(SamplingParams(temperature=1.0, seed=seed, **filters))])[0].token_id == token


def test_noise_is_a_function_of_seed_and_index() -> None:
    cpu = torch.device("cpu")
    numbers = uniform([7, 8, 7, 2**64 - 1], [0, 0, 1, 0], 500, cpu)
    assert torch.equal(numbers[1:2], uniform([8], [0], 500, cpu))
    assert len({tuple(row.tolist()) for row in numbers}) == 4
    assert torch.equal(uniform([-1], [0], 500, cpu), numbers[3:])


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), spread=st.floats(0.1, 40.0), temperature=st.floats(0.1, 3.0))
def test_a_row_gets_the_argmax_of_logits_plus_noise(seed: int, spread: float, temperature: float) -> None:
    logits = torch.randn(1, 900, generator=torch.Generator().manual_seed(seed)) * spread
    chosen = sample(logits, [row(SamplingParams(temperature=temperature, seed=seed))])[0].token_id
    assert chosen == choose(logits[0], temperature, seed, 0)


_PARAMETERS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "top_k": st.sampled_from([0, 1, 5, 80, 1000]),
        "top_p": st.floats(0.05, 1.0),
        "min_p": st.sampled_from([0.0, 0.01, 0.3]),
    }
)
FILTERED = _PARAMETERS.filter(lambda one: is_filtered(SamplingParams(**one)))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    spread=st.floats(0.1, 12.0),
    rows=st.lists(FILTERED, min_size=1, max_size=4),
)
def test_filters_keep_what_sorting_everything_keeps(seed: int, spread: float, rows: list[dict[str, Any]]) -> None:
    """Over a few candidates, as on a CPU, and over all tokens, as on other devices."""
    logits = torch.randn(len(rows), 700, generator=torch.Generator().manual_seed(seed)) * spread
    scaled = logits - logits.amax(1, keepdim=True)
    params = [SamplingParams(temperature=1.0, **one) for one in rows]
    for values, tokens in (candidates(scaled, params), ranked(*every_token(scaled), params)):
        for number, one in enumerate(params):
            order = logits[number].argsort(descending=True, stable=True).tolist()
            allowed = order[: one.top_k] if one.top_k else order
            probabilities = torch.softmax(logits[number][allowed].to(torch.float64), dim=0).tolist()
            before = [sum(probabilities[:rank]) for rank in range(len(allowed))]
            least = float(logits[number].max()) + math.log(one.min_p) if one.min_p else -math.inf
            ranks = list(zip(allowed, before, strict=True))
            expected = {t for t, mass in ranks if mass < one.top_p and logits[number, t] >= least}
            edge = {t for t, mass in ranks if abs(mass - one.top_p) < 1e-5 or abs(logits[number, t] - least) < 1e-5}
            found = set(tokens[number][values[number] > -math.inf].tolist())
            assert found - edge == expected - edge
            assert tokens[number, 0] == order[0]


def test_a_filtered_row_is_the_same_among_others() -> None:
    """Rows with many candidates pad those with few; sums must not notice."""
    logits = torch.randn(12, 3000, generator=torch.Generator().manual_seed(3)) * 4
    rows = [
        row(SamplingParams(temperature=0.2 + 0.3 * n, seed=n, top_p=0.99, top_k=n % 3 * 40, logprobs=2))
        for n in range(12)
    ]
    together = sample(logits, rows)
    assert together == [sample(logits[n : n + 1], [rows[n]])[0] for n in range(12)]


def test_sampling_follows_the_distribution() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    rows = [row(SamplingParams(temperature=1.0, seed=seed)) for seed in range(4000)]
    counts = torch.bincount(torch.tensor([s.token_id for s in sample(logits.repeat(4000, 1), rows)]), minlength=4)
    assert (counts / 4000).tolist() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.6}, {0, 1}),
        ({"top_p": 0.45}, {0}),
        ({"min_p": 0.5}, {0, 1}),
        ({"top_k": 3, "min_p": 0.2}, {0, 1, 2}),
        ({"logit_bias": {3: 100.0}}, {3}),
        ({"logit_bias": {0: -100.0, 1: -100.0}}, {2, 3}),
    ],
)
def test_filters_leave_exactly_these(params: dict[str, Any], allowed: set[int]) -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    rows = [row(SamplingParams(temperature=1.0, seed=seed, **params)) for seed in range(600)]
    assert {s.token_id for s in sample(logits.repeat(600, 1), rows)} == allowed


def test_penalties_change_what_was_written() -> None:
    logits = torch.tensor([[2.0, 1.9, -1.0, -1.1]])
    assert sample(logits, [row(SamplingParams(repetition_penalty=1.2), [0])])[0].token_id == 1
    assert sample(logits, [row(SamplingParams(presence_penalty=0.5), [1, 0])])[0].token_id == 1
    assert sample(logits, [row(SamplingParams(frequency_penalty=0.04), [1, 0, 0, 0])])[0].token_id == 1
    assert sample(logits, [row(SamplingParams(frequency_penalty=0.04), [1, 0])])[0].token_id == 0


@given(
    steps=st.lists(st.integers(0, 11), min_size=1, max_size=8),
    penalty=st.sampled_from([1.0, 0.7, 1.4]),
    presence=st.sampled_from([0.0, 0.5]),
    frequency=st.sampled_from([0.0, -0.3]),
)
def test_penalties_follow_the_sequence_token_by_token(
    steps: list[int], penalty: float, presence: float, frequency: float
) -> None:
    params = SamplingParams(repetition_penalty=penalty, presence_penalty=presence, frequency_penalty=frequency)
    sequence, plain = row(params, [3]), row(SamplingParams())
    for number, token in enumerate(steps):
        logits = torch.randn(2, 12, generator=torch.Generator().manual_seed(number))
        expected = logits[0].clone()
        for one in set(sequence.ids):
            expected[one] = expected[one] / penalty if expected[one] > 0 else expected[one] * penalty
        for one in set(sequence.ids[1:]):
            expected[one] -= frequency * sequence.ids[1:].count(one) + presence
        found = adjusted(logits, [sequence, plain])
        torch.testing.assert_close(found[0], expected)
        assert torch.equal(found[1], logits[1])
        sequence.ids.append(token)


def test_a_nonfinite_row_is_reported_and_alone() -> None:
    logits = torch.tensor([[0.0, 1.0], [math.nan, 0.0], [math.inf, 0.0], [-math.inf, 0.0]])
    found = sample(logits, [row(SamplingParams())] * 4)
    assert [one.finite for one in found] == [True, False, False, True], "a vocabulary may be masked by -infinity"
    assert (found[0].token_id, found[3].token_id) == (1, 1)


@pytest.mark.parametrize(
    "extreme",
    [
        {"temperature": 1e-39, "top_p": 0.9},
        {"temperature": 1e-39, "min_p": 0.1, "top_k": 2},
        {"temperature": 1e-39},
        {"temperature": 1.0, "repetition_penalty": 1e-39, "top_p": 0.5},
    ],
)
def test_extreme_numbers_choose_the_argmax_and_disturb_no_other_row(extreme: dict[str, Any]) -> None:
    logits = torch.tensor([[0.5, 3.0, -1.0, 2.0]] * 2)
    plain = SamplingParams(temperature=1.0, seed=5)
    found = sample(logits, [row(SamplingParams(**extreme), [1]), row(plain)])
    assert found[0].token_id == 1
    assert found[1] == sample(logits[:1], [row(plain)])[0]
