"""A fit lowers its loss, leaves time to live requests, stops when it is cancelled, and changes nothing on the model."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from steering.engine.api import FitTask, FittedDirection, GenerationRequest, NeutralText, TokenPair
from steering.engine.transformers.engine import TransformersEngine
from steering.engine.transformers.training import ScoredText
from steering.errors import EngineDead, InvalidRequest, LimitExceeded, NonfiniteActivations
from tests.engines import Outcome, engine_over, family_engine, run, run_all, sampling
from tests.families import D_MODEL, FAMILIES
from tests.steering.engine.training.test_gradient_pass import finished, runner_over

OPENINGS = (b"The day was ", b"It was ", b"We found the sea ", b"Her letter seemed ")
PAIRS = tuple(
    TokenPair(opening + warm, opening + cold, len(opening))
    for opening in map(tuple, OPENINGS)
    for warm, cold in ((tuple(b"warm."), tuple(b"cold.")), (tuple(b"good"), tuple(b"grim")))
)
TASK = FitTask(PAIRS, layer=1, amount=4.0, steps=30, batch=2, seed=3)
PROMPT = tuple(b"Tell me something")


def ratio(fitted: FittedDirection, strength: float) -> float:
    """How far a strength moves the mean log-likelihood ratio of positive to negative texts, over all pairs."""
    texts = [
        ScoredText(ids, pair.start, strength * TASK.amount) for pair in PAIRS for ids in (pair.positive, pair.negative)
    ]
    with runner_over(FAMILIES["llama"]()) as runner:
        moved, _ = finished(runner.gradients.score(texts, TASK.layer, fitted.direction))
        plain, _ = finished(
            runner.gradients.score([replace(text, amount=0.0) for text in texts], TASK.layer, fitted.direction)
        )
    gained = moved - plain
    return float((gained[0::2] - gained[1::2]).mean())


class GradientPasses:
    """Counts the forward passes of a model that ran with gradients on."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.count, self.first = 0, asyncio.Event()
        self._loop = asyncio.get_running_loop()
        model.register_forward_pre_hook(self._note)

    def _note(self, *_: object) -> None:
        if torch.is_grad_enabled():
            self.count += 1
            self._loop.call_soon_threadsafe(self.first.set)


async def fit(task: FitTask, tokenizer: PreTrainedTokenizerFast) -> FittedDirection:
    async with family_engine("llama", tokenizer) as engine:
        return await engine.fit(task)


