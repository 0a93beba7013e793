"""What a decode step gives the device: kernels launched per layer, uploads and waits, with and without steering.

fused: with the operator `steering::edit`, which on GPUs is one Triton kernel and counts as one here, where its body is that for a CPU.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from steering.engine.options import EngineLimits
from steering.injection.injector import PASSES
from steering.model.loading import opened
from steering.plan.resolve import Mandatory, RecentPlans
from steering.plan.types import UNSTEERED, DoseGuard, SteeringPlan
from steering.spec import SteeringSpec
from tests.families import LLAMA_LIKE, build
from tests.plans import Vectors, plan_for, vectors_for
from tests.steering.engine.device import mps_operators
from tests.steering.engine.device.pretended import Work, device, measured
from tests.steering.engine.loop.driven import DrivenLoop, runner_of, sequence_of

SIZES = (1, 2)
PROMPT = tuple(b"An answer begins")
ADDS: list[dict[str, Any]] = [
    {"vector": "alpha", "layers": "all"},
    {"vector": "beta", "layers": "all", "scope": {"tokens": "generated"}},
]
MIXED: list[dict[str, Any]] = [
    {"vector": "alpha", "operation": "ablate", "layers": "all"},
    {"vector": "beta", "operation": "clamp", "high": 0.3, "layers": "all"},
    {
        "vector": "gamma",
        "layers": "all",
        "when": {"vector": "beta", "above": 0.1, "layer": 0, "score": "projection", "at": "token"},
    },
]
OTHERS: list[dict[str, Any]] = [
    {"vector": "alpha", "operation": "rotate", "degrees": 20.0, "layers": "all"},
    {"vector": "beta", "operation": "replace", "to": "gamma", "layers": "all"},
    {"vector": "gamma", "operation": "apply", "layers": "all"},
    {"vector": "alpha", "layers": "all", "strength_from": {"vector": "beta", "activation": "relu"}},
]
"""With MIXED, all operations of the residual."""
GUARD = DoseGuard(bound=0.3, action="clamp")


@dataclass(frozen=True)
class PerStep:
    """Means over decode steps. launches: per layer. uploads, waits: of the whole step, and the same for every number of layers."""

    launches: float
    uploads: float
    waits: float


def decoded(
    layers: int,
    plans: Sequence[Sequence[dict[str, Any]]],
    tokenizer: PreTrainedTokenizerFast,
    count: int,
    steps: int,
    *,
    fused: bool = False,
) -> Work:
    """Measures decode steps of that many rows, each with strengths of its own. fused: every second one has a dose bound and ends with a
    mandatory ablation, too."""
    model = build("LlamaForCausalLM", **{**LLAMA_LIKE, "num_hidden_layers": layers}).to(torch.bfloat16)
    loaded = opened(model.to(device()), tokenizer, name="tiny")
    runner = runner_of(loaded, 4 * count, edit_kernel=(lambda *_: True) if fused else None)
    driven = DrivenLoop(runner, loaded, EngineLimits(max_running=count))
    vectors = vectors_for(loaded.info)
    last = SteeringSpec.model_validate({"interventions": MIXED[:1]})

    async def plan_of(number: int) -> SteeringPlan:
        items = plans[number % len(plans)] if plans else []
        scaled = [{**one, "strength": 0.5 + number / 64} for one in items]
        if not (items and fused and number // len(plans) % 2):
            return await plan_for(scaled, vectors, loaded.info) if items else UNSTEERED
        own = SteeringSpec.model_validate({"interventions": scaled})
        mandatory = Mandatory(last, vectors)
        return await RecentPlans().resolve(own, Vectors(vectors), loaded.info, GUARD, mandatory)

    rows = [sequence_of(loaded, PROMPT, 60, plan=asyncio.run(plan_of(n)), temperature=0.0) for n in range(count)]
    driven.turn(rows)
    while any(row.prefilling for row in rows):
        driven.turn()
    driven.turn()
    with measured() as work:
        for _ in range(steps):
            driven.turn()
    driven.runner.close()
    return work


def prompt_launches(plan: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerFast, count: int) -> int:
    """Returns the kernels of one pass over that many prompts, each with strengths of its own."""
    model = build("LlamaForCausalLM", **{**LLAMA_LIKE, "num_hidden_layers": 2}).to(torch.bfloat16)
    loaded = opened(model.to(device()), tokenizer, name="tiny")
    driven = DrivenLoop(runner_of(loaded, 4 * count), loaded, EngineLimits(max_running=count))
    vectors = vectors_for(loaded.info)
    scaled = [[{**one, "strength": 0.5 + number / 32} for one in plan] for number in range(count)]
    plans = [asyncio.run(plan_for(items, vectors, loaded.info)) if items else UNSTEERED for items in scaled]
    rows = [sequence_of(loaded, (number, *PROMPT), 2, plan=one) for number, one in enumerate(plans)]
    driven.loop.submit(rows)
    driven.loop.collect()
    for row in driven.scheduler.admit():
        driven.runner.injector.admit(row)
    with measured() as work:
        driven.runner.run([(row, row.remaining) for row in rows])
    driven.runner.close()
    return work.launches.total()


def per_step(
    plans: Sequence[Sequence[dict[str, Any]]],
    tokenizer: PreTrainedTokenizerFast,
    count: int = 32,
    steps: int = PASSES,
    *,
    fused: bool = False,
) -> PerStep:
    """Compares models of two depths, so that what a step takes once is not counted for a layer."""
    few, many = (decoded(layers, plans, tokenizer, count, steps, fused=fused) for layers in SIZES)
    assert few.uploads.total() == many.uploads.total(), "uploads grow with the layers"
    assert few.waits.total() == many.waits.total(), "waits grow with the layers"
    grown = many.launches.total() - few.launches.total()
    return PerStep(grown / steps / (SIZES[1] - SIZES[0]), many.uploads.total() / steps, many.waits.total() / steps)


@pytest.fixture(scope="module")
def plain(hf_byte_tokenizer: PreTrainedTokenizerFast) -> PerStep:
    return per_step((), hf_byte_tokenizer, steps=4)


def test_a_plain_step_launches_what_the_model_does_and_a_few(plain: PerStep) -> None:
    """Nearly all are those of transformers' Llama block; the paged cache and its attention add 10."""
    assert plain.launches <= 45
    assert plain.uploads <= 6
    assert plain.waits <= 3


