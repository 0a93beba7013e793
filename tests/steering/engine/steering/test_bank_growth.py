"""What a request has decided so far outlives the growth of the tables it is kept in."""

import asyncio
import random
from contextlib import suppress

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from steering.engine.options import EngineLimits
from steering.engine.transformers.runner import ModelRunner
from steering.engine.transformers.sequence import Sequence, Stream
from steering.engine.transformers.steering.bank import SteeringBank
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
    row = Sequence(0, list(PROMPT), len(PROMPT), plan, sampling(PASSES), Stream(asyncio.get_running_loop()))
    row.block_table = [1]
    runner.steering.admit(row)
    found = [runner.run([(row, len(PROMPT))]).logits]
    layout = runner.steering.bank.layout
    for number in range(PASSES):
        if number == grow_at:
            while runner.steering.bank.layout == layout:
                runner.steering.bank.allocate(plan)
        if number == NEW_STACK_AFTER:
            runner.steering.flush()
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


@pytest.mark.parametrize("failing", range(1, 10))
async def test_memory_that_ends_while_tables_grow_leaves_them_usable(
    failing: int, tiny_model: PreTrainedModel, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    info = opened(tiny_model, hf_byte_tokenizer, name="tiny").info
    plan = await plan_for([{"vector": "alpha", "strength": 2.0, "layers": [2]}], vectors_for(info), info)
    bank = SteeringBank(info.layer_count, info.d_model, torch.device("cpu"))
    rows = {bank.allocate(plan) for _ in range(7)}
    with suppress(torch.OutOfMemoryError), FailingAllocator([failing]):
        rows.add(bank.allocate(plan))
    rows |= {bank.allocate(plan) for _ in range(17)}
    assert len(rows) in {24, 25}
    for row in rows:
        bank.release(row)
