"""Iso-KL calibration: the strength at which steering changes the predictions on neutral text by 1 nat at the 95th percentile of the tokens.

Strengths of different vectors, layers and operations are comparable at equal KL, as those in natural scales are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, log, sqrt
from statistics import fmean
from typing import Literal, TypeAlias

import numpy as np

from steering.cards import Estimate
from steering.engine.api import CapturePrompt, CaptureSpec, Engine, Prompt, SamplingParams
from steering.engine.prompts import encode_with_plans
from steering.errors import NonfiniteActivations
from steering.lab.controls import UNGUARDED, planned
from steering.lab.trials import LOGITS_AT_ONCE, WRITING, evaluation_prompts
from steering.plan.types import DoseGuard, SteeringPlan
from steering.schemas.evaluation import CalibratedAnswer, CalibrationAnswer
from steering.spec import InterventionSpec
from steering.threads import run_in_thread
from steering.vectors import ConceptVector
from steering.workflows import generate
from steering.workflows.generate import Answer, Progress, ignore_progress
from steering.workflows.measures import divergences, estimate, predicting

KL_LIMIT, QUANTILE = 1.0, 0.95
"""Nats, and the share of the tokens that change by at most as much."""
NEUTRAL, FIRST = 8, 56
"""Neutral prompts that are read, and the first of them: no other evaluation takes these by default."""
STEPS = 8
CLOSE, NEAR = 0.05, 0.25
"""How far log KL may lie from that of the limit for the search to end, and for its result to count."""
START_DOSE, LARGEST_STEP = 0.1, 3.0
"""Relative dose at which the search begins, and by what factor a strength grows or shrinks in one step at most."""
Moving: TypeAlias = Literal["add", "clamp", "apply"]
"""Operations whose effect a number from 0 on scales: what `add` adds, the score from which on `clamp` holds, or the share of its map that
`apply` adds."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where and how a strength acts: a vector at one layer, in one direction (1 or -1)."""

    vector: ConceptVector
    layer: int
    sign: int
    operation: Moving = "add"

    def spec(self, strength: float) -> InterventionSpec:
        """Returns the intervention of a strength of either sign, in natural scales. `clamp` keeps the score above it, or below."""
        fields = {"vector": self.vector.name, "layers": (self.layer,), "operation": self.operation}
        if self.operation == "clamp":
            return InterventionSpec(**fields, **{"low" if self.sign > 0 else "high": strength})
        return InterventionSpec(**fields, strength=strength)

    async def plan(self, engine: Engine, strength: float, guard: DoseGuard = UNGUARDED) -> SteeringPlan:
        """Resolves the intervention. Raises DoseExceeded where the guard refuses it."""
        return await planned(engine.info, self.vector, self.spec(strength), guard=guard)


@dataclass(slots=True)
class StrengthSearch:
    """The search for the strength above 0 of a KL: small KL grows with its square. next: the strength to try. limit: the KL in nats.
    best: the strength with the nearest KL, and that KL."""

    next: float
    limit: float = KL_LIMIT
    low: float = 0.0
    high: float = inf
    best: tuple[float, float] | None = None

    @property
    def done(self) -> bool:
        """Whether the best is near enough to end the search."""
        return self._distance <= CLOSE

    @property
    def result(self) -> tuple[float, float] | None:
        """The best, where it is near enough to count."""
        return self.best if self._distance <= NEAR else None

    @property
    def _distance(self) -> float:
        return inf if self.best is None else abs(log(self.best[1] / self.limit))

    def found(self, kl: float) -> None:
        """Takes in the KL of `next` and chooses the next strength."""
        tried = self.next
        self.low, self.high = (
            (max(self.low, tried), self.high) if kl < self.limit else (self.low, min(self.high, tried))
        )
        if 0.0 < kl < inf and abs(log(kl / self.limit)) < self._distance:
            self.best = tried, kl
        factor = sqrt(self.limit / kl) if 0.0 < kl < inf else LARGEST_STEP if kl == 0.0 else 1.0 / LARGEST_STEP
        guess = tried * min(max(factor, 1.0 / LARGEST_STEP), LARGEST_STEP)
        if not self.low < guess < self.high:
            guess = sqrt(max(self.low, self.high / LARGEST_STEP**2) * self.high)
        self.next = guess


async def neutral_answers(
    engine: Engine, prompts: Sequence[Prompt], sampling: SamplingParams
) -> list[tuple[Prompt, Answer]]:
    """Answers neutral prompts without steering."""
    answers = await generate.background(engine, generate.seeded(prompts, sampling))
    return list(zip(prompts, answers, strict=True))


def neutral_prompts(engine: Engine, given: tuple[Prompt, ...] | None) -> tuple[Prompt, ...]:
    """Returns the given prompts, or the package's own for calibration."""
    return evaluation_prompts(engine, given, NEUTRAL, FIRST)


async def kl_of(
    engine: Engine, answered: Sequence[tuple[Prompt, Answer]], plans: Sequence[SteeringPlan]
) -> list[float]:
    """Returns the 95th percentile over tokens of KL(plan || unsteered); inf where not finite, 0 without tokens."""
    found = await token_divergences(engine, answered, plans)
    tokens = [[one for row in rows for one in row] for rows in found]
    return [inf if inf in row else float(np.quantile(row, QUANTILE)) if row else 0.0 for row in tokens]


