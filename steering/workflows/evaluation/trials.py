"""Trials: many plans over the same prompts and noise, and what each did to the text as the unsteered model reads it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from steering.engine.api import Capture, CapturePrompt, CaptureSpec, Engine, GenerationRequest, Prompt, SamplingParams
from steering.engine.prompts import encode_with_plans
from steering.errors import NonfiniteActivations
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.threads import run_in_thread
from steering.workflows.comparison.teacher_forcing import divergences, predicting, surprises
from steering.workflows.comparison.text_metrics import repetition
from steering.workflows.evaluation.scorers import SCORERS
from steering.workflows.evaluation.setup import WRITING, ReadBack
from steering.workflows.generate import Answer, attempts, background, mapped, mix, seeded
from steering.workflows.progress import Progress, ignore_progress, progress_of_part

UNSTEERED_SAMPLES = 4
LOGITS_AT_ONCE = 16 * 1024 * 1024
"""Logits held at a time for a prompt, in numbers (64 MB); at least one answer's."""
PROMPTS_AT_ONCE = 2
"""Prompts whose answers are read at a time, so that the engine reads those of one while the measures of the other are computed."""


@dataclass(frozen=True, slots=True)
class AnswerMeasures:
    """One answer as the unsteered model reads it. surprise: mean -log p of its tokens, None where it has none.
    dose: measured relative dose, mean over the layers that were steered, 0 where none was. text: the answer itself."""

    score: float
    surprise: float | None
    repetition: float
    dose: float
    text: str = ""


@dataclass(frozen=True, slots=True)
class Trial:
    """One plan over all prompts, in their order; broken where the plan drove an answer out of range.

    measures: one a prompt, the mean of its answers. answers: each of them, with the index of its prompt.
    """

    measures: tuple[AnswerMeasures, ...] = ()
    answers: tuple[tuple[int, AnswerMeasures], ...] = ()
    broken: NonfiniteActivations | None = field(default=None, compare=False)

    @property
    def scores(self) -> tuple[float, ...]:
        """Returns the mean score of each prompt's answers."""
        return tuple(one.score for one in self.measures)

    @property
    def texts(self) -> tuple[str, ...]:
        """One answer a prompt; of several samples the first."""
        return tuple(one.text for one in self.measures)

    def by_prompt(self, values: Sequence[float]) -> list[float]:
        """Returns the mean over each prompt's answers of one value for each of `answers`."""
        found: list[list[float]] = [[] for _ in self.measures]
        for (prompt, _), value in zip(self.answers, values, strict=True):
            found[prompt].append(value)
        return [fmean(one) for one in found]


@dataclass(frozen=True, slots=True)
class Samples:
    """Answers to each prompt: without steering, and under each plan. All shifts are taken from the unsteered ones.

    earlier: the unsteered trial of a call with the same prompts, seed and reading, which then is not run again.
    """

    unsteered: int = UNSTEERED_SAMPLES
    steered: int = 1
    earlier: Trial | None = None

    @property
    def written(self) -> int:
        """Unsteered answers to each prompt that are still to be written."""
        return 0 if self.earlier else self.unsteered


DEFAULT_SAMPLES = Samples()