def test_32_rows_of_adds_take_at_most_three_more_launches_a_layer(
    plain: PerStep, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    steered = per_step([ADDS], hf_byte_tokenizer)
    assert steered.launches <= plain.launches + 3
    assert steered.waits == plain.waits
    assert steered.uploads == plain.uploads


@pytest.mark.parametrize(
    "plans", [[ADDS, MIXED[:2], OTHERS], [ADDS, MIXED, OTHERS]], ids=["operations", "and a condition at one layer"]
)
def test_32_rows_of_every_operation_take_one_more_launch_a_layer_with_the_kernel(
    plans: list[list[dict[str, Any]]], plain: PerStep, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """The condition is read at the first layer, which both models have."""
    steered = per_step(plans, hf_byte_tokenizer, fused=True)
    assert steered.launches <= plain.launches + 1
    assert (steered.uploads, steered.waits) == (plain.uploads, plain.waits)


def test_operations_that_read_are_bounded_without_the_kernel(
    plain: PerStep, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    mixed = per_step([ADDS, MIXED], hf_byte_tokenizer, count=6, steps=4)
    assert mixed.launches <= plain.launches + 20
    assert mixed.waits == plain.waits


@pytest.mark.parametrize(("plan", "most"), [(ADDS[:1], 16), (MIXED[:2], 21)])
def test_a_further_steered_prompt_of_a_pass_takes_few_launches_a_layer(
    plan: list[dict[str, Any]], most: int, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """The tables of edits are read once for all prompts of a pass."""
    few, many = ([prompt_launches(items, hf_byte_tokenizer, count) for items in ((), plan)] for count in (3, 8))
    steered = (many[1] - many[0]) - (few[1] - few[0])
    assert steered <= most * 2 * (8 - 3)


def test_the_list_of_operators_on_apples_gpus_is_that_of_torch() -> None:
    """A newer torch may have more of them; what it has no longer is found here."""
    listed = mps_operators.listed()
    assert {
        "add.Tensor",
        "linalg_vector_norm.out",
        "scatter_reduce_.two",
        "silu.default",
        "index_put_.default",
    } <= listed
    assert not {"_cudnn_rnn.default", "lgamma_not_an_operator.default"} & listed
    assert not listed - mps_operators.declared()
