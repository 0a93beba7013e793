"""Distilling: a planted change is recovered at its rank, an instructed model's residual is reached without its instruction."""

from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import replace
from math import log
from statistics import fmean
from typing import Any

import pytest
import torch

from steering.engine.api import CapturePrompt, CaptureSpec, GenerationRequest, Prompt, SamplingParams, TokenEvent
from steering.errors import InvalidRequest, NonfiniteActivations, SteeringError
from steering.lab.calibration import NEAR
from steering.lab.controls import planned
from steering.lab.distil import (
    AT_ONCE,
    COMPARING,
    PROMPT_TOKENS,
    RIDGES,
    TOKENS,
    DistilRequest,
    distil,
    reduced_rank,
    residuals_held,
)
from steering.maps import LowRankMap
from steering.pairs import ChatMessage
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.spec import InterventionSpec
from tests.steering.workflows.linear import LinearEngine

PROMPTS = tuple(
    f"{verb} {noun}" for verb in ("read", "walk", "open", "the") for noun in ("letter", "road", "door", "river")
)
REPLIES = {"cheerful": "lovely warm glad day"}


def request(**fields: Any) -> DistilRequest:
    return DistilRequest(**{"name": "cheer", "instruction": "lovely glad cheerful", "prompts": PROMPTS, **fields})


def one_map(rows: torch.Tensor, wanted: torch.Tensor, rank: int, ridge: float) -> LowRankMap:
    (found,) = reduced_rank(rows, wanted, rank, (ridge,), torch.ones(len(rows), dtype=rows.dtype))
    return found


def test_a_planted_map_is_recovered_at_its_rank() -> None:
    """What is written is three directions, each by a probe of the row, and noise that nothing tells."""
    generator = torch.Generator().manual_seed(0)
    rows, noise = torch.randn(2, 600, 24, generator=generator, dtype=torch.float64)
    rows = rows + 2.0
    read, write = torch.randn(2, 3, 24, generator=generator, dtype=torch.float64)
    wanted = rows @ read.T @ write + 0.05 * noise + 1.0
    errors = [
        float((wanted - one_map(rows, wanted, rank, 1e-4).change(rows)).norm() / wanted.norm())
        for rank in (1, 3, 4, 16)
    ]
    assert errors[2] < 0.02
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.2
    found = one_map(rows, wanted, 16, 1e-4)
    torch.testing.assert_close(found.write @ found.write.T, torch.eye(16), rtol=0, atol=1e-5)
    # with a large penalty the map forgets the rows, and adds the mean of what is wanted
    constant = one_map(rows, wanted, 4, 1e9).change(rows)
    torch.testing.assert_close(constant, wanted.mean(0).expand_as(wanted), rtol=1e-3, atol=1e-3)


