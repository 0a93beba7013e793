"""Trials answer every prompt as often as asked, under seeds that all plans share, and average the answers of a prompt."""

from dataclasses import replace
from functools import partial
from statistics import fmean

import pytest

from steering.engine.api import CapturePrompt, CaptureSpec, GenerationRequest, Prompt, SamplingParams
from steering.errors import NonfiniteActivations, SteeringError
from steering.lab.calibration import neutral_divergence
from steering.lab.controls import plan_at
from steering.lab.trials import (
    ANSWERS_AT_ONCE,
    SCORERS,
    ReadBack,
    Samples,
    read_back,
    run_trials,
    trial_answers,
)
from steering.pairs import ChatMessage
from steering.plan.types import SteeringPlan
from steering.vectors import ConceptVector, mix
from steering.workflows.generate import background
from tests.narrowing import present
from tests.plans import change_at
from tests.steering.workflows.linear import GAIN, LinearEngine
from tests.steering.workflows.texts import conversation
from tests.steering.workflows.vectors import planted_vector

PROMPTS = tuple(conversation(f"the {word}") for word in ("road", "river", "house"))
SAMPLING = SamplingParams(max_tokens=12, temperature=1.0, seed=5)


async def planned(engine: LinearEngine, strength: float) -> tuple[SteeringPlan, ReadBack]:
    vector: ConceptVector = planted_vector(engine)
    plan = await plan_at(engine.info, vector, strength, (2,))
    return plan, read_back(engine, vector, None, 2, "projection")


async def score_of(engine: LinearEngine, prompt: Prompt, plan: SteeringPlan, reading: ReadBack, seed: int) -> float:
    """Answers once under the seed and reads the answer, without a trial."""
    (answer,) = await background(engine, [GenerationRequest(prompt, replace(SAMPLING, seed=seed), plan)])
    ids = engine.tokenizer.encode(prompt)
    (capture,) = await engine.capture([CapturePrompt(ids + answer.tokens)], CaptureSpec((2,), "all"))
    return SCORERS[reading.scorer].score(capture.activations[0, len(ids) :], reading.entry)


async def test_the_samples_of_a_prompt_have_the_same_seeds_under_every_plan() -> None:
    seen: list[tuple[bool, Prompt, int | None]] = []

    def record(request: GenerationRequest, index: int) -> SteeringError | None:
        if index == 0:
            seen.append((request.plan.empty, request.prompt, request.sampling.seed))
        return None

    engine = LinearEngine(fails=record)
    plan, reading = await planned(engine, 0.8)
    await run_trials(engine, PROMPTS, [plan], reading, SAMPLING, samples=Samples(3, 2))
    assert len(seen) == trial_answers(1, len(PROMPTS), Samples(3, 2))
    for number, prompt in enumerate(PROMPTS):
        seeds = [mix(mix(5, number), j) for j in range(3)]
        assert sorted(seed or 0 for empty, asked, seed in seen if empty and asked == prompt) == sorted(seeds)
        assert sorted(seed or 0 for empty, asked, seed in seen if not empty and asked == prompt) == sorted(seeds[:2])


async def test_a_trial_is_the_mean_of_its_samples_and_keeps_the_text_of_the_first(engine: LinearEngine) -> None:
    plan, reading = await planned(engine, 0.8)
    found = {
        n: (await run_trials(engine, PROMPTS, [plan], reading, SAMPLING, samples=Samples(steered=n)))[1][0]
        for n in (1, 3)
    }
    assert found[1].texts == found[3].texts
    for number, (prompt, score) in enumerate(zip(PROMPTS, found[3].scores, strict=True)):
        seeds = [mix(mix(5, number), j) for j in range(3)]
        each = [await score_of(engine, prompt, plan, reading, seed) for seed in seeds]
        assert len(set(each)) > 1
        assert found[1].scores[number] == pytest.approx(each[0])
        assert score == pytest.approx(fmean(each))
        assert [one.score for index, one in found[3].answers if index == number] == pytest.approx(each)
    assert found[3].by_prompt([one.score for _, one in found[3].answers]) == pytest.approx(list(found[3].scores))


async def test_a_plan_with_one_broken_sample_is_broken_and_the_others_are_not() -> None:
    broken = mix(mix(5, 1), 1)

    def fails(request: GenerationRequest, index: int) -> SteeringError | None:
        if not request.plan.empty and request.sampling.seed == broken and index == 2:
            return NonfiniteActivations("planted")
        return None

    engine = LinearEngine(fails=fails)
    plan, reading = await planned(engine, 0.8)
    unsteered, (steered,) = await run_trials(engine, PROMPTS, [plan], reading, SAMPLING, samples=Samples(steered=2))
    assert steered.broken is not None
    assert steered.measures == ()
    assert unsteered.broken is None
    _, (first,) = await run_trials(engine, PROMPTS, [plan], reading, SAMPLING, samples=Samples(steered=1))
    assert first.broken is None


async def test_neutral_answers_without_tokens_measure_nothing() -> None:
    """One that has tokens counts alone; nothing measured is not a divergence of 0."""
    engine = LinearEngine(replies={"silent": ""})
    plan, _ = await planned(engine, 0.8)
    silent = (ChatMessage("system", "silent"), ChatMessage("user", "the road"))
    assert await neutral_divergence(engine, [silent], [plan], SAMPLING) == (None,)
    (mixed,) = await neutral_divergence(engine, [PROMPTS[0], silent], [plan], SAMPLING)
    assert present(mixed).mean > 0.0
    assert present(mixed).interval is None


class Kept:
    """Keeps parts in memory; `room`: how many."""

    def __init__(self, room: int) -> None:
        self.parts: dict[str, str] = {}
        self._room = room

    async def load(self, key: str) -> str | None:
        return self.parts.get(key)

    async def save(self, key: str, content: str) -> None:
        if len(self.parts) < self._room:
            self.parts[key] = content


async def test_work_that_was_interrupted_goes_on_where_it_stopped() -> None:
    """A broken plan stays broken, other sampling finds nothing, and what is kept is not written again."""
    prompts, sampling = PROMPTS[:2] * (ANSWERS_AT_ONCE // 4), replace(SAMPLING, max_tokens=2)

    def fails(request: GenerationRequest, index: int) -> SteeringError | None:
        added = change_at(request.plan, 2).norm() if request.plan.layers else 0.0
        return NonfiniteActivations("out of range") if added > 1.25 * GAIN else None

    engine = LinearEngine(fails=fails)
    plans = [(await planned(engine, strength))[0] for strength in (0.5, 1.5, 1.0)]
    _, reading = await planned(engine, 1.0)
    run = partial(run_trials, engine, prompts, plans, reading, samples=Samples(1, 1))
    kept = Kept(room=1)
    whole = await run(sampling, checkpoints=kept)
    assert await run(sampling) == whole
    written = engine.generated
    assert len(kept.parts) == 1, "of two: an unsteered row and three plans, two at a time"
    assert await run(sampling, checkpoints=kept) == whole
    assert 0 < engine.generated - written < written / 2
    assert present(whole[1][1].broken).message == "out of range"
    other = Kept(room=9)
    other.parts = dict(kept.parts)
    await run(replace(sampling, seed=6), checkpoints=other)
    assert len(other.parts) == 1 + 2
