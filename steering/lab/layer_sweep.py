"""Layer sweeps: vectors at one layer at a time, by one operation or several, at given strengths or at equal KL.

Half of the prompts choose the vector, layer and operation that move the text furthest before it breaks; the other half report what these do, beside
random directions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Literal

import numpy as np

from steering.cards import COHERENT, Estimate, margin_of
from steering.engine.api import Engine, Prompt
from steering.errors import DoseExceeded, InvalidRequest
from steering.lab import trials
from steering.lab.calibration import KL_LIMIT, STEPS, Moving, Place, calibrate, kl_of, neutral_answers, neutral_prompts
from steering.lab.controls import LAYER_SWEEP, random_arms
from steering.lab.evaluations import StrengthsRequest, scores_of, strengths_of, unproved
from steering.lab.trials import ReadBack, Trial, run_trials
from steering.plan.resolve import resolve_layers
from steering.plan.types import SteeringPlan
from steering.schemas.evaluation import LayerPointAnswer, LayerSweepAnswer, ScoresAnswer
from steering.vectors import ConceptVector
from steering.workflows.generate import Answer, Progress, ignore_progress, progress_of_part

STRENGTHS = {"scale": (1.0, 2.0, 4.0), "kl": (0.5, 1.0)}
PROMPTS, FIRST = 16, 40
"""The package's neutral prompts that are answered, and the first of them: no dose-response and no report takes these by default."""
LARGEST_SHARE = 2.0
"""The largest strength in unit `kl`: beyond it text breaks."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerSweepRequest(StrengthsRequest):
    """Vectors at one layer at a time, at strengths of one sign (by default STRENGTHS), read at one layer.
    vectors: compared with `vector`. operations: others than `add` need unit `kl`; `apply` needs strengths above 0, and acts where a vector
    has a map.
    unit: `scale`, or `kl`: shares of the strength that changes neutral text by 1 nat. neutral: None takes the
    package's."""

    vectors: tuple[ConceptVector, ...] = ()
    operations: tuple[Moving, ...] = ("add",)
    unit: Literal["scale", "kl"] = "scale"
    neutral: tuple[Prompt, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """A request with names and defaults resolved. validation, test: prompts that choose, and prompts that report."""

    reading: ReadBack
    places: tuple[Place, ...]
    validation: tuple[Prompt, ...]
    test: tuple[Prompt, ...]
    neutral: tuple[Prompt, ...]
    strengths: list[float]

    @property
    def answers(self) -> int:
        """Returns how many answers the sweep writes at most: those of the chosen place and of the random directions too."""
        return (
            trials.trial_answers(len(self.places) * len(self.strengths), len(self.validation))
            + trials.trial_answers((1 + trials.CONTROLS) * len(self.strengths), len(self.test))
            + len(self.neutral)
        )

    def reads(self, request: LayerSweepRequest) -> int:
        """Returns how many neutral texts are read at most where activations stay finite: for the points of the places and of the
        chosen one, for the searches of the places and of the random directions, and each time without steering."""
        points = (len(self.places) + 1) * len(self.strengths) + 2
        tries = STEPS * (len(self.places) + trials.CONTROLS + 2) if request.unit == "kl" else 0
        return len(self.neutral) * (points + tries)


def resolved(engine: Engine, request: LayerSweepRequest) -> Setup:
    """Resolves a request. Raises InvalidRequest, and VectorModelMismatch for another model's vector."""
    reading = trials.read_back(engine, request.vector, request.reader, request.reading_layer, request.scorer)
    strengths = strengths_of(replace(request, strengths=request.strengths or STRENGTHS[request.unit]))
    if strengths[0] < 0.0 < strengths[-1]:
        raise InvalidRequest(
            "a layer sweep takes strengths of one sign, so that layers can be ranked", param="strengths"
        )
    if request.unit == "kl" and max(map(abs, strengths)) > LARGEST_SHARE:
        raise InvalidRequest(f"strengths in unit 'kl' are at most {LARGEST_SHARE:g}", param="strengths")
    if request.unit != "kl" and request.operations != ("add",):
        raise InvalidRequest("operations other than 'add' are compared at equal KL: use unit 'kl'", param="operations")
    if "apply" in request.operations and strengths[0] < 0.0:
        raise InvalidRequest(
            "operation 'apply' leads from the negatives to the positives: it needs strengths above 0", param="strengths"
        )
    prompts = trials.evaluation_prompts(engine, request.prompts, PROMPTS, FIRST)
    if len(prompts) < 2:
        raise InvalidRequest(
            "a layer sweep needs at least two prompts: half of them choose, the others report", param="prompts"
        )
    sign, count = 1 if strengths[0] > 0.0 else -1, engine.info.layer_count
    vectors = {vector.id: vector for vector in (request.vector, *request.vectors)}
    places = tuple(
        Place(vector, layer, sign, operation)
        for vector in vectors.values()
        for operation in dict.fromkeys(request.operations)
        for layer in resolve_layers(request.layers, vector, count)
        if operation != "apply" or vector.at(layer).map is not None
    )
    if missing := set(request.operations) - {place.operation for place in places}:
        raise InvalidRequest(
            f"operation {missing.pop()!r} needs a map, and none of the vectors has one at the layers asked for",
            param="operations",
        )
    neutral = neutral_prompts(engine, request.neutral)
    return Setup(reading, places, prompts[::2], prompts[1::2], neutral, strengths)


@dataclass(frozen=True, slots=True, eq=False)
class _Tried:
    """One place at one strength, in natural scales. share: the strength that was asked for."""

    place: Place
    share: float
    strength: float
    plan: SteeringPlan


async def layer_sweep(
    engine: Engine, request: LayerSweepRequest, *, progress: Progress = ignore_progress
) -> LayerSweepAnswer:
    """Runs the sweep. One place, that of `point_to_test`, is run on the other half of the prompts and compared with random
    directions there, and is recommended with the strengths that hold. A point that makes activations non-finite is left out,
    and a warning says so. Raises what `resolved` raises."""
    setup = resolved(engine, request)
    sweep = _Sweep(engine, request, setup, await neutral_answers(engine, setup.neutral, request.sampling))
    total, warnings = 2 * setup.answers, sweep.warnings
    tried = await sweep.tried(setup.places, warnings)
    unsteered, ours = await sweep.run(setup.validation, tried, progress_of_part(progress, 0, total))
    points = await sweep.points(tried, ours, unsteered, "validation")
    # no other point exceeds those of the Pareto front in shift at no more KL on neutral text
    places = np.array([(point.moved.mean, -point.kl) for point in points]).reshape(-1, 1, 2)
    exceeds = (places >= places.swapaxes(0, 1)).all(2) & (places > places.swapaxes(0, 1)).any(2)
    beaten: list[bool] = np.logical_or.reduce(exceeds, axis=0).tolist()
    points = [point.model_copy(update={"pareto": not bad}) for point, bad in zip(points, beaten, strict=True)]
    scores = [unsteered.answer("unsteered", split="validation")]
    scores += [
        trial.answer("steered", split="validation", **_where(one)) for one, trial in zip(tried, ours, strict=True)
    ]
    chosen = point_to_test(points)
    tested, margins = list[LayerPointAnswer](), dict[float, float | None]()
    if chosen is not None:
        place = next(one.place for one in tried if _key(one.place) == (chosen.vector, chosen.operation, chosen.layer))
        running = progress_of_part(progress, 2 * len(setup.validation) * (len(tried) + trials.UNSTEERED_SAMPLES), total)
        there = [one for one in tried if one.place is place]
        tested, found = await sweep.tested(there, running)
        # a range has no strength inside at which activations became non-finite
        margins = dict.fromkeys([one.strength for one in there]) | {one.strength: one.margin for one in tested}
        scores += found
    progress(total, total, "done")
    best = best_point(tested)
    recommended = None
    if best is not None and best.operation == "add":
        recommended = trials.measured_ranges((best.layer,), margins)
    if best is None:
        warnings += _without_proof(chosen, tested)
    return LayerSweepAnswer(
        vector=_name(request.vector),
        reading_layer=setup.reading.layer,
        unit=request.unit,
        points=[*points, *tested],
        best=best,
        recommended=recommended,
        warnings=warnings,
        scores=tuple(scores),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Sweep:
    """One run. answered: the neutral prompts with the unsteered model's answers."""

    engine: Engine
    request: LayerSweepRequest
    setup: Setup
    answered: Sequence[tuple[Prompt, Answer]]
    warnings: list[str] = field(default_factory=list)

    async def tried(self, places: Sequence[Place], warnings: list[str]) -> list[_Tried]:
        """Returns places at every strength; in unit `kl` those that can be calibrated and keep the caller's bound of the dose."""
        sizes, scaled = [1.0] * len(places), self.request.unit == "scale"
        if not scaled:
            sizes = [0.0 if one is None else one[0] for one in await calibrate(self.engine, places, self.answered)]
        tried = []
        for place, size in zip(places, sizes, strict=True):
            for strength in self.setup.strengths if size else ():
                try:
                    plan = await place.plan(self.engine, strength * size, self.request.guard)
                except DoseExceeded as error:
                    if scaled:
                        raise
                    warnings.append(f"layer {place.layer} at {strength:g} left out: {error.message}")
                else:
                    tried.append(_Tried(place, strength, strength * size, plan))
            if not size:
                warnings.append(
                    f"layer {place.layer} left out: no strength tried changes neutral text by {KL_LIMIT:g} nat"
                )
        return tried

    async def run(
        self, prompts: Sequence[Prompt], tried: Sequence[_Tried], progress: Progress
    ) -> tuple[Trial, tuple[Trial, ...]]:
        """Returns the unsteered trial, and one of each that is tried."""
        return await run_trials(
            self.engine,
            prompts,
            [one.plan for one in tried],
            self.setup.reading,
            self.request.sampling,
            checkpoints=self.request.checkpoints,
            progress=progress,
        )

    async def points(
        self, tried: Sequence[_Tried], found: Sequence[Trial], unsteered: Trial, split: Literal["validation", "test"]
    ) -> list[LayerPointAnswer]:
        """Returns the points that made no activations non-finite; a warning names the others."""
        kls = await kl_of(self.engine, self.answered, [one.plan for one in tried])
        every = list(zip(tried, found, kls, strict=True))
        sound = [one for one in every if one[1].broken is None and one[2] < inf]
        if broken := [f"layer {one[0].place.layer} at {one[0].strength:g}" for one in every if one not in sound]:
            self.warnings.append(f"left out, because activations became non-finite: {', '.join(broken)}")
        return [_point(one, trial, unsteered, kl, split) for one, trial, kl in sound]

    async def tested(
        self, there: Sequence[_Tried], progress: Progress
    ) -> tuple[list[LayerPointAnswer], list[ScoresAnswer]]:
        """Runs one place and random directions at its layer on the prompts that report: of the same dose, in unit `kl` of the
        same KL. Returns its points, compared with chance, and the scores of all answers."""
        place, setup = there[0].place, self.setup
        alone = replace(place.vector, layers={place.layer: place.vector.at(place.layer)})
        arms = random_arms(alone, self.request.sampling.seed, LAYER_SWEEP, trials.CONTROLS)
        controls = await self.tried([Place(arm, place.layer, place.sign) for arm in arms], [])
        unsteered, found = await self.run(setup.test, [*there, *controls], progress)
        ours, others = found[: len(there)], list(zip(controls, found[len(there) :], strict=True))
        points, sound = await self.points(there, ours, unsteered, "test"), dict[float, Sequence[Trial]]()
        scores = [unsteered.answer("unsteered", split="test")]
        for one, trial in zip(there, ours, strict=True):
            # a bound of the dose may leave out a random direction at some of the strengths
            row = {arms.index(by.place.vector): control for by, control in others if by.share == one.share}
            scores += scores_of(trial, row, split="test", **_where(one))
            if trial.broken is not None:
                continue
            sound[one.strength] = list(row.values())
            if count := sum(control.broken is not None for control in row.values()):
                self.warnings.append(
                    f"{count} of {len(row)} random directions made activations non-finite at layer {place.layer}, strength "
                    f"{one.strength:g}, and do not count for chance"
                )
        return with_chance(points, trials.chance_of(unsteered, sound, len(setup.places))), scores


def point_to_test(points: Sequence[LayerPointAnswer]) -> LayerPointAnswer | None:
    """Returns the point whose lower end of the shift is largest, of points at which the concept moves in coherent text, each with
    its whole 95 % interval; where there is none, of points whose text is coherent on average. None where no text is coherent."""
    coherent = [point for point in points if point.perplexity_ratio <= COHERENT]

    def order(point: LayerPointAnswer) -> tuple[bool, float]:
        low = point.moved.interval[0] if point.moved.interval else point.moved.mean
        return margin_of(low, point.perplexity_interval) is not None, low

    return max(coherent, key=order) if coherent else None


def best_point(points: Sequence[LayerPointAnswer]) -> LayerPointAnswer | None:
    """Returns, among the points that hold, the one with the largest margin; None if none holds."""
    sound = [(found, point) for point in points if (found := point.margin) is not None]
    return max(sound, key=lambda found: found[0])[1] if sound else None


def with_chance(points: Sequence[LayerPointAnswer], bounds: Mapping[float, float]) -> list[LayerPointAnswer]:
    """Returns the points of one place compared with `chance` there. bounds: by strength, over the number of places from
    which it was chosen, so that a random vector passes in at most 0.05 of cases."""

    def compared(point: LayerPointAnswer) -> LayerPointAnswer:
        bound, found = bounds.get(point.strength), point.moved
        if bound is None:
            return point
        interval = found.interval and (found.interval[0] - bound, found.interval[1] - bound)
        return point.model_copy(update={"chance": bound, "advantage": Estimate(found.mean - bound, interval)})

    return [compared(point) for point in points]


def _point(
    one: _Tried, trial: Trial, unsteered: Trial, kl: float, split: Literal["validation", "test"]
) -> LayerPointAnswer:
    perplexity, vector = trials.perplexity_ratio(trial, unsteered), one.place.vector
    quality = vector.quality.layers.get(one.place.layer) if vector.quality else None
    return LayerPointAnswer(
        **_where(one),
        split=split,
        moved=trials.advantage(one.strength, trial, unsteered, 0.0),
        perplexity_ratio=perplexity.mean,
        repetition=trial.mean("repetition"),
        relative_dose=trial.mean("dose"),
        kl=kl,
        auroc=None if quality is None else quality.auroc,
        perplexity_interval=perplexity.interval,
    )


def _where(one: _Tried) -> dict[str, Any]:
    vector, operation, layer = _key(one.place)
    return {"vector": vector, "operation": operation, "layer": layer, "strength": one.strength}


def _key(place: Place) -> tuple[str, Moving, int]:
    return _name(place.vector), place.operation, place.layer


def _name(vector: ConceptVector) -> str:
    return vector.id if vector.version else vector.name


def _without_proof(chosen: LayerPointAnswer | None, tested: Sequence[LayerPointAnswer]) -> Iterator[str]:
    """Yields what to say where nothing holds."""
    if chosen is None:
        yield unproved("at any layer", [])
        return
    if unbounded := [f"{point.strength:g}" for point in tested if point.chance is None]:
        yield f"chance is not known at layer {chosen.layer}, so nothing is claimed at strength {', '.join(unbounded)}"
    on_average = [
        None if one.chance is None else one.moved.mean > one.chance and one.perplexity_ratio <= COHERENT
        for one in tested
    ]
    if any(one is not None for one in on_average):
        yield unproved(f"at layer {chosen.layer}, which has the largest lower end of the shift", on_average)