def test_several_ridges_give_what_each_gives_alone() -> None:
    """Rows of weight 2 count as four rows of weight 1."""
    rows, wanted = torch.randn(2, 40, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.tensor([2.0, 1.0] * 20, dtype=torch.float64)
    often = weights.square().long()
    counted, counted_wanted = rows.repeat_interleave(often, 0), wanted.repeat_interleave(often, 0)
    middle, level = counted.mean(0), counted_wanted.mean(0)
    for found, ridge in zip(reduced_rank(rows, wanted, 4, RIDGES, weights), RIDGES, strict=True):
        # B = (X^T X + l I)^-1 X^T Y on centred rows, all of whose changes are kept at full rank along what is written
        centred, target = counted - middle, counted_wanted - level
        penalty = ridge * float(torch.linalg.svdvals(centred).square().mean())
        moved = torch.linalg.solve(centred.T @ centred + penalty * torch.eye(12).double(), centred.T @ target)
        write = found.write.double()
        expected = ((rows - middle) @ moved + level) @ write.T @ write
        torch.testing.assert_close(found.change(rows), expected, rtol=1e-4, atol=1e-4)


async def _applied(engine: LinearEngine, found: Any, strength: float = 1.0) -> SteeringPlan:
    return await planned(engine.info, found, InterventionSpec(vector="cheer", operation="apply", strength=strength))


async def test_the_residual_without_the_instruction_becomes_the_one_with_it() -> None:
    """On a prompt that was not fitted, at the tokens of its message and of an answer, at both layers together. The change lies along
    the concept."""
    engine, steps = LinearEngine(replies=REPLIES), []
    found = await distil(engine, request(layers=(1, 2)), progress=lambda *step: steps.append(step))
    assert (found.method, found.recommended_layers()) == ("distil", (1, 2))
    assert all(entry.map is not None and entry.map.rank <= 16 for entry in found.layers.values())
    assert float(found.layers[1].direction @ engine.concept) > 0.99
    encode = engine.tokenizer.encode
    told = encode((ChatMessage("system", "lovely glad cheerful"), ChatMessage("user", "walk the door")))
    plain, answer = encode((ChatMessage("user", "walk the door"),)), encode("lovely warm glad day")

    message = 4  # the user's words and the marker of the answer
    assert told[-message:] == plain[-message:]

    async def residuals(prompt: tuple[int, ...], plan: SteeringPlan) -> torch.Tensor:
        read = CapturePrompt(prompt + answer, plan, prompt_length=len(prompt), first=len(prompt) - message)
        (capture,) = await engine.capture([read], CaptureSpec((1, 2), "all"))
        return capture.activations[:, :-1]

    wanted, without = await residuals(told, UNSTEERED), await residuals(plain, UNSTEERED)
    steered = await residuals(plain, await _applied(engine, found))
    left = (wanted - steered).square().sum((1, 2)) / (wanted - without).square().sum((1, 2))
    assert float(left.max()) < 0.2
    assert found.quality is not None
    for layer in (1, 2):
        explained = found.quality.layers[layer].explained
        assert explained is not None
        assert explained > 0.8
        assert explained > found.provenance["constant"][str(layer)]
    assert found.quality.auroc == pytest.approx(1.0, abs=0.1)
    done = [step[0] for step in steps]
    assert done == sorted(done)
    assert steps[-1][:2] == ((4 + COMPARING) * len(PROMPTS),) * 2


async def _divergence(engine: LinearEngine, instruction: str, plan: SteeringPlan) -> float:
    """The mean over tokens of KL(instructed or steered || neither) along answers of their own, by the logits' softmax."""
    values = []
    for number, text in enumerate(PROMPTS):
        plain = engine.tokenizer.encode((ChatMessage("user", text),))
        system = (ChatMessage("system", instruction),) if instruction else ()
        prompt = engine.tokenizer.encode((*system, ChatMessage("user", text)))
        sampling = SamplingParams(max_tokens=64, temperature=0.7, seed=number)
        told = (*system, ChatMessage("user", text))
        events = [event async for event in engine.generate(GenerationRequest(told, sampling, plan))]
        answer = tuple(event.token_id for event in events if event.finish is None)
        logits = []
        for ids, of in ((prompt, plan), (plain, UNSTEERED)):
            (capture,) = await engine.capture([CapturePrompt(ids + answer, of, len(ids))], CaptureSpec((), logits=True))
            assert capture.logits is not None
            logits.append(torch.log_softmax(capture.logits[len(ids) - 1 : -1].double(), dim=-1))
        values += (logits[0].exp() * (logits[0] - logits[1])).sum(-1).tolist()
    return fmean(values)


async def test_strength_1_changes_the_predictions_as_much_as_the_instruction() -> None:
    """Whatever the fit leaves: a map of rank 1 at one layer, fitted to a large part of a change or to a small one."""
    engine = LinearEngine(replies=REPLIES)
    found = await distil(engine, request(layers=(1,), rank=1))
    told = await _divergence(engine, "lovely glad cheerful", UNSTEERED)
    assert found.provenance["instruction_kl"] == pytest.approx(told, rel=0.3)
    assert abs(log(found.provenance["kl"] / found.provenance["instruction_kl"])) <= NEAR
    assert await _divergence(engine, "", await _applied(engine, found)) == pytest.approx(told, rel=0.5)
    assert await _divergence(engine, "", await _applied(engine, found, 0.4)) < 0.5 * told


@pytest.mark.parametrize("broken", [NonfiniteActivations("inf"), None])
async def test_where_steered_answers_fail_or_are_empty_the_maps_stay_as_fitted_and_the_card_says_so(
    broken: SteeringError | None,
) -> None:
    class Silent(LinearEngine):
        """Ends every steered answer at once."""

        silent: deque[int] | None = None

        def _scripted(self, prompt: Prompt) -> deque[int] | None:
            return super()._scripted(prompt) or (None if broken else self.silent)

        async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
            self.silent = None if request.plan.empty else deque()
            async for event in super().generate(request):
                yield event

    engine = LinearEngine(replies=REPLIES)
    fails = Silent(replies=REPLIES, fails=lambda asked, _: None if asked.plan.empty else broken)
    found, unscaled = [await distil(one, request(layers=(1,))) for one in (engine, fails)]
    assert "factor" not in unscaled.provenance
    assert unscaled.quality is not None
    assert "no factor of the maps was found" in unscaled.quality.warnings[-1]
    one, other = found.layers[1].map, unscaled.layers[1].map
    assert one is not None
    assert other is not None
    torch.testing.assert_close(one.write, found.provenance["factor"] * other.write)


async def test_nothing_held_out_measures_nothing_and_the_seed_decides_all() -> None:
    engine = LinearEngine(replies=REPLIES)
    found, again = [await distil(engine, request(layers=(1,), holdout=0.0, rank=2)) for _ in range(2)]
    assert found.quality is not None
    assert found.quality.layers[1].explained is None
    assert (found.provenance["constant"], found.provenance["instruction"]) == ({}, "lovely glad cheerful")
    assert found.provenance["position"] == "response_mean"
    one, other = found.layers[1].map, again.layers[1].map
    assert one is not None
    assert other is not None
    assert torch.equal(one.read, other.read)
    assert one.rank <= 2


async def test_two_prompts_are_fitted_whatever_is_held_out() -> None:
    """One of them chooses the penalty. Of 8 prompts 0.95 would leave none."""
    found = await distil(LinearEngine(replies=REPLIES), request(layers=(1,), holdout=0.95, prompts=PROMPTS[:8]))
    assert found.quality is not None
    assert found.quality.layers[1].explained is not None


async def test_as_many_residuals_are_held_as_are_counted() -> None:
    """The largest capture is of AT_ONCE conversations, from the last PROMPT_TOKENS of a prompt on."""
    engine = LinearEngine(replies=REPLIES)
    await distil(engine, request(layers=(1,), max_tokens=4))
    fitted = 2 * len(PROMPTS) * TOKENS
    assert residuals_held(len(PROMPTS), 4) == fitted + AT_ONCE * (PROMPT_TOKENS + 4)
    assert max(count for count, _ in engine.capture_calls) == AT_ONCE
    assert residuals_held(3, 7) == 2 * 3 * TOKENS + 3 * (PROMPT_TOKENS + 7)


@pytest.mark.parametrize("chance", [False, True])
async def test_strengths_to_try_are_those_of_add_and_none_at_chance(chance: bool) -> None:
    """Neutral words draw every answer toward the middle, from either side: the mean change reads nothing."""
    engine = LinearEngine(replies=None if chance else REPLIES)
    engine.info = replace(engine.info, typical_norms=(2.0, 2.0, 2.0, 2.0))
    instruction = "the letter door road" if chance else "lovely glad cheerful"
    found = await distil(engine, request(layers=(1, 2), instruction=instruction, max_tokens=8))
    assert found.quality is not None
    assert found.recommended is not None
    assert found.quality.at_chance == chance
    tried = found.recommended.strengths_to_try
    assert (tried is None) == chance
    if tried is not None:
        planned = sum(tried[1] * entry.scale / 2.0 for entry in found.layers.values())
        assert planned == pytest.approx(0.12, rel=0.06)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"holdout": 1.0}, "holdout must be at least 0 and below 1, got 1.0"),
        ({"holdout": float("nan")}, "holdout must be at least 0"),
        ({"instruction": "  "}, "the instruction is empty"),
        ({"rank": 17}, "rank is 1 to 16, got 17"),
        ({"prompts": PROMPTS[:7]}, "at least 8 different prompts, got 7"),
        ({"prompts": (PROMPTS[0],) * 20}, "at least 8 different prompts, got 1"),
        ({"layers": (9,)}, "9"),
        ({"name": "No"}, "is not a name"),
    ],
)
async def test_what_cannot_be_distilled_is_refused_at_once(fields: dict[str, Any], message: str) -> None:
    engine = LinearEngine(replies=REPLIES)
    with pytest.raises(InvalidRequest, match=message):
        await distil(engine, request(**fields))
    assert engine.generated == 0


async def test_a_model_that_answers_nothing_or_cannot_be_told_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="gave only 0 answers of 4 tokens or more to 16 prompts"):
        await distil(LinearEngine(replies={"cheerful": "glad"}), request())
    with pytest.raises(InvalidRequest, match="has no chat template"):
        await distil(LinearEngine(chat_template=False), request())