async def calibrate(
    engine: Engine,
    places: Sequence[Place],
    answered: Sequence[tuple[Prompt, Answer]],
    progress: Progress = ignore_progress,
) -> list[tuple[float, float] | None]:
    """Returns for each place the strength above 0 whose KL is nearest to KL_LIMIT, in natural scales, with its KL; None where none
    within STEPS steps comes near it. All places are tried together, so that each text is read once without steering."""
    norms = engine.info.typical_norms
    starts = [
        START_DOSE * norms[one.layer] / one.vector.at(one.layer).scale if norms and one.operation != "apply" else 1.0
        for one in places
    ]
    searches = list(map(StrengthSearch, starts))
    for step in range(STEPS):
        open_places = [index for index, one in enumerate(searches) if not one.done]
        if not open_places:
            break
        plans = [await places[i].plan(engine, places[i].sign * searches[i].next) for i in open_places]
        for index, kl in zip(open_places, await kl_of(engine, answered, plans), strict=True):
            searches[index].found(kl)
        progress(step + 1, STEPS, "calibrating")
    progress(STEPS, STEPS, "calibrating")
    return [one.result for one in searches]


async def calibration(
    engine: Engine,
    vector: ConceptVector,
    layers: Sequence[int],
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    progress: Progress = ignore_progress,
    operation: Literal["add", "apply"] = "add",
) -> tuple[CalibrationAnswer, ConceptVector]:
    """Calibrates a vector at each of the layers: `add` in both directions, `apply` in its own. Returns the result, and the vector,
    which carries that of `add`. Raises InvalidRequest for `apply` at a layer without a map."""
    answered = await neutral_answers(engine, prompts, sampling)
    signs = (1, -1) if operation == "add" else (1,)
    places = [Place(vector, layer, sign, operation) for layer in layers for sign in signs]
    found = iter(await calibrate(engine, places, answered, progress))
    entries, points = dict(vector.layers), []
    for layer in layers:
        up, down = next(found), next(found) if operation == "add" else None
        strengths = up and up[0], down and down[0]
        if operation == "add":
            entries[layer] = replace(entries[layer], kl_positive=strengths[0], kl_negative=strengths[1])
        points.append(
            CalibratedAnswer(
                layer=layer,
                positive=strengths[0],
                negative=None if down is None else -down[0],
                kl_positive=up and up[1],
                kl_negative=down and down[1],
            )
        )
    warnings = [
        f"layer {point.layer}: no strength tried changes the predictions on neutral text by {KL_LIMIT:g} nat"
        for point in points
        if point.positive is None or (operation == "add" and point.negative is None)
    ]
    answer = CalibrationAnswer(
        vector=vector.id if vector.version else vector.name,
        limit=KL_LIMIT,
        tokens=sum(len(one.tokens) for _, one in answered),
        points=points,
        warnings=tuple(warnings),
    )
    return answer, replace(vector, layers=entries)


async def neutral_divergence(
    engine: Engine,
    prompts: Sequence[Prompt],
    plans: Sequence[SteeringPlan],
    sampling: SamplingParams = WRITING,
    *,
    progress: Progress = ignore_progress,
) -> tuple[Estimate | None, ...]:
    """Estimates KL(plan || unsteered) per token along unsteered answers to neutral prompts: inf without an interval where not finite,
    None without tokens."""
    values = await token_divergences(engine, await neutral_answers(engine, prompts, sampling), plans, progress=progress)
    means = [[fmean(one) for one in found] for found in values]
    return tuple((Estimate(inf) if inf in found else estimate(found)) if found else None for found in means)


async def token_divergences(
    engine: Engine,
    answered: Sequence[tuple[Prompt, Answer]],
    plans: Sequence[SteeringPlan],
    *,
    progress: Progress = ignore_progress,
) -> list[list[tuple[float, ...]]]:
    """Returns KL(plan || unsteered) of every token in nats: for each plan a tuple for each answer that has tokens, inf where the plan
    makes activations non-finite. Plans of a prompt are read together, as many as LOGITS_AT_ONCE allows. Raises what `Engine.capture`
    raises otherwise."""
    values = [list[tuple[float, ...]]() for _ in plans]
    for done, (prompt, answer) in enumerate(answered, start=1):
        if answer.tokens:
            ids, known = await run_in_thread(encode_with_plans, engine.tokenizer, prompt, plans)
            steered = iter(await _divergences(engine, ids, answer.tokens, [one for one in known if not one.empty]))
            for plan, found in zip(known, values, strict=True):
                found.append((0.0,) * len(answer.tokens) if plan.empty else next(steered))
        progress(done, len(answered), "reading neutral text")
    return values


async def _divergences(
    engine: Engine, prompt: tuple[int, ...], answer: tuple[int, ...], plans: Sequence[SteeringPlan]
) -> list[tuple[float, ...]]:
    """Returns those of one answer under each plan, none of which is empty. Where one of several plans fails each is read by itself."""
    text, count, first = prompt + answer, len(answer), len(prompt)
    known = [plans[0].unsteered, *plans] if plans else []
    rows = [CapturePrompt(text, plan, first, first - 1) for plan in known]
    together = max(1, LOGITS_AT_ONCE // ((count + 1) * engine.info.vocab_size))
    reference, found = None, list[tuple[float, ...]]()
    for start in range(0, len(rows), together):
        try:
            captures = await engine.capture(rows[start : start + together], CaptureSpec((), logits=True))
        except NonfiniteActivations:
            if len(plans) == 1:
                return [(inf,) * count]
            return [(await _divergences(engine, prompt, answer, [plan]))[0] for plan in plans]
        for capture in captures:
            if reference is None:
                reference = predicting(capture, count)
            else:
                found.append(await run_in_thread(divergences, predicting(capture, count), reference))
    return found
