"""Each token has the directions of its request, and no copy of them: what a pass needs does not grow with the plans."""

import asyncio
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from steering.engine.api import SamplingParams
from steering.engine.transformers.sequence import Sequence, Stream
from steering.engine.transformers.steering.gather import CHUNK_NUMBERS, DirectionTable, Spread, index_of, put, take
from steering.engine.transformers.steering.steering_batch import SteeringRunner
from steering.model.info import ModelInfo
from tests.plans import NAMES, plan_for, vectors_for
from tests.steering.engine.steering.passes import pass_over

CPU = torch.device("cpu")
TOKENS, D_MODEL, PLANS = 2048, 96, 24
INFO = ModelInfo("tiny", "Llama", "f" * 64, D_MODEL, 2, 100, 8192, "float32", "cpu", 1000, True)


@given(members=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=6))
@settings(max_examples=40)
def test_every_token_has_the_directions_of_its_member(members: list[tuple[int, int]]) -> None:
    width = CHUNK_NUMBERS // 4  # so that a chunk holds four tokens
    tensors = [torch.full((1, width), float(number)) for number in range(4)]
    counts = [count for _, count in members]
    table = DirectionTable([tensors[entry] for entry, _ in members], Spread(counts, CPU), CPU)
    found = table.map(lambda tokens, directions: directions[:, 0, 0] * 100 + torch.arange(tokens.start, tokens.stop))
    owners = [entry for entry, count in members for _ in range(count)]
    assert found.tolist() == [100 * owner + token for token, owner in enumerate(owners)]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 3)), min_size=1, max_size=4))
def test_rows_are_taken_and_put_back(ranges: list[tuple[int, int]]) -> None:
    rows = [row for start, count in ranges for row in range(start, start + count)]
    index = index_of([range(start, start + count) for start, count in ranges], CPU)
    values = torch.arange(24.0)
    assert take(values, index).tolist() == rows
    if len(set(rows)) == len(rows):
        changed = put(values, index, -take(values, index))
        assert changed.tolist() == [-value if value in rows else value for value in values.tolist()]
        assert values.tolist() == list(range(24))


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """Remembers the largest tensor that was allocated."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else (result,):
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.untyped_storage().nbytes() // one.element_size())
        return result


def test_a_pass_allocates_no_more_for_many_directions() -> None:
    """24 ablated directions and 2,048 tokens: a copy for each token would take 4.7 million numbers at each layer."""
    generator = torch.Generator().manual_seed(5)
    residual = torch.randn(TOKENS, D_MODEL, generator=generator)

    async def sequences() -> list[Sequence]:
        seeds = [vectors_for(INFO, seed) for seed in range(PLANS // len(NAMES))]
        named = {f"{name}-{n}": vector for n, found in enumerate(seeds) for name, vector in found.items()}
        items = [{"vector": name, "operation": "ablate", "layers": "all"} for name in named]
        plans = [await plan_for(items, named, INFO), await plan_for(items[1:], named, INFO)]
        loop = asyncio.get_running_loop()
        return [
            Sequence(n, list(range(TOKENS)), TOKENS // 2 + 1, plan, SamplingParams(), Stream(loop))
            for n, plan in enumerate(plans)
        ]

    first, second = rows = asyncio.run(sequences())
    batch = pass_over([(first, TOKENS // 2), (second, TOKENS // 2)])
    runner = SteeringRunner(INFO.layer_count, D_MODEL, CPU)
    for row in rows:
        runner.admit(row)
    assert PLANS * TOKENS * D_MODEL > CHUNK_NUMBERS
    with Largest() as largest:
        steering = runner.prepare(batch)
        steering.begin()
        left = steering.apply(1, residual, batch)
        runner.finish(steering)
    assert largest.numbers <= CHUNK_NUMBERS
    for segment in batch.segments:
        (call,) = segment.sequence.plan.layers[1].calls
        basis, before = call.directions, residual[segment.start : segment.end]
        torch.testing.assert_close(left[segment.start : segment.end], before - before @ basis.T @ basis)
