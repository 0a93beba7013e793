"""Trials: many plans over the same prompts and noise, read by the unsteered model, and the statistics of both."""

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from math import sqrt
from statistics import fmean
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from pydantic import TypeAdapter
from scipy.special import stdtrit

from steering import __version__
from steering.auroc import Numbers
from steering.cards import Estimate, Recommended
from steering.concepts.loader import load_neutral
from steering.engine.api import Capture, CapturePrompt, CaptureSpec, Engine, GenerationRequest, Prompt, SamplingParams
from steering.errors import InvalidRequest, NonfiniteActivations
from steering.extraction.card import best_layer
from steering.plan.edits import digest
from steering.plan.resolve import check_model
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.registry import Registry
from steering.schemas.evaluation import Arm, EvaluatedPoint, ScoresAnswer
from steering.shapes import Residual
from steering.spec import Interval
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, LayerDirection, mix
from steering.workflows import generate
from steering.workflows.generate import Answer, Progress, ignore_progress, progress_of_part
from steering.workflows.measures import estimate, finite_exp, predicting, repetition, surprises
from steering.workflows.texts import as_prompts

V = TypeVar("V")
WRITING = SamplingParams(max_tokens=48, temperature=0.7)
"""Warm enough that prompts stand for more than one text each, cool enough to be the text people read."""
UNSTEERED_SAMPLES = 4
CONTROLS = 8
"""Random directions, at least, from which `chance` is estimated."""
LOGITS_AT_ONCE = 16 * 1024 * 1024
"""Logits held at a time for a prompt, in numbers (64 MB); at least one answer's."""
ANSWERS_AT_ONCE = 128
"""Answers that are written before they are read, and kept as one part where work can be interrupted."""
PROMPTS_AT_ONCE = 2
"""Prompts whose answers are read at a time, so that the engine reads those of one while the measures of the other are computed."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """Scores the unsteered model's activations (token, d_model) at an answer's tokens. unit: of a score of 1."""

    unit: str
    score: Callable[[Residual, LayerDirection], float]


def _probability(activations: Residual, entry: LayerDirection) -> float:
    """Averages sigmoid(weight * (r . d) + bias) over the tokens."""
    assert entry.weight is not None, "see read_back"
    assert entry.bias is not None, "see read_back"
    return float(torch.sigmoid(entry.weight * (activations @ entry.direction) + entry.bias).mean())


SCORERS: Registry[Scorer] = Registry(
    "scorer",
    {
        # (r . d - m) / kappa: the poles lie at +0.5 and -0.5
        "projection": Scorer("natural scales", lambda r, d: (float((r @ d.direction).mean()) - d.middle) / d.scale),
        "probe": Scorer("probability", _probability),
    },
)


@dataclass(frozen=True, slots=True, eq=False)
class ReadBack:
    """Where and how an answer's concept is read: the unsteered model at `layer`, along the direction of `entry`."""

    layer: int
    entry: LayerDirection
    scorer: str = "projection"


def read_back(
    engine: Engine, vector: ConceptVector, reader: ConceptVector | None, layer: int | None, scorer: str
) -> ReadBack:
    """Resolves the reader (None: the vector) and its layer (None: where it reads best). Raises VectorModelMismatch, and
    InvalidRequest for a layer or scorer that does not exist or a probe that was not fitted."""
    reading = reader or vector
    for one in (vector, reading):
        check_model(one, engine.info)
    if layer is None:
        layer = reading_layer(reading, engine.info.layer_count)
    entry = reading.at(layer)
    SCORERS[scorer]  # refuses an unknown name
    if scorer == "probe" and (entry.weight is None or entry.bias is None):
        raise InvalidRequest(f"vector {reading.name!r} has no probe at layer {layer}", param="scorer")
    return ReadBack(layer, entry, scorer)


def reading_layer(vector: ConceptVector, layer_count: int) -> int:
    """Returns the layer where the card reads best; without measurements, the layer the vector steers at."""
    card = vector.quality
    return best_layer(card.layers, layer_count) if card and card.layers else vector.recommended_layers()[0]


def evaluation_prompts(
    engine: Engine, given: tuple[Prompt, ...] | None, count: int, first: int = 0
) -> tuple[Prompt, ...]:
    """Returns the given prompts, or `count` of the package's neutral ones from `first` on."""
    return as_prompts(engine, load_neutral()[first : first + count]) if given is None else given


@dataclass(frozen=True, slots=True)
class AnswerMeasures:
    """One answer as the unsteered model reads it. surprise: mean -log p of its tokens. dose: mean over steered layers."""

    score: float
    surprise: float | None
    repetition: float
    dose: float
    text: str = ""


