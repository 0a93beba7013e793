"""Deployment reports: steering at a fixed operating point, judged by three gates with stated thresholds, for each seed."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isnan
from statistics import fmean
from typing import TypeAlias

from scipy.stats import spearmanr

from steering.cards import Estimate
from steering.engine.api import Engine, Prompt, SamplingParams
from steering.lab.controls import fewer_pairs_plan, random_plans
from steering.lab.judge import instruction_of
from steering.lab.questions import accuracy, load_questions
from steering.lab.text_scores import OtherModelScorer, side_effects
from steering.lab.trials import (
    UNSTEERED_SAMPLES,
    WRITING,
    ReadBack,
    Samples,
    Trial,
    chance,
    mean_shifts,
    neutral_divergence,
    perplexity_ratio,
    read_back,
    run_trials,
    shifts,
)
from steering.pairs import ChatMessage, PairSet
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.schemas.evaluation import (
    CheckAnswer,
    GateAnswer,
    ReportAnswer,
    ReportTextAnswer,
    SeedReportAnswer,
    SideEffectAnswer,
    ThresholdsFields,
)
from steering.spec_base import Interval
from steering.vectors import ConceptVector
from steering.workflows.generate import Progress, ignore_progress, mix
from steering.workflows.measures import estimate

TYPOS = 0.08
"""Share of the letters that are exchanged with the next one."""
_LOOKALIKES = str.maketrans({"e": "3", "o": "0", "i": "1", "a": "4"})
CONTROLS = 4
"""Random directions of each seed. A seed has its own, whichever others are judged, and one bound of chance is estimated from all."""
FEWER = "fewer_pairs"
PLAIN = "plain"


def at_most(name: str, value: float, threshold: float, interval: Interval | None = None) -> CheckAnswer:
    """Passes where the value is no larger."""
    return CheckAnswer(
        name=name, value=value, relation="at_most", threshold=threshold, passed=value <= threshold, interval=interval
    )


def at_least(name: str, value: float, threshold: float, interval: Interval | None = None) -> CheckAnswer:
    """Passes where the value is no smaller."""
    return CheckAnswer(
        name=name, value=value, relation="at_least", threshold=threshold, passed=value >= threshold, interval=interval
    )


def above(name: str, found: Estimate, threshold: float) -> CheckAnswer:
    """Passes where the whole interval is above."""
    low = found.mean if found.interval is None else found.interval[0]
    return CheckAnswer(
        name=name,
        value=found.mean,
        relation="above",
        threshold=threshold,
        passed=low > threshold,
        interval=found.interval,
    )


def along(trial: Trial, unsteered: Trial, direction: int) -> tuple[float, ...]:
    """The shift of each prompt's answer along the direction (1 or -1) in which the concept is meant to move."""
    return tuple(direction * shift for shift in shifts(trial, unsteered))


def control_checks(moved: Sequence[float], chance: float | None, limits: ThresholdsFields) -> list[CheckAnswer]:
    """moved: shift of each prompt along the direction. chance: what one random steering in twenty reaches; None: not known."""
    against = fmean(shift < 0.0 for shift in moved)
    return [above("shift", estimate(moved), chance or 0.0), at_most("anti_steered", against, limits.anti_steered)]


def utility_checks(
    trial: Trial, unsteered: Trial, kl_neutral: float, accuracy: tuple[float, float], limits: ThresholdsFields
) -> list[CheckAnswer]:
    """The checks of the answers themselves, of neutral prompts and of the questions, which were answered unsteered and steered."""
    dearer = perplexity_ratio(trial, unsteered)
    repeated = fmean(one.repetition for one in trial.measures) - fmean(one.repetition for one in unsteered.measures)
    return [
        at_most("perplexity_ratio", dearer.mean, limits.perplexity, dearer.interval),
        at_most("repetition_increase", repeated, limits.repetition),
        at_most("kl_neutral", kl_neutral, limits.kl_neutral),
        at_most("accuracy_loss", accuracy[0] - accuracy[1], limits.accuracy_loss),
    ]


