"""Trials: many plans over the same prompts and noise, and what each did to the text as the unsteered model reads it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from steering.engine.base import Capture, CapturePrompt, CaptureSpec, Engine, GenerationRequest, Prompt, SamplingParams
from steering.errors import NonfiniteActivations
from steering.plan import UNSTEERED, SteeringPlan
from steering.workflows.generate import Answer, attempts, background, mix
from steering.workflows.measures import repetition
from steering.workflows.progress import Progress, silent
from steering.workflows.scorers import SCORERS
from steering.workflows.teacher_forcing import LOGITS_BOUND, divergences, predicting, surprises
from steering.workflows.trial_setup import ReadBack

WRITING = SamplingParams(max_tokens=48, temperature=1.0)
"""At temperature 1 the unsteered model's own text has the perplexity that the model means it to have."""


@dataclass(frozen=True, slots=True)
class AnswerMeasures:
    """One answer as the unsteered model reads it. surprise: mean -log p of its tokens, None where it has none.
    dose: measured relative dose, mean over the layers that were steered, 0 where none was."""

    score: float
    surprise: float | None
    repetition: float
    dose: float


@dataclass(frozen=True, slots=True)
class Trial:
    """One plan over all prompts, in their order; broken where the plan drove an answer out of range."""

    measures: tuple[AnswerMeasures, ...] = ()
    broken: NonfiniteActivations | None = field(default=None, compare=False)

    @property
    def scores(self) -> tuple[float, ...]:
        return tuple(one.score for one in self.measures)


async def run_trials(
    engine: Engine,
    prompts: Sequence[Prompt],
    plans: Sequence[SteeringPlan],
    read_back: ReadBack,
    sampling: SamplingParams = WRITING,
    *,
    progress: Progress | None = None,
) -> tuple[Trial, ...]:
    """One trial a plan, in order. Prompt i has seed mix(seed, i) under every plan, so plans share their noise.

    All answers are generated as one background batch, then read prompt by prompt; cancelling stops either at once.
    """
    report, total = progress or silent, 2 * len(plans) * len(prompts)
    seeds = [replace(sampling, seed=mix(sampling.seed, i)) for i in range(len(prompts))]
    requests = [GenerationRequest(p, s, plan) for plan in plans for p, s in zip(prompts, seeds, strict=True)]
    outcomes = await attempts(engine, requests, progress=lambda done, _, said: report(done, total, said))
    rows = [outcomes[i : i + len(prompts)] for i in range(0, len(outcomes), len(prompts))]
    broken = [next((one for one in row if isinstance(one, NonfiniteActivations)), None) for row in rows]
    sound = [row for row, error in zip(rows, broken, strict=True) if error is None]
    measured: list[list[AnswerMeasures]] = [[] for _ in sound]
    for index, prompt in enumerate(prompts):
        ids = engine.tokenizer.encode(prompt)
        answers = [row[index] for row in sound]
        found = await _measure(engine, ids, [one for one in answers if isinstance(one, Answer)], read_back)
        for column, one in zip(measured, found, strict=True):
            column.append(one)
        report(total // 2 + (index + 1) * len(plans), total, "reading answers")
    sound_measures = iter(measured)
    return tuple(Trial(tuple(next(sound_measures))) if error is None else Trial(broken=error) for error in broken)


async def _measure(
    engine: Engine, prompt: tuple[int, ...], answers: Sequence[Answer], read_back: ReadBack
) -> list[AnswerMeasures]:
    """One prompt's answers, as many at a time as their logits may be held for."""
    found: list[AnswerMeasures] = []
    longest = len(prompt) + max((len(one.tokens) for one in answers), default=0)
    size = max(1, LOGITS_BOUND // (longest * engine.info.vocab_size))
    spec = CaptureSpec(layers=(read_back.layer,), position="all", logits=True)
    for start in range(0, len(answers), size):
        part = answers[start : start + size]
        captures = await engine.capture([CapturePrompt(prompt + one.tokens, UNSTEERED) for one in part], spec)
        for one, capture in zip(part, captures, strict=True):
            found.append(await asyncio.to_thread(_measures, capture, len(prompt), one, read_back))
    return found


def _measures(capture: Capture, prompt_length: int, answer: Answer, read_back: ReadBack) -> AnswerMeasures:
    """An answer without a token is read at the position that would have predicted its first."""
    count = len(answer.tokens)
    start = prompt_length if count else prompt_length - 1
    surprise = surprises(predicting(capture, prompt_length, count), answer.tokens)
    doses = [dose for by_layer in answer.finish.steering.doses for dose in by_layer.values()]
    return AnswerMeasures(
        score=SCORERS[read_back.scorer].score(capture.activations[0, start:], read_back.entry),
        surprise=fmean(surprise) if count else None,
        repetition=repetition(answer.tokens),
        dose=fmean(doses) if doses else 0.0,
    )


async def neutral_divergence(
    engine: Engine,
    prompts: Sequence[Prompt],
    plans: Sequence[SteeringPlan],
    sampling: SamplingParams = WRITING,
    *,
    progress: Progress | None = None,
) -> tuple[float, ...]:
    """Mean KL(plan || unsteered) per token, along the unsteered model's own answers to neutral prompts: what a plan
    changes where nobody asked for the concept. The logits of one plan and of no plan are held at a time, for one prompt.
    """
    report, seeds = progress or silent, [replace(sampling, seed=mix(sampling.seed, i)) for i in range(len(prompts))]
    requests = [GenerationRequest(prompt, one) for prompt, one in zip(prompts, seeds, strict=True)]
    values: list[list[float]] = [[] for _ in plans]
    for done, (prompt, answer) in enumerate(zip(prompts, await background(engine, requests), strict=True), start=1):
        bent = await _bent(engine, engine.tokenizer.encode(prompt), answer.tokens, plans)
        for into, one in zip(values, bent, strict=True):
            into.extend(one)
        report(done, len(prompts), "reading neutral text")
    return tuple(fmean(one) if one else 0.0 for one in values)


async def _bent(
    engine: Engine, prompt: tuple[int, ...], tokens: tuple[int, ...], plans: Sequence[SteeringPlan]
) -> list[tuple[float, ...]]:
    """KL per token of each plan along one text."""
    spec = CaptureSpec(layers=(), logits=True)
    (plain,) = await engine.capture([CapturePrompt(prompt + tokens)], spec)
    reference, found = predicting(plain, len(prompt), len(tokens)), []
    for plan in plans:
        if plan.empty:
            found.append((0.0,) * len(tokens))
            continue
        (steered,) = await engine.capture([CapturePrompt(prompt + tokens, plan, len(prompt))], spec)
        found.append(await asyncio.to_thread(divergences, predicting(steered, len(prompt), len(tokens)), reference))
    return found