@dataclass(frozen=True, slots=True)
class Trial:
    """One plan over all prompts, in their order. measures: one a prompt, the mean of its answers. answers: each of
    them, with the index of its prompt. broken: the error where the plan drove an answer out of range."""

    measures: tuple[AnswerMeasures, ...] = ()
    answers: tuple[tuple[int, AnswerMeasures], ...] = ()
    broken: NonfiniteActivations | None = field(default=None, compare=False)

    @property
    def scores(self) -> tuple[float, ...]:
        """Returns the mean score of each prompt's answers."""
        return tuple(one.score for one in self.measures)

    @property
    def texts(self) -> tuple[str, ...]:
        """Returns one answer a prompt; of several samples the first."""
        return tuple(one.text for one in self.measures)

    def mean(self, name: str) -> float:
        """Returns the mean over the prompts of one measure."""
        return fmean(getattr(one, name) for one in self.measures)

    def rows(self, values: Iterable[V]) -> list[list[V]]:
        """Returns a row for each prompt of one value for each of `answers`."""
        found: list[list[V]] = [[] for _ in self.measures]
        for (prompt, _), value in zip(self.answers, values, strict=True):
            found[prompt].append(value)
        return found

    def by_prompt(self, values: Sequence[float]) -> list[float]:
        """Returns the mean over each prompt's answers of one value for each of `answers`."""
        return [fmean(one) for one in self.rows(values)]

    def answer(self, arm: Arm, **place: Any) -> ScoresAnswer:
        """Returns the score and the surprise of every answer. place: other fields of ScoresAnswer."""
        scores = self.rows(one.score for _, one in self.answers)
        surprises = self.rows(one.surprise for _, one in self.answers)
        return ScoresAnswer(arm=arm, scores=scores, surprises=surprises, **place)


@dataclass(frozen=True, slots=True)
class Samples:
    """Answers to each prompt, unsteered and under each plan. perplexity: measures surprise, a third of the work."""

    unsteered: int = UNSTEERED_SAMPLES
    steered: int = 1
    perplexity: bool = True


DEFAULT_SAMPLES = Samples()


class Checkpoints(Protocol):
    """Keeps parts of long work as texts, so that work that was interrupted goes on where it stopped."""

    async def load(self, key: str) -> str | None:
        """Returns what was saved under a key."""

    async def save(self, key: str, content: str) -> None:
        """Saves a part, if there is room."""


_MEASURES: TypeAdapter[list[tuple[AnswerMeasures, ...] | str]] = TypeAdapter(list[tuple[AnswerMeasures, ...] | str])
"""Of each row of a part its measures, or the message of the error where it broke."""


