"""Deployment reports: steering at a fixed operating point, judged by three gates with stated thresholds, for each seed;
with questions that the model should still answer, and side effects along other vectors."""

import json
import operator
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from math import ceil, inf
from statistics import fmean
from typing import Literal, NamedTuple

from scipy.special import ndtri

from steering.cards import Estimate
from steering.engine.api import CapturePrompt, CaptureSpec, Engine, Prompt, SamplingParams, Tokenizer
from steering.engine.prompts import check_context
from steering.errors import ContextLengthExceeded, InvalidRequest, NonfiniteActivations
from steering.lab import calibration, trials
from steering.lab.controls import REPORT, acting_layers, control_seeds, fewer_pairs_plan, random_plans
from steering.lab.judge import instruction_of
from steering.lab.trials import WRITING, Checkpoints, ReadBack, Samples, Trial, mean_shifts, reading_layer, shifts
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
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, mix
from steering.workflows.extract import ExtractionRequest, extract, tried_layers
from steering.workflows.generate import Progress, ignore_progress
from steering.workflows.logprobs import continuation_ids, continuation_rows, encode_continued, score
from steering.workflows.measures import difference_of_shares, estimate, rank_correlation, ratio, share
from steering.workflows.texts import as_prompts, default_position, question_of, transcript

TYPOS = 0.08
"""Share of the letters that are exchanged with the next one."""
ROLE = "You are a librarian who answers the readers of a small town library."
_LOOKALIKES = str.maketrans({"e": "3", "o": "0", "i": "1", "a": "4"})
FEWER: Literal["fewer_pairs"] = "fewer_pairs"
PLAIN = "plain"
TEXTS_AT_ONCE = 16
"""Texts of a call: those of one call share the blocks of what they have in common."""
BLANK = "."
"""Stands for an empty answer, which has no token to read."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with four options, the right one first."""

    text: str
    options: tuple[str, ...]


