"""What a pass allocates does not grow with the plans: tokens of a prompt have no copies of the vectors of their request."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from steering.injection.injector import CHUNK_NUMBERS, Injector
from steering.injection.rows import SteeredRow
from steering.injection.slots import Slots
from steering.model.info import ModelInfo
from tests.plans import NAMES, plan_for, vectors_for
from tests.steering.injection.passes import begun, row_of

CPU = torch.device("cpu")
TOKENS, D_MODEL, PLANS = 2048, 96, 24
INFO = ModelInfo("tiny", "Llama", "f" * 64, D_MODEL, 2, 100, 8192, "float32", "cpu", 1000, True)


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


async def rows(prompt: int, answer: int) -> list[SteeredRow]:
    """Two requests that ablate 24 and 23 directions."""
    named = {f"{name}-{n}": vector for n in range(PLANS // len(NAMES)) for name, vector in vectors_for(INFO, n).items()}
    items = [{"vector": name, "operation": "ablate", "layers": "all"} for name in named]
    return [row_of(await plan_for(some, named, INFO), prompt, answer) for some in (items, items[1:])]


async def test_a_pass_over_prompts_allocates_no_more_for_many_directions() -> None:
    """24 ablated directions and 2,048 tokens: a copy for each token would take 4.7 million numbers at each layer."""
    residual = torch.randn(TOKENS, D_MODEL, generator=torch.Generator().manual_seed(5))
    injector = Injector(Slots(INFO.layer_count, D_MODEL, CPU))
    both = await rows(TOKENS // 2 + 1, TOKENS // 2)
    for row in both:
        injector.admit(row)
    assert PLANS * TOKENS * D_MODEL > CHUNK_NUMBERS
    with Largest() as largest:
        injection, segments, _ = begun(injector, [(row, TOKENS // 2) for row in both])
        left = injection.apply(1, residual)
        injection.finish()
    assert largest.numbers <= CHUNK_NUMBERS
    for segment in segments:
        (edits,) = segment.row.plan.layers[1]
        basis, before = edits.write, residual[segment.start : segment.end]
        torch.testing.assert_close(left[segment.start : segment.end], before - before @ basis.T @ basis)


async def test_a_pass_of_many_answers_is_worked_on_in_pieces() -> None:
    """2,400 requests that decode, each with vectors of its own in 24 edits: together more than CHUNK_NUMBERS."""
    count = CHUNK_NUMBERS // (PLANS * D_MODEL) + 500
    (first, _) = await rows(1, 1)
    injector = Injector(Slots(INFO.layer_count, D_MODEL, CPU))
    many = [row_of(first.plan, 1, 1) for _ in range(count)]
    for row in many:
        injector.admit(row)
        row.computed = 1
    residual = torch.randn(count, D_MODEL, generator=torch.Generator().manual_seed(5))
    with Largest() as largest:
        injection, _, _ = begun(injector, [(row, 1) for row in many])
        left = injection.apply(1, residual)
    assert largest.numbers <= CHUNK_NUMBERS
    (edits,) = first.plan.layers[1]
    torch.testing.assert_close(left, residual - residual @ edits.write.T @ edits.write)