def robustness_checks(
    plain: float, varied: Sequence[tuple[str, Estimate]], limits: ThresholdsFields
) -> list[CheckAnswer]:
    """plain: mean shift along the direction on the prompts as they are; varied: the same under each variation.

    Where the plain prompts do not move at all, nothing can be retained and every check fails.
    """
    checks = []
    for name, found in varied:
        share, interval = 0.0, None
        if plain > 0.0:
            share = found.mean / plain
            interval = found.interval and (found.interval[0] / plain, found.interval[1] / plain)
        checks.append(at_least(f"retained.{name}", share, limits.retained, interval))
    return checks


@dataclass(slots=True, eq=False)
class Unsteered:
    """What the unsteered model does, for reports with the same prompts, seeds, sampling and reader: each adds what it measures.

    accuracy: share of the questions answered rightly. trials: by seed and variation.
    """

    accuracy: float | None = None
    trials: dict[tuple[int, str], Trial] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class ReportRequest:
    """What is judged. vector: whose concept is to move, and which reads the answers unless `reader` is given.

    plan: the operating point, any steering. vectors: those it names, by `name@version`. direction: 1 or -1, how the concept is
    meant to move. pairs: what the vector was extracted from, for the check with fewer of them; None: not checked. varied: prompts
    under each variation, the first ones. samples: answers to each prompt under each steering, averaged. readers: for the side
    effects. seeds: each is judged on its own.
    """

    vector: ConceptVector
    plan: SteeringPlan
    vectors: Mapping[str, ConceptVector]
    prompts: tuple[Prompt, ...]
    neutral: tuple[Prompt, ...]
    direction: int = 1
    reader: ConceptVector | None = None
    reading_layer: int | None = None
    scorer: str = "projection"
    sampling: SamplingParams = WRITING
    seeds: tuple[int, ...] = (0, 1)
    varied: int = 12
    samples: int = 1
    pairs: PairSet | None = None
    readers: Mapping[str, ConceptVector] = field(default_factory=dict)
    independent: OtherModelScorer | None = None
    thresholds: ThresholdsFields = field(default_factory=ThresholdsFields)


Change: TypeAlias = Callable[[Prompt, int], Prompt]
"""(prompt, seed) -> the varied prompt."""


def _in_words(change: Callable[[str, int], str]) -> Change:
    """Applies a change of text to a plain prompt, or to the last message of the user."""

    def changed(prompt: Prompt, seed: int) -> Prompt:
        if isinstance(prompt, str):
            return change(prompt, seed)
        messages = [one for one in prompt if isinstance(one, ChatMessage)]
        last = max((n for n, one in enumerate(messages) if one.role == "user"), default=None)
        if last is None:
            return prompt
        messages[last] = ChatMessage("user", change(messages[last].content, seed))
        return tuple(messages)

    return changed


def _typos(text: str, seed: int) -> str:
    rng, letters = random.Random(seed), list(text)  # noqa: S311 - reproducible typos
    for index in range(len(letters) - 1):
        if letters[index].isalpha() and letters[index + 1].isalpha() and rng.random() < TYPOS:
            letters[index], letters[index + 1] = letters[index + 1], letters[index]
    return "".join(letters)


def _role(role: str) -> Change:
    """Puts a system message before a conversation, or the same words before a plain prompt."""

    def changed(prompt: Prompt, _seed: int) -> Prompt:
        if isinstance(prompt, str):
            return f"{role}\n\n{prompt}"
        messages = [one for one in prompt if isinstance(one, ChatMessage)]
        return (ChatMessage("system", role), *(one for one in messages if one.role != "system"))

    return changed