@cache
def load_questions() -> tuple[Question, ...]:
    """Reads the questions that come with the package."""
    lines = (files("steering.lab") / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return tuple(Question(one["question"], (one["answer"], *one["others"])) for one in found)


async def answered_rightly(engine: Engine, questions: Sequence[Question], plan: SteeringPlan) -> tuple[float, ...]:
    """Returns for each question 1 if its right option has the highest mean log-probability per token, else 0, also where the plan makes
    activations non-finite."""
    right, space = [], "" if engine.info.chat_template else " "
    prompts = as_prompts(engine, [f"{one.text} Answer in a few words." for one in questions])
    for question, prompt in zip(questions, prompts, strict=True):
        (before,) = await run_in_thread(encode_continued, engine, prompt, (plan,))
        texts = [f"{space}{option[:1].upper()}{option[1:]}" for option in question.options]
        try:
            scored = await score(engine, list(continuation_rows(engine, before, texts)), priority=1)
        except NonfiniteActivations:
            right.append(0.0)
            continue
        first, *others = [one.sum / len(one.token_ids) for one in scored]
        right.append(float(first > max(others)))
    return tuple(right)


async def side_effects(
    engine: Engine, readers: Mapping[str, ConceptVector], prompts: Sequence[Prompt], unsteered: Trial, steered: Trial
) -> list[SideEffectAnswer]:
    """Reads all answers by the unsteered model, each along every reader where its card reads best."""
    before, after = [
        await scores(engine, readers, [prompts[n] for n, _ in trial.answers], [one.text for _, one in trial.answers])
        for trial in (unsteered, steered)
    ]
    effects = []
    for name, vector in readers.items():
        means = zip(steered.by_prompt(after[name]), unsteered.by_prompt(before[name]), strict=True)
        moved = estimate([one - other for one, other in means])
        layer = reading_layer(vector, engine.info.layer_count)
        effects.append(SideEffectAnswer(vector=name, layer=layer, shift=moved))
    return effects


async def scores(
    engine: Engine, readers: Mapping[str, ConceptVector], prompts: Sequence[Prompt], texts: Sequence[str]
) -> dict[str, list[float]]:
    """Returns name -> score of each text after its prompt, in natural scales, as the unsteered model reads it."""
    at = {name: reading_layer(vector, engine.info.layer_count) for name, vector in readers.items()}
    layers = tuple(sorted(set(at.values())))
    found: dict[str, list[float]] = {name: [] for name in readers}
    if not layers:
        return found
    answered = list(zip(prompts, texts, strict=True))
    wholes = await run_in_thread(lambda: [_with_answer(engine.tokenizer, *one) for one in answered])
    for start in range(0, len(wholes), TEXTS_AT_ONCE):
        captures = await engine.capture(wholes[start : start + TEXTS_AT_ONCE], CaptureSpec(layers, "response_mean"))
        for name, vector in readers.items():
            rows = [capture.activations[layers.index(at[name])] for capture in captures]
            found[name] += [trials.SCORERS["projection"].score(row, vector.at(at[name])) for row in rows]
    return found


def _with_answer(tokenizer: Tokenizer, prompt: Prompt, text: str) -> CapturePrompt:
    """Returns the prompt with its answer, whose tokens are read: those of the last message, or those after a text."""
    shown = text if text.strip() else BLANK
    if isinstance(prompt, str):
        before = tokenizer.encode(prompt)
        return CapturePrompt(before + continuation_ids(tokenizer, prompt, shown), prompt_length=len(before))
    return CapturePrompt((*_messages(prompt), ChatMessage("assistant", shown)))


def _messages(prompt: Prompt) -> list[ChatMessage]:
    return [one for one in prompt if isinstance(one, ChatMessage)]


class OtherModelScorer:
    """Scores texts by a vector of another model, read where its card reads best."""

    def __init__(self, engine: Engine, vector: ConceptVector) -> None:
        self.name = engine.info.name
        self._engine, self._vector = engine, vector

    @property
    def evidence(self) -> str:
        """Returns one line: how well the model reads the concept in texts that it did not learn it from."""
        card = self._vector.quality
        found = "not measured" if card is None or card.auroc is None else f"{card.auroc:.2f}"
        layer = reading_layer(self._vector, self._engine.info.layer_count)
        return f"{self.name} reads the answers at layer {layer}; AUROC on held-out topics: {found}"

    async def score(self, instructions: Sequence[str], texts: Sequence[str]) -> list[float]:
        """Returns the projection of each text in natural scales, centred on the poles."""
        prompts = as_prompts(self._engine, instructions)
        return (await scores(self._engine, {self._vector.name: self._vector}, prompts, texts))[self._vector.name]


async def other_model_scorer(engine: Engine, concept: str, pairs: PairSet) -> OtherModelScorer:
    """Extracts the concept in `engine`. Raises what `extract` raises."""
    layers = tried_layers(engine.info.layer_count)
    request = ExtractionRequest(concept, pairs, layers=layers, position=default_position(pairs))
    return OtherModelScorer(engine, await extract(engine, request))


def _typos(text: str, seed: int) -> str:
    rng, letters = random.Random(seed), list(text)  # noqa: S311 - reproducible typos
    for index in range(len(letters) - 1):
        if letters[index].isalpha() and letters[index + 1].isalpha() and rng.random() < TYPOS:
            letters[index], letters[index + 1] = letters[index + 1], letters[index]
    return "".join(letters)


VARIATIONS: Mapping[str, Callable[[str, int], str]] = {
    "paraphrase_before": lambda text, _: f"I have a request. {text}",
    "paraphrase_after": lambda text, _: f"{text} Please answer in two or three sentences.",
    "role": lambda text, _: f"{ROLE}\n\n{text}",
    "typos": _typos,
    "lookalikes": lambda text, _: text.translate(_LOOKALIKES),
    "upper_case": lambda text, _: text.upper(),
}
"""Name -> (text, seed) -> the varied text. `lookalikes` writes digits for letters."""


def varied(tokenizer: Tokenizer, prompt: Prompt, variation: str, seed: int) -> Prompt:
    """Varies a plain prompt, of a transcript what the user asks, or the last message of the user in a conversation. A conversation
    gets a role as system message, where the chat template knows such messages."""
    change = VARIATIONS[variation]
    if isinstance(prompt, str):
        asked = question_of(prompt)
        changed = change(asked, seed)
        return changed if asked == prompt else transcript((ChatMessage("user", changed),))
    messages = _messages(prompt)
    if variation == "role":
        played = (ChatMessage("system", ROLE), *(one for one in messages if one.role != "system"))
        with suppress(InvalidRequest):
            tokenizer.encode(played)
            return played
    last = max((n for n, one in enumerate(messages) if one.role == "user"), default=None)
    if last is None:
        return prompt
    messages[last] = ChatMessage("user", change(messages[last].content, seed))
    return tuple(messages)


STEPS = 4 + len(VARIATIONS)
"""Of progress, for each seed."""


RELATIONS: Mapping[str, Callable[[float, float], bool]] = {
    "above": operator.gt,
    "at_most": operator.le,
    "at_least": operator.ge,
}


def check(
    name: str, found: Estimate | None, relation: Literal["above", "at_most", "at_least"], threshold: float
) -> CheckAnswer:
    """Compares the whole interval of a value, if measured, with its threshold. Without an interval it does not pass."""
    holds, end, margin = RELATIONS[relation], None, None
    if found is not None and found.interval is not None:
        end = found.interval[1] if relation == "at_most" else found.interval[0]
        margin = threshold - end if relation == "at_most" else end - threshold
    return CheckAnswer(
        name=name,
        value=None if found is None else found.mean,
        relation=relation,
        threshold=threshold,
        passed=end is not None and holds(end, threshold),
        on_average=None if found is None else holds(found.mean, threshold),
        margin=margin,
        interval=None if found is None else found.interval,
    )


def prompts_for_share(limit: float) -> int | None:
    """Returns how many prompts show a share of at most `limit` if none counts, by Wilson: z^2 / (n + z^2). None for 0."""
    square = float(ndtri(0.975)) ** 2
    return ceil(square * (1.0 - limit) / limit) if limit > 0.0 else None


def along(trial: Trial, unsteered: Trial, direction: int) -> tuple[float, ...]:
    """Returns the shift of each prompt's answer along the direction (1 or -1) in which the concept is meant to move."""
    return tuple(direction * shift for shift in shifts(trial, unsteered))


def measured(trial: Trial, unsteered: Trial, direction: int) -> tuple[float, ...] | None:
    """Returns the shifts `along` the direction; None where activations became non-finite."""
    return along(trial, unsteered, direction) if trial.broken is None else None


@dataclass(frozen=True, slots=True, eq=False)
class ReportRequest:
    """What is judged.
    vector: its concept is to move along `direction` (1 or -1); it reads the answers unless `reader` does.
    plan, vectors: the operating point, and the vectors that it names, by `name@version`.
    varied: prompts under each variation. samples: answers to each prompt, averaged.
    pairs: of the vector, for the check with fewer of them. readers: for side effects."""

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
    checkpoints: Checkpoints | None = None
    thresholds: ThresholdsFields = field(default_factory=ThresholdsFields)


def varied_prompts(tokenizer: Tokenizer, request: ReportRequest, name: str, seed: int) -> list[Prompt]:
    """Returns the first prompts of a request under a variation; to be called in a thread."""
    return [varied(tokenizer, one, name, mix(seed, n)) for n, one in enumerate(request.prompts[: request.varied])]


def check_varied(engine: Engine, request: ReportRequest) -> None:
    """Raises ContextLengthExceeded where a varied prompt leaves no room for its answer; to be called in a thread."""
    for seed in dict.fromkeys(request.seeds):
        for name in VARIATIONS:
            for prompt in varied_prompts(engine.tokenizer, request, name, seed):
                try:
                    check_context(len(engine.tokenizer.encode(prompt)), request.sampling.max_tokens, engine.info)
                except ContextLengthExceeded as error:
                    message = f"under the variation {name!r} {error.message}"
                    raise ContextLengthExceeded(message, param="prompts") from None


class PlainTrials(NamedTuple):
    """The trials of one seed over the prompts. controls: random steerings. fewer: the vector from half of the pairs."""

    unsteered: Trial
    steered: Trial
    controls: Sequence[Trial]
    fewer: Trial | None


def control_checks(
    moved: Sequence[float], bound: float | None, controlled: bool, limits: ThresholdsFields
) -> list[CheckAnswer]:
    """Checks the shifts along the direction. bound: of chance; None: unknown where `controlled`, otherwise 0."""
    shift = estimate(moved)
    return [
        check("shift", Estimate(shift.mean) if bound is None and controlled else shift, "above", bound or 0.0),
        check("anti_steered", share(sum(one < 0.0 for one in moved), len(moved)), "at_most", limits.anti_steered),
    ]


def retained(
    name: str, varied: Sequence[float] | None, moved: Sequence[float], limits: ThresholdsFields
) -> CheckAnswer:
    """Checks the share of the plain shift of its prompts that a variation keeps; 0 where they do not move on average.
    varied: None where activations became non-finite, so that it was not measured."""
    kept = None
    if varied is not None:
        plain = moved[: len(varied)]
        kept = ratio(varied, plain) if fmean(plain) > 0.0 else Estimate(0.0)
    return check(f"retained.{name}", kept, "at_least", limits.retained)


async def report(engine: Engine, request: ReportRequest, *, progress: Progress = ignore_progress) -> ReportAnswer:
    """Runs all gates for each seed. Raises what `read_back` raises."""
    done, parts = 0, 2 + len(request.seeds) * STEPS

    def step(message: str) -> None:
        nonlocal done
        progress(min(done, parts), parts, message)
        done += 1

    step("asking questions")
    reading = trials.read_back(engine, request.vector, request.reader, request.reading_layer, request.scorer)
    plan, questions = request.plan, load_questions()
    unsteered, steered = [await answered_rightly(engine, questions, one) for one in (UNSTEERED, plan)]
    lost = difference_of_shares([one - other for one, other in zip(unsteered, steered, strict=True)])
    step("making plans")
    fewer: SteeringPlan | InvalidRequest | None = None
    if request.pairs is not None and acting_layers(plan, request.vector):
        try:
            fewer = await fewer_pairs_plan(engine, request.vector, request.pairs, plan, request.vectors)
        except InvalidRequest as error:
            fewer = error
    work = _Work(engine, request, reading, fewer, lost, step)
    plain = {seed: await work.plain(seed) for seed in dict.fromkeys(request.seeds)}
    bound = trials.chance_at([shift for one in plain.values() for shift in mean_shifts(one.unsteered, one.controls)])
    seeds = [await work.judged(seed, plain[seed], bound) for seed in request.seeds]
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
        warnings=work.warnings(bound, any(one.controls for one in plain.values())) + not_measured(seeds, work.without),
    )


