"""After a block the residual goes on as it is, or with the edits of each token's request, as the tensor operations apply them."""

from typing import Any

import pytest
import torch

from steering.engine.cpu.graphs import CallbackScope, Task, tasks
from steering.engine.cpu.kernels.operations import steer
from steering.injection.injector import Injection, Injector
from steering.injection.slots import Slots
from steering.model.info import ModelInfo
from steering.plan.resolve import Mandatory, RecentPlans
from steering.plan.types import DoseGuard
from steering.shapes import Residual, Tensor
from steering.spec import SteeringSpec
from tests.plans import Vectors, plan_for, random_items, vectors_for
from tests.steering.injection.passes import begun, row_of

pytestmark = [
    pytest.mark.usefixtures("loaded_library"),
    pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16]),
]
LAYERS = 3
CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def info_of(width: int) -> ModelInfo:
    return ModelInfo("tiny", "Llama", "f" * 64, width, LAYERS, 100, 256, "float32", "cpu", 1000, True)


def states(dtype: torch.dtype, tokens: int, width: int, seed: int = 0) -> Residual:
    return (3.0 * torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))).to(dtype)


def no_callback(layer: int, residual: Residual) -> None:
    """A callback that nobody is to call."""
    raise AssertionError


def kernel(parts: list[Tensor], injection: Injection, layer: int, task: Task, **callbacks: Any) -> Tensor:
    """Runs the operation over the tables of an injection."""
    tables, first = injection.tables()
    edited = injection.edited if task & Task.EDIT else ()
    chosen = (
        frozenset({layer}) if task & Task.DECIDE else frozenset[int](),
        frozenset({layer}) if task & Task.READ else frozenset[int](),
    )
    with CallbackScope(callbacks.get("decide", no_callback), callbacks.get("read", no_callback)):
        todo = tasks(injection._slots.layer_count, chosen[0], edited, chosen[1], first)
        found: Tensor = steer(parts, *tables, todo, layer)
    return found


async def injections(seed: int, width: int, guard: DoseGuard | None = None) -> tuple[Injection, Injection]:
    """Twice what steers a pass of two decode tokens, pieces of two prompts and a request without steering; nothing decides in it."""
    info, found = info_of(width), []
    vectors = vectors_for(info, means=True)
    for _ in range(2):
        injector, work = Injector(Slots(LAYERS, width, CPU)), []
        for number in range(5):
            items = (
                [] if number == 2 else [item for item in random_items(seed * 5 + number, LAYERS) if "when" not in item]
            )
            row = row_of(await plan_for(items, vectors, info, guard), 3, 9)
            injector.admit(row)
            row.computed = 5 if number < 2 else 0
            work.append((row, 1 if number < 2 else number))
        found.append(begun(injector, work)[0])
    return found[0], found[1]