VARIATIONS: Mapping[str, Change] = {
    "paraphrase_before": _in_words(lambda text, _: f"I have a request. {text}"),
    "paraphrase_after": _in_words(lambda text, _: f"{text} Please answer in two or three sentences."),
    "role": _role("You are a librarian who answers the readers of a small town library."),
    "typos": _in_words(_typos),
    "lookalikes": _in_words(lambda text, _: text.translate(_LOOKALIKES)),
    "upper_case": _in_words(lambda text, _: text.upper()),
}
"""Name -> how prompts are changed. `lookalikes` writes digits for letters."""
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
    independent: tuple[CheckAnswer, ...] = ()
    utility: Sequence[CheckAnswer] | None = None
    varied: tuple[tuple[str, Estimate], ...] = ()
    side_effects: Sequence[SideEffectAnswer] = ()
    texts: Sequence[ReportTextAnswer] = ()


async def report(
    engine: Engine, request: ReportRequest, *, unsteered: Unsteered | None = None, progress: Progress = ignore_progress
) -> ReportAnswer:
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
    seeds = [_judged(one, bound, request.thresholds) for one in measured]
    progress(parts, parts, "done")
    return ReportAnswer(
        vector=request.vector.id,
        interventions=list(plan.spec.interventions[: plan.own]),
        fingerprint=plan.fingerprint,
        model=engine.info.name,
        direction="up" if request.direction > 0 else "down",
        reading_layer=reading.layer,
        passed=all(seed.passed for seed in seeds),
        seeds_agree=agree(seeds),
        seeds=seeds,
        thresholds=request.thresholds,
        warnings=_warnings(work, bound),
    )


def agree(seeds: Sequence[SeedReportAnswer]) -> bool:
    """Returns whether the seeds pass and fail the same gates."""
    return len({tuple((gate.name, gate.passed) for gate in seed.gates) for seed in seeds}) == 1


def plain_samples(count: int) -> Samples:
    """Answers to each prompt as it is, where `count` are asked for. Many plans are compared with the unsteered ones, so these are no
    fewer than elsewhere."""
    return Samples(max(UNSTEERED_SAMPLES, count), count)


def _warnings(work: _Work, bound: float | None) -> list[str]:
    warnings = list(work.request.plan.warnings)
    if bound is None:
        warnings.append(
            "no random controls, so the shift is compared with 0: they are made for unconditional adds only, and those that "
            "make activations non-finite do not count"
        )
    if work.fewer is None:
        warnings.append("not checked with fewer pairs: the pairs of the vector are not those of a starter concept")
    if work.request.independent is not None:
        warnings.append(work.request.independent.evidence)
    return warnings


def _judged(measured: _Measured, bound: float | None, limits: ThresholdsFields) -> SeedReportAnswer:
    gates: list[GateAnswer] = []
    if measured.utility is not None:
        control = [*control_checks(measured.moved, bound, limits), *measured.independent]
        robustness = robustness_checks(fmean(measured.moved), measured.varied, limits)
        gates = [
            GateAnswer(name="control", passed=_passed(control), checks=control),
            GateAnswer(name="utility", passed=_passed(measured.utility), checks=list(measured.utility)),
            GateAnswer(name="robustness", passed=_passed(robustness), checks=robustness),
        ]
    return SeedReportAnswer(
        seed=measured.seed,
        passed=bool(gates) and all(gate.passed for gate in gates),
        broken=measured.utility is None,
        moved=estimate(measured.moved or (0.0,)),
        chance=bound,
        gates=gates,
        side_effects=list(measured.side_effects),
        texts=list(measured.texts),
    )


def _passed(checks: Sequence[CheckAnswer]) -> bool:
    return all(check.passed for check in checks)


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
    utility = utility_checks(trial, unsteered, kl, work.accuracy, request.thresholds)
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
) -> list[ReportTextAnswer]:
    moved = along(steered, unsteered, work.request.direction)
    return [
        ReportTextAnswer(
            variation=name,
            prompt=instruction_of(prompt, work.engine.tokenizer),
            unsteered=before,
            steered=after,
            moved=shift,
        )
        for prompt, before, after, shift in zip(prompts, unsteered.texts, steered.texts, moved, strict=True)
    ]


async def _independent(work: _Work, unsteered: Trial, steered: Trial) -> tuple[CheckAnswer, ...]:
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