async def run_trials(
    engine: Engine,
    prompts: Sequence[Prompt],
    plans: Sequence[SteeringPlan],
    read_back: ReadBack,
    sampling: SamplingParams = WRITING,
    *,
    samples: Samples = DEFAULT_SAMPLES,
    perplexity: bool = True,
    progress: Progress = ignore_progress,
) -> tuple[Trial, tuple[Trial, ...]]:
    """(the unsteered trial, one trial a plan in order). Prompt i has seed s_i = mix(seed, i) under every plan, so plans
    share their noise; sample j has seed mix(s_i, j), and the samples of a prompt are averaged. perplexity:
    whether answers have a surprise; the logits it needs are a third of the work of reading.

    All answers are generated as one background batch, then read, those of PROMPTS_AT_ONCE prompts at a time; cancelling stops
    either at once. progress: twice `trial_answers` steps, since every answer is written and read.
    """
    seeds = [mix(sampling.seed, i) for i in range(len(prompts))]
    rows = [(UNSTEERED, j) for j in range(samples.written)]
    rows += [(plan, j) for plan in plans for j in range(samples.steered)]
    requests = [
        GenerationRequest(prompt, replace(sampling, seed=mix(seed, j)), plan)
        for plan, j in rows
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    total = 2 * len(requests)
    outcomes = await attempts(engine, requests, progress=progress_of_part(progress, 0, total))
    answers = [outcomes[i : i + len(prompts)] for i in range(0, len(outcomes), len(prompts))]
    trials = [
        Trial(broken=next((one for one in row if isinstance(one, NonfiniteActivations)), None)) for row in answers
    ]
    sound = [i for i, trial in enumerate(trials) if trial.broken is None]

    async def read(index: int) -> list[AnswerMeasures]:
        mine = [one for i in sound if isinstance(one := answers[i][index], Answer)]
        return await _measure(engine, engine.tokenizer.encode(prompts[index]), mine, read_back, perplexity=perplexity)

    def report(done: int) -> None:
        progress(len(requests) + done * len(rows), total, "reading answers")

    measures = await mapped(read, range(len(prompts)), PROMPTS_AT_ONCE, report)
    for place, i in enumerate(sound):
        trials[i] = Trial(tuple(found[place] for found in measures))
    unsteered = samples.earlier or _mean_trial(trials[: samples.written])
    if unsteered.broken is not None:
        raise unsteered.broken
    starts = range(samples.written, len(trials), samples.steered)
    return unsteered, tuple(_mean_trial(trials[start : start + samples.steered]) for start in starts)


def trial_answers(plans: int, prompts: int, samples: Samples = DEFAULT_SAMPLES) -> int:
    """How many answers `run_trials` writes, the unsteered ones included."""
    return (plans * samples.steered + samples.written) * prompts


def _mean_trial(trials: Sequence[Trial]) -> Trial:
    """Samples of one plan, averaged prompt by prompt; broken where one of them is."""
    for trial in trials:
        if trial.broken is not None:
            return Trial(broken=trial.broken)
    means = tuple(_mean(samples) for samples in zip(*(trial.measures for trial in trials), strict=True))
    return Trial(means, tuple(place for trial in trials for place in enumerate(trial.measures)))


def _mean(samples: Sequence[AnswerMeasures]) -> AnswerMeasures:
    surprise = [one.surprise for one in samples if one.surprise is not None]
    return AnswerMeasures(
        score=fmean(one.score for one in samples),
        surprise=fmean(surprise) if surprise else None,
        repetition=fmean(one.repetition for one in samples),
        dose=fmean(one.dose for one in samples),
        text=samples[0].text,
    )


async def _measure(
    engine: Engine, prompt: tuple[int, ...], answers: Sequence[Answer], read_back: ReadBack, *, perplexity: bool
) -> list[AnswerMeasures]:
    """One prompt's answers, a few at a time. They are read from the prompt's last position on, which predicts their first token."""
    found: list[AnswerMeasures] = []
    longest, first = 1 + max((len(one.tokens) for one in answers), default=0), len(prompt) - 1
    size = max(1, LOGITS_AT_ONCE // (longest * (engine.info.vocab_size if perplexity else engine.info.d_model)))
    spec = CaptureSpec(layers=(read_back.layer,), position="all", logits=perplexity)
    for start in range(0, len(answers), size):
        part = answers[start : start + size]
        captures = await engine.capture(
            [CapturePrompt(prompt + one.tokens, UNSTEERED, len(prompt), first) for one in part], spec
        )
        for one, capture in zip(part, captures, strict=True):
            found.append(await run_in_thread(_measures, capture, one, read_back))
    return found


def _measures(capture: Capture, answer: Answer, read_back: ReadBack) -> AnswerMeasures:
    """An answer without a token is read at the position that would have predicted its first."""
    count = len(answer.tokens)
    start = 1 if count else 0
    known = count and capture.logits is not None
    surprise = surprises(predicting(capture, count), answer.tokens) if known else ()
    doses = [dose for by_layer in answer.finish.steering.doses for dose in by_layer.values()]
    return AnswerMeasures(
        score=SCORERS[read_back.scorer].score(capture.activations[0, start:], read_back.entry),
        surprise=fmean(surprise) if surprise else None,
        repetition=repetition(answer.tokens),
        dose=fmean(doses) if doses else 0.0,
        text=answer.text,
    )


async def neutral_divergence(
    engine: Engine,
    prompts: Sequence[Prompt],
    plans: Sequence[SteeringPlan],
    sampling: SamplingParams = WRITING,
    *,
    progress: Progress = ignore_progress,
) -> tuple[float, ...]:
    """Mean KL(plan || unsteered) per token, along the unsteered model's own answers to neutral prompts: what a plan
    changes where nobody asked for the concept. The logits of one plan and of no plan are held at a time, for one prompt.
    """
    answers = await background(engine, seeded(prompts, sampling))
    values: list[list[float]] = [[] for _ in plans]
    for done, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), start=1):
        ids, known = await run_in_thread(encode_with_plans, engine.tokenizer, prompt, plans)
        found = await _divergences(engine, ids, answer.tokens, known)
        for into, one in zip(values, found, strict=True):
            into.extend(one)
        progress(done, len(prompts), "reading neutral text")
    return tuple(fmean(one) if one else 0.0 for one in values)


async def _divergences(
    engine: Engine, prompt: tuple[int, ...], tokens: tuple[int, ...], plans: Sequence[SteeringPlan]
) -> list[tuple[float, ...]]:
    """KL per token of each plan along one text."""
    spec, first = CaptureSpec(layers=(), logits=True), len(prompt) - 1
    unsteered = plans[0].unsteered if plans else UNSTEERED
    (plain,) = await engine.capture([CapturePrompt(prompt + tokens, unsteered, len(prompt), first)], spec)
    reference, found = predicting(plain, len(tokens)), []
    for plan in plans:
        if plan.empty:
            found.append((0.0,) * len(tokens))
            continue
        (steered,) = await engine.capture([CapturePrompt(prompt + tokens, plan, len(prompt), first)], spec)
        found.append(await run_in_thread(divergences, predicting(steered, len(tokens)), reference))
    return found