@pytest.mark.parametrize("width", [3, 16, 40])
@pytest.mark.parametrize("seed", range(8))
async def test_it_equals_the_tensor_operations(dtype: torch.dtype, width: int, seed: int) -> None:
    """Residuals and noted doses, with and without a guard that bounds the changes."""
    guard = DoseGuard(0.3, "clamp") if seed % 2 else None
    native, reference = await injections(seed, width, guard)
    tokens = native.tokens
    for layer in range(LAYERS):
        residual = states(dtype, tokens, width, layer)
        before = residual.clone()
        found = kernel([residual], native, layer, Task.EDIT)
        expected = reference.apply(layer, residual.float()) if layer in reference.layers else residual
        assert found.dtype == dtype
        assert torch.equal(residual, before)
        torch.testing.assert_close(
            found.float(), expected.to(dtype).float(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )
    if native.edited:
        ours, theirs = native.doses, reference.doses
        torch.testing.assert_close(ours.edits.abs(), theirs.edits.abs(), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(ours.changes, theirs.changes, rtol=1e-3, atol=1e-5)
        assert torch.equal(ours.scaled, theirs.scaled)
        torch.testing.assert_close(native.left, reference.left, rtol=1e-3, atol=1e-5)


async def test_mandatory_edits_read_the_bounded_result(dtype: torch.dtype) -> None:
    info, width = info_of(32), 32
    vectors = vectors_for(info, means=True)
    last = SteeringSpec.model_validate(
        {"interventions": [{"vector": "beta", "operation": "clamp", "low": 1.0, "layers": [1]}]}
    )
    own = SteeringSpec.model_validate({"interventions": [{"vector": "alpha", "strength": 9.0, "layers": [1]}]})
    plan = await RecentPlans().resolve(
        own, Vectors(vectors), info, DoseGuard(0.1, "clamp"), Mandatory(last, {"beta": vectors["beta"]})
    )
    found = []
    for _ in range(2):
        injector, row = Injector(Slots(LAYERS, width, CPU)), row_of(plan, 6, 0)
        injector.admit(row)
        found.append(begun(injector, [(row, 6)])[0])
    residual = states(dtype, 6, width)
    ours, expected = kernel([residual], found[0], 1, Task.EDIT), found[1].apply(1, residual.float())
    torch.testing.assert_close(ours.float(), expected.to(dtype).float(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(found[0].doses.edits.abs(), found[1].doses.edits.abs(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found[0].doses.changes, found[1].doses.changes, rtol=1e-3, atol=1e-5)
    assert bool(found[0].doses.scaled.all())


@pytest.mark.parametrize("task", [Task(number) for number in range(8)])
async def test_two_parts_are_as_their_sum(dtype: torch.dtype, task: Task) -> None:
    """Rounded, as a model rounds it that forms the sum by itself. Callbacks see what arrives, and in float32 what leaves."""
    one, other = await injections(1, 40)
    parts = [states(dtype, one.tokens, 40), states(dtype, one.tokens, 40, 1)]
    layer, seen = one.edited[0], list[Tensor]()

    def note(_: int, residual: Tensor) -> None:
        seen.append(residual.clone())

    found = kernel(parts, one, layer, task, decide=note, read=note)
    assert torch.equal(found, kernel([parts[0] + parts[1]], other, layer, task, decide=note, read=note))
    if task & Task.DECIDE:
        assert torch.equal(seen[0], parts[0] + parts[1])
    if task & Task.READ:
        assert torch.equal(seen[-1].to(dtype), found)
    if not task & Task.EDIT:
        assert torch.equal(found, parts[0] + parts[1])
    assert len(seen) == 2 * int(task & Task.DECIDE != 0) + 2 * int(task & Task.READ != 0)


@pytest.mark.usefixtures("threads")
async def test_a_row_gets_the_same_bits_alone_and_among_others(dtype: torch.dtype) -> None:
    """As many as are worth several threads."""
    width, info = 576, info_of(576)
    vectors = vectors_for(info, means=True)
    injector = Injector(Slots(LAYERS, width, CPU))
    rows = [row_of(await plan_for(random_items(n % 7, LAYERS), vectors, info), 1, 1) for n in range(60)]
    for row in rows:
        injector.admit(row)
        row.computed = 1
    residual = states(dtype, len(rows), width)
    together, _, _ = begun(injector, [(row, 1) for row in rows])
    everything = kernel([residual], together, 1, Task.EDIT)
    for number, row in enumerate(rows):
        alone, _, _ = begun(injector, [(row, 1)])
        part = residual[number : number + 1].clone()
        assert torch.equal(
            kernel([part], alone, 1, Task.EDIT if 1 in alone.edited else Task(0)), everything[number : number + 1]
        )


async def test_the_residual_need_not_lie_together(dtype: torch.dtype) -> None:
    """Neither its rows nor its columns."""
    one, other = await injections(1, 16)
    wide, layer = states(dtype, 2 * one.tokens, 32), one.edited[0]
    for residual in (wide[::2, :16], wide[: one.tokens, ::2]):
        found = kernel([residual], one, layer, Task.EDIT)
        assert torch.equal(found, kernel([residual.contiguous()], other, layer, Task.EDIT))


class Refusal(Exception):
    """What a callback raises."""


async def test_what_a_callback_raises_ends_the_pass(dtype: torch.dtype) -> None:
    injection, _ = await injections(1, 16)

    def refuse(layer: int, residual: Residual) -> None:
        raise Refusal

    with pytest.raises(Refusal):
        kernel([states(dtype, injection.tokens, 16)], injection, 0, Task.DECIDE, decide=refuse)


async def test_what_does_not_fit_is_refused(dtype: torch.dtype) -> None:
    injection, _ = await injections(1, 16)
    layer = injection.edited[0]
    for parts in ([], [states(dtype, injection.tokens, 16)] * 3, [states(dtype, injection.tokens, 16).view(-1)]):
        with pytest.raises(RuntimeError, match="steer: "):
            kernel(parts, injection, layer, Task.EDIT)
    with pytest.raises(RuntimeError, match="expected one slot"):
        kernel([states(dtype, injection.tokens + 1, 16)], injection, layer, Task.EDIT)
    injection.slots_of_tokens[0] = 1000
    with pytest.raises(RuntimeError, match="slot 1000 of 8"):
        kernel([states(dtype, injection.tokens, 16)], injection, layer, Task.EDIT)
