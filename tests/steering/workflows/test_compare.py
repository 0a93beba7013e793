"""Comparisons: shared noise, numbers that match the formulas, and arms that fail alone."""

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest
import torch

from steering.engine.api import GenerationRequest, SamplingParams
from steering.errors import InvalidRequest, NonfiniteActivations, SteeringError
from steering.injection.readings import Reading
from steering.lab.controls import plan_at, random_like
from steering.plan.types import UNSTEERED
from steering.spec import InterventionSpec
from steering.workflows.comparison import ArmEvent, ArmResult, Comparison, check_names, compare, stream, sweep_arms
from tests.narrowing import present
from tests.plans import change_at
from tests.steering.workflows.linear import GAIN, LinearEngine
from tests.steering.workflows.linear_tokenizer import POLARITY
from tests.steering.workflows.texts import conversation
from tests.steering.workflows.vectors import planted_vector

PROMPT = conversation("the road")
SAMPLING = SamplingParams(max_tokens=24, temperature=1.0, seed=5)


async def comparison(
    engine: LinearEngine,
    n: int = 1,
    readings: tuple[Reading, ...] = (),
    sampling: SamplingParams = SAMPLING,
    **strengths: float,
) -> Comparison:
    """The prompt unsteered as `base`, and steered by each of the strengths."""
    plans = {name: await plan_at(engine.info, planted_vector(engine), s, (1,)) for name, s in strengths.items()}
    arms = {
        name: GenerationRequest(PROMPT, sampling, plan, readings) for name, plan in {"base": UNSTEERED, **plans}.items()
    }
    return Comparison(arms, "base", n)


def sentiment(engine: LinearEngine) -> Reading:
    return Reading("sentiment", 2, engine.concept, GAIN)


async def test_steering_moves_the_readout_both_ways(engine: LinearEngine) -> None:
    asked = await comparison(engine, 6, (sentiment(engine),), up=0.5, down=-0.5)
    base, up, down = await compare(engine, asked)
    low, middle, high = (present(arm.metrics).readout["sentiment"].mean for arm in (down, base, up))
    assert low < middle < high
    rise, fall = (present(arm.against_baseline).readout_shift["sentiment"] for arm in (up, down))
    low, high = present(rise.interval)
    assert 0.3 < low <= rise.mean <= high
    assert present(fall.interval)[1] < -0.3
    assert base.against_baseline is None


async def test_all_arms_and_samples_share_one_batch(engine: LinearEngine) -> None:
    await compare(engine, await comparison(engine, 4, up=0.5))
    assert engine.peak == 8


async def test_identical_arms_are_identical(engine: LinearEngine) -> None:
    result = await compare(engine, await comparison(engine, 5, (sentiment(engine),), up=0.5, base=0.5))
    first, second = result
    assert [one.text for one in first.answers] == [one.text for one in second.answers]
    assert present(second.against_baseline).first_divergence == [None] * 5
    assert present(second.against_baseline).readout_shift["sentiment"].mean == 0.0
    assert all(span.kind == "equal" for spans in present(second.against_baseline).diff for span in spans)


async def test_arms_share_their_text_up_to_the_first_divergence(engine: LinearEngine) -> None:
    base, up = await compare(engine, await comparison(engine, 8, up=0.3))
    parted = present(up.against_baseline).first_divergence
    assert any(index for index in parted)
    for one, other, index in zip(up.answers, base.answers, parted, strict=True):
        assert one.tokens[:index] == other.tokens[:index]
        assert index is None or one.tokens[index] != other.tokens[index]