async def run_trials(
    engine: Engine,
    prompts: Sequence[Prompt],
    plans: Sequence[SteeringPlan],
    read_back: ReadBack,
    sampling: SamplingParams = WRITING,
    *,
    samples: Samples = DEFAULT_SAMPLES,
    checkpoints: Checkpoints | None = None,
    progress: Progress = ignore_progress,
) -> tuple[Trial, tuple[Trial, ...]]:
    """Returns the unsteered trial, and one trial a plan in order. Progress has two steps an answer: written and read.

    Prompt i has seed s_i = mix(seed, i) under every plan, so plans share their noise; sample j has mix(s_i, j). Answers
    are written in background batches of ANSWERS_AT_ONCE, then read. checkpoints: keep finished parts.
    """
    rows = [(UNSTEERED, j) for j in range(samples.unsteered)]
    rows += [(plan, j) for plan in plans for j in range(samples.steered)]
    size, total = max(1, ANSWERS_AT_ONCE // len(prompts)), 2 * len(rows) * len(prompts)
    trials: list[Trial] = []
    for start in range(0, len(rows), size):
        part = _Part(engine, prompts, rows[start : start + size], read_back, sampling, samples.perplexity)
        running = progress_of_part(progress, 2 * start * len(prompts), total)
        key = part.key() if checkpoints else ""
        known = await checkpoints.load(key) if checkpoints else None
        if known is None:
            found = await part.run(running)
            if checkpoints:
                content = [str(one.broken.message) if one.broken else one.measures for one in found]
                await checkpoints.save(key, _MEASURES.dump_json(content).decode())
        else:
            kept = _MEASURES.validate_json(known)
            found = [Trial(broken=NonfiniteActivations(one)) if isinstance(one, str) else Trial(one) for one in kept]
            running(2 * len(found) * len(prompts), total, "read from the interrupted work")
        trials += found
    unsteered = _mean_trial(trials[: samples.unsteered])
    if unsteered.broken is not None:
        raise unsteered.broken
    starts = range(samples.unsteered, len(trials), samples.steered)
    return unsteered, tuple(_mean_trial(trials[start : start + samples.steered]) for start in starts)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Rows of trials, each a plan and the number of the sample, over all prompts."""

    engine: Engine
    prompts: Sequence[Prompt]
    rows: Sequence[tuple[SteeringPlan, int]]
    read_back: ReadBack
    sampling: SamplingParams
    perplexity: bool

    def key(self) -> str:
        """Returns a digest of everything that decides the result."""
        info, entry = self.engine.info, self.read_back.entry
        parts = (
            (__version__, info.fingerprint, info.dtype, info.device, self.perplexity, self.prompts, self.sampling),
            [(plan.fingerprint, sample) for plan, sample in self.rows],
            (self.read_back.layer, self.read_back.scorer, digest(entry.direction)),
            (entry.scale, entry.middle, entry.weight, entry.bias),
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    async def run(self, progress: Progress) -> list[Trial]:
        """Generates the answers and reads them."""
        prompts = self.prompts
        requests = [
            GenerationRequest(prompt, replace(self.sampling, seed=mix(mix(self.sampling.seed, i), sample)), plan)
            for plan, sample in self.rows
            for i, prompt in enumerate(prompts)
        ]
        outcomes = await generate.attempts(self.engine, requests, progress=progress)
        answers = [outcomes[i : i + len(prompts)] for i in range(0, len(outcomes), len(prompts))]
        trials = [
            Trial(broken=next((one for one in row if isinstance(one, NonfiniteActivations)), None)) for row in answers
        ]
        sound = [i for i, trial in enumerate(trials) if trial.broken is None]

        async def read(index: int) -> list[AnswerMeasures]:
            mine = [one for i in sound if isinstance(one := answers[i][index], Answer)]
            prompt = self.engine.tokenizer.encode(prompts[index])
            return await _measure(self.engine, prompt, mine, self.read_back, perplexity=self.perplexity)

        def report(done: int) -> None:
            progress(len(requests) + done * len(self.rows), 2 * len(requests), "reading answers")

        measures = await generate.mapped(read, range(len(prompts)), PROMPTS_AT_ONCE, report)
        for place, i in enumerate(sound):
            trials[i] = Trial(tuple(found[place] for found in measures))
        return trials


def trial_answers(plans: int, prompts: int, samples: Samples = DEFAULT_SAMPLES) -> int:
    """Returns how many answers `run_trials` writes, the unsteered ones included."""
    return (plans * samples.steered + samples.unsteered) * prompts


def _mean_trial(trials: Sequence[Trial]) -> Trial:
    """Averages samples of one plan prompt by prompt; broken where one of them is."""
    broken = next((trial.broken for trial in trials if trial.broken is not None), None)
    if broken is not None:
        return Trial(broken=broken)
    means = []
    for samples in zip(*(trial.measures for trial in trials), strict=True):
        one, surprise = Trial(samples), [answer.surprise for answer in samples if answer.surprise is not None]
        found = one.mean("score"), fmean(surprise) if surprise else None, one.mean("repetition"), one.mean("dose")
        means.append(AnswerMeasures(*found, text=samples[0].text))
    return Trial(tuple(means), tuple(place for trial in trials for place in enumerate(trial.measures)))


async def _measure(
    engine: Engine, prompt: tuple[int, ...], answers: Sequence[Answer], read_back: ReadBack, *, perplexity: bool
) -> list[AnswerMeasures]:
    """Measures one prompt's answers, a few at a time, from the position on that predicts their first token."""
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
    """Reads an answer; one without a token at the position that would have predicted its first."""
    count = len(answer.tokens)
    known = count and capture.logits is not None
    surprise = surprises(predicting(capture, count), answer.tokens) if known else ()
    doses = [dose for by_layer in answer.finish.steering.doses for dose in by_layer.values()]
    return AnswerMeasures(
        score=SCORERS[read_back.scorer].score(capture.activations[0, min(count, 1) :], read_back.entry),
        surprise=fmean(surprise) if surprise else None,
        repetition=repetition(answer.tokens),
        dose=fmean(doses) if doses else 0.0,
        text=answer.text,
    )


def shifts(trial: Trial, unsteered: Trial) -> tuple[float, ...]:
    """Returns the score of each prompt's answer minus that of the unsteered answer with the same noise."""
    return tuple(one - other for one, other in zip(trial.scores, unsteered.scores, strict=True))


def perplexity_ratio(trial: Trial, unsteered: Trial) -> Estimate:
    """Estimates exp of the mean over prompts of (surprise - surprise of the unsteered answer); 1 without tokens. No interval unless
    most prompts have tokens in both: answers that end before they begin are not shown to be coherent."""
    differences = [
        one.surprise - other.surprise
        for one, other in zip(trial.measures, unsteered.measures, strict=True)
        if one.surprise is not None and other.surprise is not None
    ]
    if not differences:
        return Estimate(1.0, None)
    found, most = estimate(differences), 2 * len(differences) > len(trial.measures)
    interval = (finite_exp(found.interval[0]), finite_exp(found.interval[1])) if found.interval and most else None
    return Estimate(finite_exp(found.mean), interval)


def mean_shifts(unsteered: Trial, controls: Sequence[Trial]) -> tuple[float, ...]:
    """Returns the mean over the prompts of the shift under each control that is not broken."""
    return tuple(fmean(shifts(control, unsteered)) for control in controls if control.broken is None)


def chance(moved: Mapping[float, Sequence[float]], tests: float = 1.0) -> dict[float, float]:
    """Returns by strength how far the next random direction moves the score in one case of twenty, shared by `tests`
    claims.

    moved: strength -> mean shifts of K random directions. Strengths s and -s estimate one mean square, which is taken
    to grow with |s|: isotonic regression (Barlow et al., Statistical Inference under Order Restrictions, 1972),
    weighted by K. The bound is Student's quantile 1 - 0.05 / tests with K degrees of freedom times its root; none
    beyond the largest strength that has shifts.
    """
    from scipy.optimize import isotonic_regression  # noqa: PLC0415 - takes a third of a second to import

    by_dose: dict[float, list[Sequence[float]]] = {}
    for strength, found in moved.items():
        if found:
            by_dose.setdefault(abs(strength), []).append(found)
    if not by_dose:
        return {}
    doses = sorted(by_dose)
    shifted = [np.concatenate(by_dose[dose]) for dose in doses]
    fitted = isotonic_regression([np.square(one).mean() for one in shifted], weights=[len(one) for one in shifted]).x
    quantiles = [float(stdtrit(max(map(len, by_dose[dose])), 1.0 - 0.05 / tests)) for dose in doses]
    return {
        one: quantiles[bisect_left(doses, abs(one))] * sqrt(np.interp(abs(one), doses, fitted))
        for one in moved
        if abs(one) <= doses[-1]
    }


def independent_claims(moved: Mapping[float, Numbers]) -> float:
    """Returns as how many independent claims the strengths count, summed over the sides of 0. moved: strength -> shifts
    (direction, prompt).

    S strengths of a side count as 1 + (S - 1)(1 - mean r_ij^2) (Nyholt, American Journal of Human Genetics 74, 2004),
    with r_ij the correlation over K directions of their mean shifts, uncentred and without the noise of the prompts; (K
    r^2 - 1) / (K - 1) estimates its square without bias. A strength at which some directions broke counts as a claim of
    its own.
    """
    most, total = max(map(len, moved.values()), default=0), 0.0
    for side in (1.0, -1.0):
        found = [shifted for strength, shifted in moved.items() if strength * side > 0.0]
        whole = np.array([one for one in found if len(one) == most > 1])
        total += len(found) - len(whole)
        if len(whole):
            total += 1.0 + (len(whole) - 1) * (1.0 - _mean_square_correlation(whole))
    return max(float(total), 1.0)


def _mean_square_correlation(shifted: Numbers) -> float:
    """Returns the mean r_ij^2 of `independent_claims`, 1 for one strength. shifted: (strength, direction, prompt)."""
    strengths, directions, prompts = shifted.shape
    if strengths == 1:
        return 1.0
    means = shifted.mean(axis=2)
    moments = means @ means.T / directions
    if prompts > 1:
        apart = shifted - means[..., None]
        moments = moments - np.einsum("ikp,jkp->ij", apart, apart) / (directions * prompts * (prompts - 1))
    sizes = np.sqrt(np.maximum(np.diag(moments), 0.0))
    products = np.outer(sizes, sizes)
    squares = np.where(products > 0.0, np.square(moments / np.where(products > 0.0, products, 1.0)), 1.0)
    squares = np.clip((directions * np.minimum(squares, 1.0) - 1.0) / (directions - 1.0), 0.0, 1.0)
    return float((squares.sum() - squares.trace()) / (strengths * (strengths - 1)))


def chance_at(moved: Sequence[float]) -> float | None:
    """Returns `chance` at one strength. moved: mean shifts of the random directions there; None without them."""
    return chance({1.0: moved}).get(1.0)


def advantage(strength: float, trial: Trial, unsteered: Trial, bound: float) -> Estimate:
    """Estimates over prompts sign(s) * shift, less `chance` at this strength."""
    sign = 1.0 if strength > 0.0 else -1.0
    return estimate([sign * shift - bound for shift in shifts(trial, unsteered)])


def dose_point(
    strength: float,
    trial: Trial,
    unsteered: Trial,
    kl_neutral: float | None,
    controls: Sequence[Trial] = (),
    bound: float | None = None,
) -> EvaluatedPoint:
    """Builds one row of the dose-response. Scores are mean shifts; intervals are over prompts. controls: trials of the random
    directions. bound: `chance` at this strength. Without it a point with controls has no advantage."""
    moved, perplexity = estimate(shifts(trial, unsteered)), perplexity_ratio(trial, unsteered)
    random = mean_shifts(unsteered, controls)
    point = EvaluatedPoint(
        strength=strength,
        concept_score=moved.mean,
        concept_interval=moved.interval,
        perplexity_ratio=perplexity.mean,
        repetition=trial.mean("repetition"),
        kl_neutral=kl_neutral,
        relative_dose=trial.mean("dose"),
        random_score=fmean(random) if random else None,
        perplexity_interval=perplexity.interval,
        chance=bound,
        controls=len(controls),
    )
    if not strength or point.threshold is None:
        return point
    return replace(point, advantage=advantage(strength, trial, unsteered, point.threshold))


def chance_of(unsteered: Trial, controls: Mapping[float, Sequence[Trial]], places: int = 1) -> dict[float, float]:
    """Returns `chance` by strength. controls: the trials of the random directions by strength. All strengths share the one case in
    twenty, as `independent_claims` counts them. places: from how many places that at which they act was chosen."""
    moved = {strength: mean_shifts(unsteered, row) for strength, row in controls.items()}
    sound = {strength: [one for one in row if one.broken is None] for strength, row in controls.items()}
    rows = {strength: np.array([shifts(one, unsteered) for one in row]) for strength, row in sound.items()}
    return chance(moved, places * independent_claims(rows))


def dose_points(
    unsteered: Trial, rows: Mapping[float, Sequence[Trial]], kl: Sequence[float | None]
) -> dict[float, EvaluatedPoint]:
    """Builds the points of a dose-response. rows: by strength the vector's trial, then its controls. kl: by strength."""
    points = dict[float, EvaluatedPoint]()
    bounds = chance_of(unsteered, {strength: controls for strength, (_, *controls) in rows.items()})
    for (strength, (trial, *controls)), damage in zip(rows.items(), kl, strict=True):
        points[strength] = dose_point(strength, trial, unsteered, damage, controls, bounds.get(strength))
    points[0.0] = replace(dose_point(0.0, unsteered, unsteered, 0.0), random_score=0.0)
    return points


def anti_steered(moved: Mapping[float, Sequence[float]]) -> float | None:
    """Returns the share of prompts with a least-squares slope of the score below 0 (Tan et al., arXiv 2407.12404); None
    below two strengths. moved: strength -> shift of every prompt, 0 included."""
    if len(moved) < 2:
        return None
    strengths = np.array(list(moved))
    centred = strengths - strengths.mean()
    slopes = centred @ np.array([moved[strength] for strength in moved]) / (centred @ centred)
    return float((slopes < -1e-12).mean())


def measured_ranges(layers: tuple[int, ...], margins: Mapping[float, float | None]) -> Recommended:
    """Recommends the strengths of either sign that hold. margins: beyond chance, None where a strength does not hold."""
    sound = {strength: found is not None for strength, found in margins.items()}
    up, down = range_that_holds(sound, 1), range_that_holds(sound, -1)
    return Recommended(layers, up, down, basis="measured", margin=closest_margin(margins, up, down))


def closest_margin(margins: Mapping[float, float | None], *ranges: Interval | None) -> float | None:
    """Returns the smallest margin of the strengths within the ranges; None where it is not known."""
    inside = [
        found
        for strength, found in margins.items()
        for low, high in filter(None, ranges)
        if found is not None and low <= strength <= high
    ]
    return min(inside, default=None)


def range_that_holds(sound: Mapping[float, bool], sign: int) -> Interval | None:
    """Returns (low, high) of the widest run of strengths of a sign that hold, the nearest to 0 of equal ones, if any."""
    ordered = sorted((one for one in sound if one * sign > 0.0), key=abs)
    runs = [list(run) for holding, run in groupby(ordered, sound.__getitem__) if holding]
    return max([(min(run), max(run)) for run in runs], key=lambda run: run[1] - run[0], default=None)
