"""A deployment report passes what is planted to work, and fails each gate for the reason that was planted."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, Literal

import pytest

from steering.cards import Estimate
from steering.client.results import check_row, check_verdict, item_rows
from steering.engine.api import GenerationRequest, SamplingParams
from steering.errors import NonfiniteActivations, SteeringError
from steering.lab.controls import REPORT, control_seeds, plan_at, planned, random_like, random_plans
from steering.lab.report import (
    PLAIN,
    ROLE,
    VARIATIONS,
    OtherModelScorer,
    Question,
    ReportRequest,
    agree,
    answered_rightly,
    check,
    control_checks,
    load_questions,
    prompts_for_share,
    report,
    retained,
    varied,
)
from steering.lab.trials import chance, mean_shifts, read_back, run_trials
from steering.plan.types import UNSTEERED
from steering.schemas.evaluation import CheckAnswer, ReportAnswer, ThresholdsFields
from steering.spec import InterventionSpec
from steering.workflows.texts import as_prompts
from tests.narrowing import messages_of, present
from tests.steering.lab.breaking_controls import BreakingReads, breaking_controls
from tests.steering.workflows.linear import LinearEngine
from tests.steering.workflows.linear_tokenizer import POSITIVE, LinearTokenizer
from tests.steering.workflows.texts import conversation, planted_pairs
from tests.steering.workflows.vectors import planted_vector

WORDS = ("road", "river", "house", "door", "train", "city", "bread", "field")
PROMPTS = tuple(conversation(f"the {word}") for word in WORDS)


async def request_of(engine: LinearEngine, item: dict[str, Any], **changes: Any) -> ReportRequest:
    vector = replace(planted_vector(engine), version=1)
    asked = InterventionSpec.model_validate({"vector": "sentiment", "layers": [2], **item})
    plan = await planned(engine.info, vector, asked)
    found = ReportRequest(
        vector,
        plan,
        {vector.id: vector},
        PROMPTS,
        PROMPTS[:2],
        reading_layer=2,
        sampling=SamplingParams(max_tokens=16, temperature=1.0),
        seeds=(0,),
        varied=4,
    )
    return replace(found, **changes)


def check_of(found: ReportAnswer, gate: str, name: str, seed: int = 0) -> CheckAnswer:
    (one,) = [
        check for each in found.seeds[seed].gates if each.name == gate for check in each.checks if check.name == name
    ]
    return one


async def test_what_is_planted_to_work_passes_under_both_seeds(engine: LinearEngine) -> None:
    pairs = planted_pairs()
    request = await request_of(engine, {"strength": 0.8}, pairs=pairs, seeds=(0, 1))
    request = replace(request, vector=replace(request.vector, provenance={"position": "mean"}))
    done: list[tuple[int, int]] = []
    found = await report(engine, request, progress=lambda n, total, _: done.append((n, total)))
    assert [[gate.name for gate in one.gates] for one in found.seeds] == [["control", "utility", "robustness"]] * 2
    assert all(check_of(found, "control", "shift", seed).passed for seed in (0, 1))
    against = check_of(found, "control", "anti_steered")
    assert (against.value, against.on_average) == (0.0, True)
    assert present(against.interval)[1] == pytest.approx(0.324, abs=1e-3), (
        "eight prompts do not show that few move against it"
    )
    assert not against.passed
    (warning,) = [one for one in found.warnings if one.startswith("anti_steered cannot pass: with 8 prompts")]
    assert warning.endswith("12 or more prompts are needed")
    assert found.seeds[0].chance is not None
    retained = {check.name for check in found.seeds[0].gates[2].checks}
    assert retained == {f"retained.{name}" for name in (*VARIATIONS, "fewer_pairs")}
    assert present(check_of(found, "robustness", "retained.fewer_pairs").value) > 0.5
    assert done == sorted(done)
    assert done[-1][0] == done[-1][1]


async def test_one_bound_of_chance_is_estimated_from_the_directions_of_all_seeds(engine: LinearEngine) -> None:
    request = await request_of(engine, {"strength": 0.8}, seeds=(7, 3))
    found = await report(engine, request)
    shifted: list[float] = []
    for seed in request.seeds:
        drawn = control_seeds(seed, REPORT, 4)
        plans = await random_plans(engine.info, request.plan, request.vectors, drawn)
        reading = read_back(engine, request.vector, None, request.reading_layer, "projection")
        sampling = replace(request.sampling, seed=seed)
        unsteered, trials = await run_trials(engine, request.prompts, plans, reading, sampling)
        shifted += mean_shifts(unsteered, trials)
    assert shifted[:4] != shifted[4:]
    assert [one.chance for one in found.seeds] == pytest.approx([chance({1.0: shifted})[1.0]] * 2)
    again = await report(engine, replace(request, seeds=(7, 3, 7)))
    assert again.seeds[0].chance == pytest.approx(chance({1.0: shifted})[1.0]), (
        "a seed named twice is no further evidence"
    )


async def test_its_texts_can_be_read(engine: LinearEngine) -> None:
    found = await report(engine, await request_of(engine, {"strength": 0.8}, varied=2))
    texts = found.seeds[0].texts
    plain = [one for one in texts if one.variation == PLAIN]
    assert [one.prompt for one in plain] == [f"the {word}" for word in WORDS]
    assert {one.variation for one in texts} == {PLAIN, *VARIATIONS}
    assert [one.prompt for one in texts if one.variation == "upper_case"] == ["THE ROAD", "THE RIVER"]

    def lovely(answers: Sequence[str]) -> int:
        return sum(word in POSITIVE for text in answers for word in text.split())

    assert lovely([one.steered for one in plain]) > lovely([one.unsteered for one in plain])


async def test_a_report_has_the_score_of_every_answer(engine: LinearEngine) -> None:
    """The mean shift is computed anew from them; each seed has four random directions of its own."""
    found = await report(engine, await request_of(engine, {"strength": 0.8}, seeds=(0, 1), samples=2, varied=3))
    rows = item_rows(found)
    plain = [row for row in rows if row["variation"] == PLAIN]
    assert len(plain) == 2 * len(PROMPTS) * (4 + 2 + 4 * 2)
    assert len(rows) - len(plain) == 2 * len(VARIATIONS) * 3 * (2 + 2)
    assert {row["direction"] for row in rows if row["arm"] == "random"} == {0, 1, 2, 3}
    for one in found.seeds:
        means = [
            fmean(row["score"] for row in plain if (row["seed"], row["arm"]) == (one.seed, arm))
            for arm in ("steered", "unsteered")
        ]
        assert one.moved.mean == pytest.approx(means[0] - means[1])


async def test_a_direction_without_effect_fails_control_and_robustness(engine: LinearEngine) -> None:
    request = await request_of(engine, {"strength": 0.8})
    random = {name: random_like(vector, 99) for name, vector in request.vectors.items()}
    (vector,) = random.values()
    plan = await planned(engine.info, vector, *request.plan.spec.interventions)
    found = await report(engine, replace(request, plan=plan, vectors=random))
    assert not any(one.gates[0].passed for one in found.seeds)
    assert not found.passed


async def test_the_wrong_direction_is_anti_steered(engine: LinearEngine) -> None:
    found = await report(engine, await request_of(engine, {"strength": 0.8}, direction=-1, seeds=(4,)))
    assert check_of(found, "control", "anti_steered").value == 1.0
    assert present(check_of(found, "control", "shift").value) < 0.0
    assert all(check.value == 0.0 and not check.passed for check in found.seeds[0].gates[2].checks)


async def test_a_strength_that_breaks_text_fails_utility(engine: LinearEngine) -> None:
    found = await report(engine, await request_of(engine, {"strength": 1.9}))
    assert not found.seeds[0].gates[1].passed
    assert not check_of(found, "utility", "perplexity_ratio").passed


async def test_other_operations_are_judged_and_compared_with_zero(engine: LinearEngine) -> None:
    found = await report(engine, await request_of(engine, {"operation": "clamp", "low": 0.6}))
    assert found.seeds[0].chance is None
    assert check_of(found, "control", "shift").passed
    assert any("no random controls" in warning for warning in found.warnings)
    assert not any("chance is not known" in warning for warning in found.warnings)


async def test_a_shift_is_not_shown_where_every_random_direction_broke() -> None:
    """The shift lies far above 0, and it is not known how far a random direction moves the text."""
    engine = breaking_controls(0.3)
    found = await report(engine, await request_of(engine, {"strength": 0.8}, varied=1))
    shift = check_of(found, "control", "shift")
    assert found.seeds[0].chance is None
    assert present(found.seeds[0].moved.interval)[0] > 0.0
    assert (shift.passed, shift.interval, shift.value) == (False, None, found.seeds[0].moved.mean)
    assert check_verdict(shift) == "not shown"
    assert not any("no random controls" in warning for warning in found.warnings)
    assert any(warning.startswith("chance is not known") for warning in found.warnings)


async def test_a_variation_that_overflows_was_not_measured_and_does_not_pass() -> None:
    """Upper case, and the vector from fewer pairs, make activations non-finite; the other variations pass."""
    kept = set[str]()

    def fails(request: GenerationRequest, index: int) -> SteeringError | None:
        loud = isinstance(request.prompt, tuple) and messages_of(request.prompt)[-1].content.isupper()
        other = request.plan.fingerprint not in kept
        return NonfiniteActivations("no") if request.plan.layers and (loud or other) else None

    engine = LinearEngine(fails=fails)
    request = await request_of(engine, {"strength": 0.8}, pairs=planted_pairs())
    kept.add(request.plan.fingerprint)
    found = await report(engine, request)
    robustness = found.seeds[0].gates[2]
    values = {one.name: one.value for one in robustness.checks}
    assert not robustness.passed
    assert [name for name, value in values.items() if value is None] == ["retained.fewer_pairs", "retained.upper_case"]
    assert len(values) == 1 + len(VARIATIONS)
    (warning,) = [one for one in found.warnings if one.startswith("not measured and not passed")]
    assert warning.endswith("retained.fewer_pairs (seed 0), retained.upper_case (seed 0)")


@pytest.mark.parametrize("at", [(2,), (0, 2)])
async def test_half_of_the_pairs_that_does_not_give_the_vector_is_said_and_does_not_pass(
    engine: LinearEngine, at: tuple[int, ...]
) -> None:
    """Every second topic has equal texts; or the texts are read at a word that they share, which block 0 does not tell apart."""
    pairs, layers = planted_pairs(), planted_vector(engine).layers
    halved = set(sorted(set(pairs.topics))[::2])
    both = zip(pairs.positive, pairs.negative, pairs.topics, strict=True)
    equal = tuple(kind if topic in halved else grim for kind, grim, topic in both)
    pairs = replace(pairs, negative=equal) if at == (2,) else pairs
    made = replace(planted_vector(engine), version=1, layers={0: layers[2], **layers}, provenance={"position": "last"})
    plan = await plan_at(engine.info, made, 0.4, at)
    request = await request_of(engine, {}, vector=made, plan=plan, vectors={made.id: made}, pairs=pairs)
    found = await report(engine, request)
    one = check_of(found, "robustness", "retained.fewer_pairs")
    assert (one.value, one.passed) == (None, False)
    (warning,) = [warning for warning in found.warnings if "not measured" in warning]
    assert warning.startswith(
        "retained.fewer_pairs was not measured and is not passed, because half of the pairs do not give the vector"
    )
    assert ("layer 0" in warning) == (at == (0, 2))


async def test_steering_that_does_not_act_along_the_vector_is_not_checked_with_fewer_pairs(
    engine: LinearEngine,
) -> None:
    other = replace(planted_vector(engine, "other"), version=1)
    plan = await plan_at(engine.info, other, 0.8, (2,))
    request = await request_of(engine, {}, plan=plan, vectors={other.id: other}, pairs=planted_pairs())
    found = await report(engine, request)
    assert {check.name for check in found.seeds[0].gates[2].checks} == {f"retained.{name}" for name in VARIATIONS}
    assert "not checked with fewer pairs: the steering does not act along sentiment@1" in found.warnings


async def test_steering_that_breaks_the_questions_and_neutral_text_does_not_pass() -> None:
    engine = BreakingReads(0.5)
    found = await report(engine, await request_of(engine, {"strength": 0.8}))
    found = ReportAnswer.model_validate_json(found.model_dump_json())
    kl, lost = (check_of(found, "utility", name) for name in ("kl_neutral", "accuracy_loss"))
    plain = await answered_rightly(engine, load_questions(), UNSTEERED)
    assert (kl.value, kl.passed) == (None, False)
    assert lost.value == pytest.approx(fmean(plain))
    assert any(one.endswith("non-finite: kl_neutral (seed 0)") for one in found.warnings)


async def test_side_effects_are_read_along_every_vector(engine: LinearEngine) -> None:
    request = await request_of(engine, {"strength": 0.8})
    across = replace(random_like(request.vector, 5), name="across")
    found = await report(engine, replace(request, readers={"sentiment": request.vector, "across": across}))
    moved = {one.vector: one.shift for one in found.seeds[0].side_effects}
    assert moved["sentiment"].mean > 0.3
    assert abs(moved["across"].mean) < 0.1


class Counting(OtherModelScorer):
    """Counts kind words: it knows nothing of the vector."""

    def __init__(self, name: str = "counting") -> None:
        self.name = name

    @property
    def evidence(self) -> str:
        return f"{self.name} counts kind words"

    async def score(self, instructions: Sequence[str], texts: Sequence[str]) -> list[float]:
        assert list(instructions) == [f"the {word}" for word in WORDS] * (len(texts) // len(WORDS))
        return [float(sum(word in POSITIVE for word in text.split())) for text in texts]


class Contrary(Counting):
    """Says the opposite."""

    async def score(self, instructions: Sequence[str], texts: Sequence[str]) -> list[float]:
        return [-one for one in await super().score(instructions, texts)]


class Indifferent(Counting):
    """Finds every text equal."""

    async def score(self, instructions: Sequence[str], texts: Sequence[str]) -> list[float]:
        return [0.0 for _ in texts]


async def test_a_scorer_that_tells_no_text_from_another_does_not_agree(engine: LinearEngine) -> None:
    request = await request_of(engine, {"strength": 0.8}, independent=Indifferent("indifferent"), varied=1)
    agreement = check_of(await report(engine, request), "control", "agreement.indifferent")
    assert (agreement.value, agreement.passed) == (None, False)


async def test_scores_are_ranked_outside_of_the_event_loop(engine: LinearEngine) -> None:
    """It takes a second for many answers."""
    ranked_in: set[threading.Thread] = set()

    class Noted(float):
        def __hash__(self) -> int:
            ranked_in.add(threading.current_thread())
            return super().__hash__()

    class Noting(Counting):
        async def score(self, instructions: Sequence[str], texts: Sequence[str]) -> list[float]:
            return [Noted(one) for one in await super().score(instructions, texts)]

    request = await request_of(engine, {"strength": 0.8}, independent=Noting("noting"), varied=1)
    await report(engine, request)
    assert ranked_in
    assert threading.current_thread() not in ranked_in


async def test_an_independent_scorer_has_a_say_in_the_gate_of_control(engine: LinearEngine) -> None:
    found = await report(engine, await request_of(engine, {"strength": 0.8}, independent=Counting()))
    assert check_of(found, "control", "shift.counting").passed
    assert present(check_of(found, "control", "agreement.counting").value) > 0.3
    assert found.warnings[-1] == "counting counts kind words"
    contrary = await report(engine, await request_of(engine, {"strength": 0.8}, independent=Contrary("contrary")))
    assert not contrary.seeds[0].gates[0].passed
    assert present(check_of(contrary, "control", "agreement.contrary").value) < 0.0


async def test_the_independent_scorer_and_the_side_effects_read_every_answer(engine: LinearEngine) -> None:
    """Four unsteered answers to each prompt and three steered ones, by a scorer that counts kind words."""
    given: list[int] = []

    class Recorded(Counting):
        async def score(self, instructions: Sequence[str], texts: Sequence[str]) -> list[float]:
            given.append(len(texts))
            return [float(sum(word in POSITIVE for word in text.split())) for text in texts]

    request = await request_of(engine, {"strength": 0.8}, independent=Recorded("recorded"), samples=3)
    found = await report(engine, replace(request, readers={"same": request.vector}))
    assert given == [4 * len(PROMPTS), 3 * len(PROMPTS)]
    assert present(check_of(found, "control", "agreement.recorded").value) > 0.3
    (effect,) = found.seeds[0].side_effects
    assert effect.shift.mean > 0.0


async def test_seeds_agree_where_they_pass_and_fail_the_same_gates(engine: LinearEngine) -> None:
    found = await report(engine, await request_of(engine, {"strength": 0.8}, seeds=(0, 1), varied=1))
    assert found.seeds_agree == (
        [gate.passed for gate in found.seeds[0].gates] == [gate.passed for gate in found.seeds[1].gates]
    )
    one = found.seeds[0]
    control, *others = one.gates
    flipped = one.model_copy(update={"gates": [control.model_copy(update={"passed": not control.passed}), *others]})
    assert agree((one, one))
    assert not agree((one, flipped))


def test_questions_have_four_different_options() -> None:
    questions = load_questions()
    assert len(questions) >= 30
    assert len({one.text for one in questions}) == len(questions)
    assert all(len(set(one.options)) == 4 for one in questions)


async def test_accuracy_follows_what_the_model_finds_likely(engine: LinearEngine) -> None:
    """Steered toward kind words, it answers with one; equal options are not right."""
    plan = await plan_at(engine.info, planted_vector(engine), 1.0, (2,))
    kind, same = (
        Question("the road", ("x warm", "x grim", "x sad", "x dull")),
        Question("the road", ("y", "y", "y", "y")),
    )
    assert await answered_rightly(engine, [kind, same], plan) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("relation", "interval", "passed", "on_average", "margin"),
    [
        ("at_most", None, False, False, None),
        ("at_least", None, False, True, None),
        ("above", (0.3, 0.7), True, True, 0.1),
        ("above", (0.2, 0.8), False, True, 0.0),
        ("at_least", (0.2, 0.8), True, True, 0.0),
        ("at_least", (0.1, 0.9), False, True, -0.1),
        ("at_most", (0.4, 0.6), False, False, -0.4),
    ],
)
def test_a_check_passes_with_its_whole_interval(
    relation: Literal["above", "at_most", "at_least"],
    interval: tuple[float, float] | None,
    passed: bool,
    on_average: bool,
    margin: float | None,
) -> None:
    found = check("shift", Estimate(0.5, interval), relation, 0.2)
    assert (found.passed, found.on_average) == (passed, on_average)
    assert found.margin == (None if margin is None else pytest.approx(margin))


def test_a_value_on_the_threshold_is_at_most_and_at_least_and_not_above() -> None:
    on = Estimate(0.3, (0.3, 0.3))
    assert not check("shift", on, "above", 0.3).passed
    assert check("shift", on, "at_most", 0.3).passed
    assert check("shift", on, "at_least", 0.3).passed
    assert check("shift", Estimate(0.4, (0.30000000000000004, 0.5)), "above", 0.3).passed


def test_what_was_not_measured_does_not_pass_and_is_not_said_to_fail() -> None:
    found = check("kl_neutral", None, "at_most", 0.5)
    assert (found.value, found.passed, found.on_average, found.margin) == (None, False, None, None)
    assert check_verdict(found) == "not shown"
    assert check_row(found)[1] == "not measured"


LIMITS = ThresholdsFields()


def anti_steered(moved: Sequence[float]) -> CheckAnswer:
    """The check of planted shifts."""
    return next(one for one in control_checks(moved, None, False, LIMITS) if one.name == "anti_steered")


def test_prompts_are_anti_steered_by_the_sign_of_their_shift() -> None:
    """A shift counts however small it is, and an answer that does not move does not."""
    found = anti_steered((-1e-14, -0.5, 0.0, 1e-14, *(1.0,) * 16))
    assert found.value == 0.1
    assert present(found.interval)[1] == pytest.approx(0.301, abs=1e-3)
    assert not found.passed
    assert anti_steered((1.0,) * 12).passed
    assert not anti_steered((1.0,) * 11).passed
    assert [prompts_for_share(limit) for limit in (0.25, 0.1, 1.0, 0.0)] == [12, 35, 0, None]


def test_what_is_retained_counts_the_noise_of_both_shifts() -> None:
    """Without the noise of the plain shift the interval would reach from 0.7 to 0.7; with it 0.5 is inside."""
    plain = (0.2, 1.8, 0.2, 1.8, 0.2, 1.8)
    noisy = retained("typos", (0.7,) * 6, plain, LIMITS)
    assert noisy.value == pytest.approx(0.7)
    assert present(noisy.interval)[0] < 0.5
    assert not noisy.passed
    along = retained("typos", [0.7 * shift for shift in plain], plain, LIMITS)
    assert present(along.interval) == pytest.approx((0.7, 0.7)), "prompt by prompt nothing differs"
    assert along.passed
    unknown = retained("typos", (0.7,) * 6, (2.0, -1.9) * 3, LIMITS)
    assert (unknown.interval, unknown.passed) == (None, False), "the plain shift may be 0"


async def test_what_a_variation_retains_is_a_share_of_the_shift_of_the_same_prompts(engine: LinearEngine) -> None:
    """Four of eight prompts are varied, and those four move by another distance than all eight."""
    found = await report(engine, await request_of(engine, {"strength": 0.8}, varied=4))
    moved = [one.moved for one in found.seeds[0].texts if one.variation == PLAIN]
    assert fmean(moved[:4]) != pytest.approx(fmean(moved), rel=1e-3)
    for name in VARIATIONS:
        varied = [one.moved for one in found.seeds[0].texts if one.variation == name]
        retained = check_of(found, "robustness", f"retained.{name}").value
        assert retained == pytest.approx(fmean(varied) / fmean(moved[:4]))


def test_typos_and_roles_change_what_they_should() -> None:
    prompt, tokenizer = conversation("what is the river like in spring"), LinearTokenizer()
    (typed,) = messages_of(varied(tokenizer, prompt, "typos", 3))
    assert typed.content != prompt[0].content
    assert sorted(typed.content) == sorted(prompt[0].content)
    assert varied(tokenizer, prompt, "typos", 3) == (typed,)
    system, user = messages_of(varied(tokenizer, prompt, "role", 0))
    assert (system.role, user) == ("system", prompt[0])
    assert VARIATIONS["lookalikes"]("area one", 0) == "4r34 0n3"


async def test_a_model_without_system_messages_gets_the_role_before_the_instruction() -> None:
    engine = LinearEngine(system_role=False)
    found = await report(engine, await request_of(engine, {"strength": 0.8}, varied=1))
    (text,) = [one for one in found.seeds[0].texts if one.variation == "role"]
    assert text.prompt == f"{ROLE}\n\nthe road"


async def test_of_a_transcript_the_question_is_varied_and_shown() -> None:
    engine = LinearEngine(chat_template=False)
    prompts = as_prompts(engine, [f"the {word}" for word in WORDS])
    found = await report(engine, await request_of(engine, {"strength": 0.8}, prompts=prompts, varied=1))
    shown = {one.variation: one.prompt for one in found.seeds[0].texts if one.prompt.lower().endswith("road")}
    assert (shown[PLAIN], shown["upper_case"]) == ("the road", "THE ROAD")
    after = varied(engine.tokenizer, prompts[0], "paraphrase_after", 0)
    assert after == "User: the road Please answer in two or three sentences.\n\nAssistant:"
    assert varied(engine.tokenizer, "Assistant:", "upper_case", 0) == "ASSISTANT:"


@pytest.mark.parametrize("name", list(VARIATIONS))
def test_every_variation_takes_plain_prompts(name: str) -> None:
    assert isinstance(VARIATIONS[name]("the road goes over the river", 1), str)