async def test_kl_and_perplexity_follow_their_definitions(engine: LinearEngine) -> None:
    """The planted model's logits are known in closed form: a steered row adds strength * GAIN * polarity to them."""
    up = (await compare(engine, await comparison(engine, up=0.5)))[1]
    prompt, tokens = engine.tokenizer.encode(PROMPT), up.answers[0].tokens
    after, _ = engine.residuals(prompt + tokens, UNSTEERED, len(prompt))
    plain = engine.logits(prompt + tokens, after[-1])[len(prompt) - 1 : -1].double()
    log_p, log_q = (plain + 0.5 * GAIN * POLARITY).log_softmax(1), plain.log_softmax(1)
    expected = (log_p.exp() * (log_p - log_q)).sum(1)
    against = present(up.against_baseline)
    assert against.kl_per_token[0] == pytest.approx(expected.tolist(), rel=1e-4)
    assert against.kl_mean == pytest.approx(float(expected.mean()), rel=1e-4)
    surprise = -log_q[torch.arange(len(tokens)), torch.tensor(tokens)]
    assert present(up.metrics).perplexity == pytest.approx(float(surprise.mean().exp()), rel=1e-4)


async def test_an_arm_that_differs_by_its_prompt_alone_has_no_divergence(engine: LinearEngine) -> None:
    asked = await comparison(engine, 4, (sentiment(engine),))
    prompted = replace(asked.arms["base"], prompt=conversation("lovely lovely lovely"))
    result = await compare(engine, replace(asked, arms={**asked.arms, "prompted": prompted}))
    against = present(result[1].against_baseline)
    assert against.kl_mean == 0.0
    assert against.readout_shift["sentiment"].mean > 0.0


async def test_logits_of_one_answer_are_held_at_a_time(engine: LinearEngine) -> None:
    await compare(engine, await comparison(engine, 3, up=0.5, down=-0.5))
    assert len(engine.capture_calls) == 9
    assert all(count <= 2 and spec.layers == () and spec.logits for count, spec in engine.capture_calls)


async def test_an_answer_too_long_to_hold_is_reported_not_measured(engine: LinearEngine) -> None:
    engine.info = replace(engine.info, vocab_size=10**9)
    result = await compare(engine, await comparison(engine, up=0.5))
    assert present(result[1].metrics).perplexity is None
    assert present(result[1].against_baseline).kl_mean is None
    assert "too long to hold" in present(result[1].metrics).warnings[0]
    assert engine.captured == 0


async def test_no_tokens_no_perplexity() -> None:
    engine = LinearEngine(replies={"silence": ""})
    prompt = (type(PROMPT[0])("system", "silence"), *PROMPT)
    result = await compare(engine, Comparison({"quiet": GenerationRequest(prompt, SAMPLING)}, "quiet"))
    assert result[0].answers[0].finish.reason == "stop"
    assert present(result[0].metrics).perplexity is None


async def test_one_arm_fails_alone() -> None:
    def fails(request: GenerationRequest, index: int) -> SteeringError | None:
        return NonfiniteActivations("out of range") if request.plan.layers and index == 4 else None

    engine = LinearEngine(fails=fails)
    events = [one async for one in stream(engine, await comparison(engine, 3, up=0.5))]
    failures = [one for one in events if isinstance(one, ArmResult)]
    assert [(one.name, present(one.error).code) for one in failures] == [("up", "nonfinite_activations")]
    assert isinstance(events[-1], tuple)
    base, up = events[-1]
    assert len(base.answers) == 3
    assert present(present(base.metrics).perplexity) > 1.0
    assert present(up.error).code == "nonfinite_activations"
    assert up.answers == ()
    assert engine.running == 0


async def test_without_its_baseline_an_arm_keeps_its_own_numbers() -> None:
    engine = LinearEngine(fails=lambda request, index: None if request.plan.layers else NonfiniteActivations("no"))
    result = await compare(engine, await comparison(engine, 2, up=0.5))
    against = present(result[1].against_baseline)
    assert present(against.kl_mean) > 0.0
    assert (against.first_divergence, against.readout_shift, against.diff) == ([], {}, [])


async def test_when_every_arm_fails_the_error_is_raised() -> None:
    engine = LinearEngine(fails=lambda request, index: NonfiniteActivations("no"))
    with pytest.raises(NonfiniteActivations):
        await compare(engine, await comparison(engine, up=0.5))