async def test_the_loss_falls_and_the_direction_prefers_both_ways(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    fitted = await fit(TASK, hf_byte_tokenizer)
    assert fitted.direction.shape == (D_MODEL,)
    assert float(fitted.direction.norm()) == pytest.approx(1.0, abs=1e-5)
    assert len(fitted.losses) == TASK.steps
    assert sum(fitted.losses[-5:]) < sum(fitted.losses[:5])
    assert ratio(fitted, 1.0) > 1.0
    assert ratio(fitted, -1.0) < -1.0


async def test_neutral_texts_are_spared_as_far_as_kl_coefficient_goes(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    texts = (b"The kettle stands on the stove", b"A list of rivers", b"Two and two make four", b"The bus leaves at ten")
    neutral = tuple(NeutralText(tuple(text), 5) for text in texts)
    shown = [ScoredText(text.ids, text.start, TASK.amount) for text in neutral]
    damage = []
    for kl_coefficient in (0.0, 30.0):
        fitted = await fit(replace(TASK, neutral=neutral, kl_coefficient=kl_coefficient), hf_byte_tokenizer)
        with runner_over(FAMILIES["llama"]()) as runner:
            found, _ = finished(runner.gradients.diverge(shown, TASK.layer, fitted.direction))
            damage.append(float(found.mean()))
    assert damage[1] < 0.7 * damage[0]


async def test_an_initial_direction_is_where_it_starts(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    start = 5.0 * torch.randn(D_MODEL, generator=torch.Generator().manual_seed(1))
    still = await fit(replace(TASK, initial=start, steps=1, learning_rate=1e-6), hf_byte_tokenizer)
    assert float(still.direction @ start / start.norm()) == pytest.approx(1.0, abs=1e-5)
    moved = await fit(replace(TASK, initial=start), hf_byte_tokenizer)
    assert float(moved.direction @ start / start.norm()) < 0.99


async def test_the_same_task_gives_the_same_direction_next_to_live_traffic(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    requests = [GenerationRequest(PROMPT, sampling(60, seed=i, temperature=1.0)) for i in range(3)]
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        alone = await engine.fit(TASK)
        expected = await run_all(engine, requests)
        fitting = asyncio.create_task(engine.fit(TASK))
        steps_before = engine.stats().steps
        outcomes = await run_all(engine, requests)
        assert [o.tokens for o in outcomes] == [o.tokens for o in expected]
        assert engine.stats().steps > steps_before
        meanwhile = await fitting
    assert torch.equal(alone.direction, meanwhile.direction)
    assert alone.losses == meanwhile.losses


async def test_live_traffic_does_not_wait_for_the_fit(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """A request that comes in the middle of a long fit ends long before it."""
    steps: list[int] = []
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        started = asyncio.Event()

        def watch(done: int, total: int) -> None:
            assert total == 10_000
            steps.append(done)
            started.set()

        fitting = asyncio.create_task(engine.fit(replace(TASK, steps=10_000), progress=watch))
        await started.wait()
        outcome = await run(engine, GenerationRequest(PROMPT, sampling(20)))
        assert len(outcome.tokens) == 20
        assert not fitting.done()
        fitting.cancel()
    assert steps == sorted(steps)
    assert steps[0] == 1


async def test_cancelling_stops_within_one_piece(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model = FAMILIES["llama"]()
    async with engine_over(model, hf_byte_tokenizer) as engine:
        passes = GradientPasses(model)
        fitting = asyncio.create_task(engine.fit(replace(TASK, steps=10_000)))
        await passes.first.wait()
        fitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fitting
        counted = passes.count
        await run(engine, GenerationRequest(PROMPT, sampling(30)))
        assert passes.count <= counted + 1


async def test_nothing_is_left_on_the_model(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model = FAMILIES["llama"]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    async with engine_over(model, hf_byte_tokenizer) as engine:
        hooks = sum(len(module._forward_hooks) for module in model.modules())
        await engine.fit(TASK)
        assert sum(len(module._forward_hooks) for module in model.modules()) == hooks
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())


async def test_a_failing_fit_ends_alone(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        expected = await run(engine, GenerationRequest(PROMPT, sampling(12)))
        wild = engine.fit(replace(TASK, amount=3e38, strengths=(100.0, 100.0)))
        results = await asyncio.gather(
            wild, run(engine, GenerationRequest(PROMPT, sampling(12))), engine.fit(TASK), return_exceptions=True
        )
        assert isinstance(results[0], NonfiniteActivations)
        assert isinstance(results[1], Outcome)
        assert results[1].tokens == expected.tokens
        assert isinstance(results[2], FittedDirection)


async def test_closing_the_engine_ends_fits(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        fits = [asyncio.create_task(engine.fit(replace(TASK, steps=10_000))) for _ in range(2)]
        await asyncio.sleep(0)
        await engine.close()
        for fitting in fits:
            with pytest.raises(EngineDead):
                await fitting
        with pytest.raises(EngineDead):
            await engine.fit(TASK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 3}, "layer 3"),
        ({"neutral": (NeutralText((1, 2), 2),)}, "start 2"),
        ({"kl_coefficient": -1.0}, "kl_coefficient"),
        ({"layer": -1}, "layer -1"),
        ({"pairs": ()}, "at least one pair"),
        ({"pairs": (TokenPair((1, 2), (1, 3), 0),)}, "start 0"),
        ({"pairs": (TokenPair((1, 2), (1, 3, 4), 2),)}, "start 2"),
        ({"amount": 0.0}, "amount"),
        ({"amount": float("nan")}, "amount"),
        ({"steps": 0}, "steps"),
        ({"batch": 0}, "batch"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"strengths": (0.0, 1.0)}, "strengths"),
        ({"strengths": (1.0, 0.5)}, "strengths"),
        ({"initial": torch.zeros(D_MODEL)}, "initial"),
        ({"initial": torch.ones(D_MODEL + 1)}, "initial"),
    ],
)
async def test_what_cannot_be_fitted_is_refused(
    hf_byte_tokenizer: PreTrainedTokenizerFast, change: dict[str, Any], message: str
) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        with pytest.raises(InvalidRequest, match=message):
            await engine.fit(replace(TASK, **change))


async def test_long_texts_are_refused_by_their_length(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    long = tuple(b"x" * 300)
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        with pytest.raises(LimitExceeded, match="301 tokens"):
            await engine.fit(replace(TASK, pairs=(TokenPair((*long, 1), (*long, 2), 300),)))


async def test_fits_take_their_turn(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Two fits at once, both as if alone."""

    async def seeds(engine: TransformersEngine) -> list[torch.Tensor]:
        return [(await one).direction for one in [engine.fit(replace(TASK, seed=seed)) for seed in (1, 2)]]

    async with family_engine("llama", hf_byte_tokenizer) as engine:
        alone = await seeds(engine)
        together = await asyncio.gather(*(engine.fit(replace(TASK, seed=seed)) for seed in (1, 2)))
    assert all(torch.equal(one, other.direction) for one, other in zip(alone, together, strict=True))
    assert not torch.equal(*alone)
