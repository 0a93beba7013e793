"""Judges steering at a fixed operating point: three gates with stated thresholds, side effects, and the texts, for two seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isnan
from statistics import fmean
from typing import TypeAlias

from scipy.stats import spearmanr

from steering.engine.api import Engine, Prompt, SamplingParams
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.quality import Estimate
from steering.schemas.evaluation.report import ThresholdsFields
from steering.workflows.comparison.text_metrics import estimate
from steering.workflows.evaluation.judge import instruction_of
from steering.workflows.evaluation.setup import ReadBack, read_back
from steering.workflows.evaluation.statistics import chance, mean_shifts
from steering.workflows.evaluation.trials import UNSTEERED_SAMPLES, Samples, Trial, neutral_divergence, run_trials
from steering.workflows.generate import mix
from steering.workflows.progress import Progress, ignore_progress
from steering.workflows.reporting.alternatives import fewer_pairs_plan, random_plans
from steering.workflows.reporting.gates import (
    Check,
    Gate,
    above,
    along,
    at_least,
    control_gate,
    robustness_gate,
    utility_gate,
)
from steering.workflows.reporting.questions import accuracy, load_questions
from steering.workflows.reporting.reading import SideEffect, side_effects
from steering.workflows.reporting.results import Report, ReportRequest, ReportText, SeedReport, Unsteered
from steering.workflows.reporting.variations import VARIATIONS

CONTROLS = 4
"""Random directions of each seed. A seed has its own, whichever others are judged, and one bound of chance is estimated from all."""
FEWER = "fewer_pairs"
PLAIN = "plain"
STEPS = 4 + len(VARIATIONS)
"""Of progress, for each seed."""

Step: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """A request with what all seeds share. fewer: the plan of a vector from half of the pairs."""

    engine: Engine
    request: ReportRequest
    unsteered: Unsteered
    reading: ReadBack
    fewer: SteeringPlan | None
    accuracy: tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """What the answers of one seed showed. moved: shift of each prompt along the direction, none where activations became
    non-finite. random: mean shift of each random steering. independent: checks of the second model."""

    seed: int
    random: tuple[float, ...]
    moved: tuple[float, ...] = ()
    independent: tuple[Check, ...] = ()
    utility: Gate | None = None
    varied: tuple[tuple[str, Estimate], ...] = ()
    side_effects: tuple[SideEffect, ...] = ()
    texts: tuple[ReportText, ...] = ()


async def report(
    engine: Engine, request: ReportRequest, *, unsteered: Unsteered | None = None, progress: Progress = ignore_progress
) -> Report:
    """Runs all gates for each seed. unsteered: of earlier reports that share it. Cancelling stops it at once. Raises what
    `read_back` raises."""
    done, parts = 0, 2 + len(request.seeds) * STEPS

    def step(message: str) -> None:
        nonlocal done
        progress(min(done, parts), parts, message)
        done += 1

    step("asking questions")
    reading = read_back(engine, request.vector, request.reader, request.reading_layer, request.scorer)
    plan, questions, unsteered = request.plan, load_questions(), unsteered or Unsteered()
    if unsteered.accuracy is None:
        unsteered.accuracy = await accuracy(engine, questions, UNSTEERED)
    known = unsteered.accuracy, await accuracy(engine, questions, plan)
    step("making plans")
    fewer = None
    if request.pairs is not None:
        fewer = await fewer_pairs_plan(engine, request.vector, request.pairs, plan, request.vectors)
    work = _Work(engine, request, unsteered, reading, fewer, known)
    measured = [await _measured(work, seed, step) for seed in request.seeds]
    random = {one.seed: one.random for one in measured}  # a seed that is named twice has the same directions
    bound = chance([shift for shifts in random.values() for shift in shifts])
    found = tuple(_judged(one, bound, request.thresholds) for one in measured)
    progress(parts, parts, "done")
    return Report(request.direction, reading.layer, found, request.thresholds, _warnings(work, bound))


def plain_samples(count: int) -> Samples:
    """Answers to each prompt as it is, where `count` are asked for. Many plans are compared with the unsteered ones, so these are no
    fewer than elsewhere."""
    return Samples(max(UNSTEERED_SAMPLES, count), count)


def _warnings(work: _Work, bound: float | None) -> tuple[str, ...]:
    warnings = list(work.request.plan.warnings)
    if bound is None:
        warnings.append(
            "no random controls, so the shift is compared with 0: they are made for unconditional adds only, and those that "
            "make activations non-finite do not count"
        )
    if work.fewer is None:
        warnings.append("not checked with fewer pairs: the pairs of the vector are not those of a starter concept")
    return tuple(warnings)


def _judged(found: _Measured, bound: float | None, limits: ThresholdsFields) -> SeedReport:
    if found.utility is None:
        return SeedReport(found.seed, (), estimate((0.0,)), bound, (), (), broken=True)
    control = control_gate(found.moved, bound, limits)
    gates = (
        Gate("control", (*control.checks, *found.independent)),
        found.utility,
        robustness_gate(fmean(found.moved), found.varied, limits),
    )
    return SeedReport(found.seed, gates, estimate(found.moved), bound, found.side_effects, found.texts)


async def _measured(work: _Work, seed: int, step: Step) -> _Measured:
    request, engine = work.request, work.engine
    step(f"seed {seed}: control")
    numbers = range(seed * CONTROLS + 1, (seed + 1) * CONTROLS + 1)
    controls = await random_plans(engine.info, request.plan, request.vectors, numbers)
    plans = (request.plan, *controls, *(() if work.fewer is None else (work.fewer,)))
    sampling = replace(request.sampling, seed=seed)
    unsteered, (trial, *others) = await _trials(
        work, PLAIN, request.prompts, plans, sampling, plain_samples(request.samples)
    )
    random = mean_shifts(unsteered, others[: len(controls)])
    if trial.broken is not None:
        return _Measured(seed, random)
    step(f"seed {seed}: utility")
    (kl,) = await neutral_divergence(engine, request.neutral, [request.plan], sampling)
    utility = utility_gate(trial, unsteered, kl, work.accuracy, request.thresholds)
    texts = _texts(work, PLAIN, request.prompts, unsteered, trial)
    varied = []
    if work.fewer is not None and others[-1].broken is None:
        varied.append((FEWER, estimate(along(others[-1], unsteered, request.direction))))
    for name in VARIATIONS:
        step(f"seed {seed}: {name}")
        changed = request.prompts[: request.varied]
        prompts = tuple(VARIATIONS[name](prompt, mix(seed, n)) for n, prompt in enumerate(changed))
        samples = Samples(request.samples, request.samples)
        plain, (steered,) = await _trials(work, name, prompts, (request.plan,), sampling, samples)
        if steered.broken is None:
            varied.append((name, estimate(along(steered, plain, request.direction))))
            texts += _texts(work, name, prompts, plain, steered)
    step(f"seed {seed}: side effects")
    effects = await side_effects(engine, request.readers, request.prompts, unsteered, trial)
    independent = await _independent(work, unsteered, trial)
    step(f"seed {seed}: done")
    moved = along(trial, unsteered, request.direction)
    return _Measured(seed, random, moved, independent, utility, tuple(varied), effects, texts)


async def _trials(
    work: _Work,
    name: str,
    prompts: Sequence[Prompt],
    plans: Sequence[SteeringPlan],
    sampling: SamplingParams,
    samples: Samples,
) -> tuple[Trial, tuple[Trial, ...]]:
    """Runs the trials of one variation. The unsteered one is shared with other reports."""
    shared, key = work.unsteered.trials, (sampling.seed, name)
    shared[key], trials = await run_trials(
        work.engine,
        prompts,
        plans,
        work.reading,
        sampling,
        samples=replace(samples, earlier=shared.get(key)),
        perplexity=name == PLAIN,
    )
    return shared[key], trials


def _texts(
    work: _Work, name: str, prompts: Sequence[Prompt], unsteered: Trial, steered: Trial
) -> tuple[ReportText, ...]:
    moved = along(steered, unsteered, work.request.direction)
    return tuple(
        ReportText(name, instruction_of(prompt, work.engine.tokenizer), before, after, shift)
        for prompt, before, after, shift in zip(prompts, unsteered.texts, steered.texts, moved, strict=True)
    )


async def _independent(work: _Work, unsteered: Trial, steered: Trial) -> tuple[Check, ...]:
    """The checks of another model that reads all answers: that they moved, and that its scores rank them as ours do."""
    scorer, limits = work.request.independent, work.request.thresholds
    if scorer is None:
        return ()
    asked = [instruction_of(prompt, work.engine.tokenizer) for prompt in work.request.prompts]
    ours, theirs, means = list[float](), list[float](), list[list[float]]()
    for trial in (unsteered, steered):
        found = await scorer.score([asked[n] for n, _ in trial.answers], [one.text for _, one in trial.answers])
        ours += [one.score for _, one in trial.answers]
        theirs += found
        means.append(trial.by_prompt(found))
    moved = [work.request.direction * (after - before) for before, after in zip(*means, strict=True)]
    ranks = float(spearmanr(ours, theirs).statistic)
    return (
        above(f"shift.{scorer.name}", estimate(moved), 0.0),
        at_least(f"agreement.{scorer.name}", 0.0 if isnan(ranks) else ranks, limits.agreement),
    )