def not_measured(seeds: Sequence[SeedReportAnswer], without: str) -> list[str]:
    """Names the checks that activations which became non-finite left without a value, or with one that is not finite. without: the
    name of a check that has no value for another reason."""
    gates = [(one.seed, gate) for one in seeds for gate in one.gates]
    found = [
        f"{one.name} (seed {seed})"
        for seed, gate in gates
        for one in gate.checks
        if one.value == inf or (one.value is None and gate.name == "robustness" and one.name != without)
    ]
    said = "not measured and not passed, because activations became non-finite: "
    return [said + ", ".join(found)] if found else []


def agree(seeds: Sequence[SeedReportAnswer]) -> bool:
    """Returns whether the seeds pass and fail the same gates."""
    return len({tuple((gate.name, gate.passed) for gate in seed.gates) for seed in seeds}) == 1


def controls_of(seeds: Sequence[int]) -> int:
    """Returns how many random directions each seed has: one bound of chance is estimated from those of all."""
    return ceil(trials.CONTROLS / len(set(seeds)))


def plain_samples(count: int) -> Samples:
    """Returns the samples of plain prompts. Many plans are compared with the unsteered ones, so these are not few."""
    return Samples(max(trials.UNSTEERED_SAMPLES, count), count)


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """A request with what all seeds share. fewer: see PlainTrials; why half of the pairs give no such vector; None where it is not
    checked. lost: share of the questions that steering loses."""

    engine: Engine
    request: ReportRequest
    reading: ReadBack
    fewer: SteeringPlan | InvalidRequest | None
    lost: Estimate
    step: Callable[[str], None]

    @property
    def without(self) -> str:
        """Returns the name of the check with fewer pairs where half of the pairs do not give the vector; otherwise nothing."""
        return f"retained.{FEWER}" if isinstance(self.fewer, InvalidRequest) else ""

    def warnings(self, bound: float | None, controlled: bool) -> list[str]:
        """Returns what a reader of the report should know. bound: of chance. controlled: whether random controls were tried."""
        warnings = list(self.request.plan.warnings)
        if bound is None and controlled:
            warnings.append(
                "chance is not known, because every random direction made activations non-finite, so the shift is not shown"
            )
        elif bound is None:
            warnings.append(
                "no random controls, so the shift is compared with 0: they are made for unconditional adds only"
            )
        count, limit = len(self.request.prompts), self.request.thresholds.anti_steered
        needed = prompts_for_share(limit)
        if needed is None or count < needed:
            enough = "no number of prompts is enough" if needed is None else f"{needed} or more prompts are needed"
            warnings.append(
                f"anti_steered cannot pass: with {count} prompts the interval does not show a share of at most {limit:g}, "
                f"even if no prompt moves against the direction; {enough}"
            )
        if isinstance(self.fewer, InvalidRequest):
            reason = f"half of the pairs do not give the vector: {self.fewer.message}"
            warnings.append(f"{self.without} was not measured and is not passed, because {reason}")
        elif self.request.pairs is None:
            warnings.append("not checked with fewer pairs: the pairs of the vector are not those of a starter concept")
        elif self.fewer is None:
            warnings.append(f"not checked with fewer pairs: the steering does not act along {self.request.vector.id}")
        if self.request.independent is not None:
            warnings.append(self.request.independent.evidence)
        return warnings

    async def plain(self, seed: int) -> PlainTrials:
        """Runs the trials of one seed over the prompts as they are."""
        request, fewer = self.request, (self.fewer,) if isinstance(self.fewer, SteeringPlan) else ()
        self.step(f"seed {seed}: control")
        drawn = control_seeds(seed, REPORT, controls_of(request.seeds))
        controls = await random_plans(self.engine.info, request.plan, request.vectors, drawn)
        plans, samples = (request.plan, *controls, *fewer), plain_samples(request.samples)
        unsteered, (steered, *others) = await self._trials(seed, PLAIN, request.prompts, plans, samples)
        return PlainTrials(unsteered, steered, others[: len(controls)], others[-1] if fewer else None)

    async def judged(self, seed: int, plain: PlainTrials, bound: float | None) -> SeedReportAnswer:
        """Judges one seed by all gates. bound: see `control_checks`."""
        request, limits, direction = self.request, self.request.thresholds, self.request.direction
        unsteered, trial, controls, fewer = plain
        scores = [unsteered.answer("unsteered", variation=PLAIN), trial.answer("steered", variation=PLAIN)]
        scores += [one.answer("random", direction=n, variation=PLAIN) for n, one in enumerate(controls)]
        moved: tuple[float, ...] = ()
        gates, texts, effects = list[GateAnswer](), list[ReportTextAnswer](), list[SideEffectAnswer]()
        if trial.broken is None:
            moved = along(trial, unsteered, direction)
            self.step(f"seed {seed}: utility")
            utility = await self._utility(seed, unsteered, trial)
            texts += self._texts(PLAIN, request.prompts, unsteered, trial)
            robustness: list[CheckAnswer] = []
            if fewer is not None:
                scores.append(fewer.answer(FEWER, variation=PLAIN))
                robustness.append(retained(FEWER, measured(fewer, unsteered, direction), moved, limits))
            elif self.fewer is not None:
                robustness.append(retained(FEWER, None, moved, limits))
            for name in VARIATIONS:
                self.step(f"seed {seed}: {name}")
                prompts = await run_in_thread(varied_prompts, self.engine.tokenizer, request, name, seed)
                samples = Samples(request.samples, request.samples)
                before, (steered,) = await self._trials(seed, name, prompts, (request.plan,), samples)
                scores += [before.answer("unsteered", variation=name), steered.answer("steered", variation=name)]
                robustness.append(retained(name, measured(steered, before, direction), moved, limits))
                if steered.broken is None:
                    texts += self._texts(name, prompts, before, steered)
            self.step(f"seed {seed}: side effects")
            effects = await side_effects(self.engine, request.readers, request.prompts, unsteered, trial)
            control = control_checks(moved, bound, bool(controls), limits) + await self._independent(unsteered, trial)
            self.step(f"seed {seed}: done")
            gates = [_gate("control", control), _gate("utility", utility), _gate("robustness", robustness)]
        return SeedReportAnswer(
            seed=seed,
            passed=bool(gates) and all(gate.passed for gate in gates),
            broken=trial.broken is not None,
            moved=estimate(moved or (0.0,)),
            chance=bound,
            gates=gates,
            side_effects=effects,
            texts=texts,
            scores=tuple(scores),
        )

    async def _utility(self, seed: int, unsteered: Trial, trial: Trial) -> list[CheckAnswer]:
        limits, both = self.request.thresholds, zip(trial.measures, unsteered.measures, strict=True)
        sampling = replace(self.request.sampling, seed=seed)
        (kl,) = await calibration.neutral_divergence(self.engine, self.request.neutral, [self.request.plan], sampling)
        repeated = estimate([one.repetition - other.repetition for one, other in both])
        return [
            check("perplexity_ratio", trials.perplexity_ratio(trial, unsteered), "at_most", limits.perplexity),
            check("repetition_increase", repeated, "at_most", limits.repetition),
            check("kl_neutral", kl, "at_most", limits.kl_neutral),
            check("accuracy_loss", self.lost, "at_most", limits.accuracy_loss),
        ]

    async def _trials(
        self, seed: int, name: str, prompts: Sequence[Prompt], plans: Sequence[SteeringPlan], samples: Samples
    ) -> tuple[Trial, tuple[Trial, ...]]:
        """Runs the trials of one variation."""
        sampling, checkpoints = replace(self.request.sampling, seed=seed), self.request.checkpoints
        samples = replace(samples, perplexity=name == PLAIN)
        return await trials.run_trials(
            self.engine, prompts, plans, self.reading, sampling, samples=samples, checkpoints=checkpoints
        )

    def _texts(self, name: str, prompts: Sequence[Prompt], unsteered: Trial, steered: Trial) -> list[ReportTextAnswer]:
        asked = [instruction_of(prompt, self.engine.tokenizer) for prompt in prompts]
        moved = along(steered, unsteered, self.request.direction)
        return [
            ReportTextAnswer(variation=name, prompt=prompt, unsteered=before, steered=after, moved=shift)
            for prompt, before, after, shift in zip(asked, unsteered.texts, steered.texts, moved, strict=True)
        ]

    async def _independent(self, unsteered: Trial, steered: Trial) -> list[CheckAnswer]:
        """Checks with another model that the answers moved, and that its scores rank them as ours do."""
        scorer, limits = self.request.independent, self.request.thresholds
        if scorer is None:
            return []
        asked = [instruction_of(prompt, self.engine.tokenizer) for prompt in self.request.prompts]
        means, both = list[list[float]](), [[list[float]() for _ in asked] for _ in ("ours", "theirs")]
        for trial in (unsteered, steered):
            found = await scorer.score([asked[n] for n, _ in trial.answers], [one.text for _, one in trial.answers])
            for (n, one), other in zip(trial.answers, found, strict=True):
                both[0][n].append(one.score)
                both[1][n].append(other)
            means.append(trial.by_prompt(found))
        moved = [self.request.direction * (after - before) for before, after in zip(*means, strict=True)]
        agreement = await run_in_thread(rank_correlation, *both)
        return [
            check(f"shift.{scorer.name}", estimate(moved), "above", 0.0),
            check(f"agreement.{scorer.name}", agreement, "at_least", limits.agreement),
        ]


def _gate(name: Literal["control", "utility", "robustness"], checks: list[CheckAnswer]) -> GateAnswer:
    return GateAnswer(name=name, passed=all(one.passed for one in checks), checks=checks)
