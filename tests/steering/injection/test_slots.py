"""What a request has decided so far outlives the growth of the tables it is kept in."""

import asyncio
import random
from contextlib import suppress

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from steering.engine.answers import Stream
from steering.engine.options import EngineLimits
from steering.engine.transformers.request import Request
from steering.engine.transformers.runner import ModelRunner
from steering.injection.slots import Slots
from steering.model.hook_points import KINDS
from steering.model.layout import find_layout
from steering.model.loading import opened
from steering.shapes import Logits
from tests.engines import sampling
from tests.plans import plan_for, vectors_for
from tests.steering.engine.loop.driven import FailingAllocator

PROMPT = list(b"Hm")
PASSES, GROWS_AFTER, NEW_STACK_AFTER = 9, 2, 5


async def logits_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seed: int, grow_at: int
) -> list[Logits]:
    """Of every pass over one row that latches, with the same tokens whatever they are; its stack is made anew later on."""
    rng, info = random.Random(seed), opened(model, tokenizer, name="tiny").info
    bound = rng.uniform(0.0, 3.0)
    when = {"vector": "beta", "layer": rng.choice([0, 1]), "score": "projection", "above": bound, "until": -9.0}
    item = {"vector": "alpha", "strength": 2.0, "layers": [2], "when": {**when, "at": "token"}}
    plan = await plan_for([item], vectors_for(info), info)
    runner = ModelRunner(model, find_layout(model), torch.device("cpu"), EngineLimits())
    row = Request(
        id=0,
        ids=list(PROMPT),
        prompt_length=len(PROMPT),
        plan=plan,
        sampling=sampling(PASSES),
        stream=Stream(asyncio.get_running_loop()),
    )
    row.block_table = [1]
    runner.injector.admit(row)
    found = [runner.run([(row, len(PROMPT))]).logits]
    layout = runner.injector.slots.layout
    for number in range(PASSES):
        if number == grow_at:
            while runner.injector.slots.layout == layout:
                runner.injector.slots.allocate(plan, 2)
        if number == NEW_STACK_AFTER:
            runner.injector.flush()
        row.ids.append(rng.randrange(256))
        found.append(runner.run([(row, 1)]).logits)
    runner.close()
    return found


@pytest.mark.parametrize("seed", range(12))
async def test_decisions_outlive_the_growth_of_their_tables(
    seed: int, tiny_model: PreTrainedModel, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    before, during = [await logits_of(tiny_model, hf_byte_tokenizer, seed, at) for at in (0, GROWS_AFTER)]
    for one, other in zip(before, during, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("failing", range(1, 45, 2))
async def test_memory_that_ends_while_tables_grow_leaves_them_usable(
    failing: int, tiny_model: PreTrainedModel, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    info = opened(tiny_model, hf_byte_tokenizer, name="tiny").info
    item = {"vector": "alpha", "strength": 2.0, "layers": [2]}
    plan, wider = [await plan_for([item] * count, vectors_for(info), info) for count in (1, 3)]
    slots = Slots(info.layer_count, info.d_model, torch.device("cpu"))
    taken = {slots.allocate(plan, 5) for _ in range(7)}
    with suppress(torch.OutOfMemoryError), FailingAllocator([failing]):
        taken.add(slots.allocate(wider, 5))
    taken |= {slots.allocate(one, 5) for one in (plan, wider) for _ in range(9)}
    assert len(taken) in {25, 26}
    for slot in taken:
        slots.release(slot)
    assert not any(placed.users for placed in slots._placed.values())
    assert len(slots._free) == len(slots.rows) - 1
    kept = [row for placed in slots._placed.values() for row in placed.taken]
    assert sorted([*slots._free_rows, *kept]) == list(range(1, len(slots.vectors)))


async def test_rows_of_plans_that_nobody_uses_are_given_to_others(
    tiny_model: PreTrainedModel, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    info = opened(tiny_model, hf_byte_tokenizer, name="tiny").info
    slots = Slots(info.layer_count, info.d_model, torch.device("cpu"))
    plans = [await plan_for([{"vector": "alpha", "strength": n + 1.0}] * 2, vectors_for(info), info) for n in range(9)]
    running = slots.allocate(plans[0], 5)
    rows = slots.vectors[slots.rows[running]].clone()
    for plan in plans[1:] * 2:
        slots.release(slots.allocate(plan, 5))
    size, taken = len(slots.vectors), len(slots._placed[id(plans[0].layers)].taken)
    assert size <= 4 * (1 + taken)
    assert torch.equal(slots.vectors[slots.rows[running]], rows)
    slots.release(slots.allocate(plans[1], 5))
    assert len(slots.vectors) == size


async def test_requests_with_one_plan_share_its_edits(
    tiny_model: PreTrainedModel, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """A table of (slot, layer, edit, d_model) would hold every vector once for each request and the widest layer for all."""
    info = opened(tiny_model, hf_byte_tokenizer, name="tiny").info
    items = [{"vector": name, "operation": "clamp", "low": 0.0, "layers": [1]} for name in ("alpha", "beta")]
    plan = await plan_for([*items, {"vector": "gamma", "layers": "all"}], vectors_for(info), info)
    slots = Slots(info.layer_count, info.d_model, torch.device("cpu"))
    for _ in range(20):
        slots.allocate(plan, 5)
    edits = 2 + info.layer_count
    assert len(slots.vectors) - len(slots._free_rows) == 1 + edits + 2, "what is written, and what two of them read"
    assert slots.rows.shape == (32, KINDS * info.layer_count, 4)