async def test_a_defect_is_raised_and_nothing_waits() -> None:
    def fails(request: GenerationRequest, index: int) -> SteeringError | None:
        raise ZeroDivisionError

    engine = LinearEngine(fails=fails)
    with pytest.raises(ZeroDivisionError):
        await compare(engine, await comparison(engine, 2, up=0.5))
    assert engine.running == 0


async def test_streamed_tokens_are_the_answers(engine: LinearEngine) -> None:
    events = [one async for one in stream(engine, await comparison(engine, 2, up=0.5))]
    tokens = [one for one in events if isinstance(one, ArmEvent)]
    assert isinstance(events[-1], tuple)
    assert len(tokens) == len(events) - 1
    for arm in events[-1]:
        for choice, answer in enumerate(arm.answers):
            pieces = [one.event.text for one in tokens if (one.arm, one.choice) == (arm.name, choice)]
            assert "".join(pieces) == answer.text
    seen = [(one.arm, one.choice) for one in tokens]
    assert len(set(seen[:8])) == 4, "arms take turns"


async def test_closing_the_stream_frees_every_row(engine: LinearEngine) -> None:
    endless = replace(SAMPLING, max_tokens=10**6)
    async with aclosing(stream(engine, await comparison(engine, 3, sampling=endless, up=0.5))) as events:
        async for one in events:
            if isinstance(one, ArmEvent) and one.event.index == 3:
                break
    assert engine.peak == 6
    assert engine.running == 0


async def test_cancelling_frees_every_row(engine: LinearEngine) -> None:
    endless = replace(SAMPLING, max_tokens=10**6)
    task = asyncio.ensure_future(compare(engine, await comparison(engine, 3, sampling=endless, up=0.5)))
    await engine.reached(20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.running == 0


async def test_comparisons_that_cannot_be(engine: LinearEngine) -> None:
    with pytest.raises(InvalidRequest, match="'plain' is not an arm; arms: base, up"):
        replace(await comparison(engine, up=0.5), baseline="plain")
    with pytest.raises(InvalidRequest, match="given twice: base"):
        check_names(["base", "up", "base"])


def test_a_sweep_is_arms_of_one_intervention() -> None:
    found = sweep_arms(InterventionSpec(vector="sentiment", strength=0.1, layers=(3,)), (-1.0, 0.0, 0.5))
    assert [arm.name for arm in found] == ["base", "-1", "+0.5"]
    assert found[0].steering == ()
    assert [arm.steering for arm in found[1:]] == [
        (InterventionSpec(vector="sentiment", strength=strength, layers=(3,)),) for strength in (-1.0, 0.5)
    ]


async def test_a_random_direction_has_the_same_dose(engine: LinearEngine) -> None:
    vector = planted_vector(engine)
    other = random_like(vector, seed=1)
    ours, theirs = [await plan_at(engine.info, one, 0.5, (1, 2)) for one in (vector, other)]
    for layer in (1, 2):
        lengths = [float(change_at(plan, layer).norm()) for plan in (ours, theirs)]
        assert lengths == pytest.approx([0.5 * GAIN] * 2)
    assert abs(float(other.at(1).direction @ engine.concept)) < 0.6
    assert ours.fingerprint != theirs.fingerprint


def test_random_layers_agree_with_each_other_as_the_vectors_do(engine: LinearEngine) -> None:
    vector = random_like(planted_vector(engine), seed=3)
    mixed = replace(vector, layers={**vector.layers, 3: replace(vector.at(3), direction=engine.concept)})
    other = random_like(mixed, seed=9)
    for one, two in ((1, 2), (1, 3), (2, 3)):
        expected = float(mixed.at(one).direction @ mixed.at(two).direction)
        assert float(other.at(one).direction @ other.at(two).direction) == pytest.approx(expected, abs=1e-5)
    assert abs(float(other.at(1).direction @ mixed.at(1).direction)) < 0.6
