"""An exported graph makes fewer calls after it is rewrite, and computes the same."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from steering.engine.cpu.graph_rewrites import LINEAR, PREFETCH, STEER, SWIGLU, rewrite
from steering.engine.cpu.graphs import CallbackScope, PackedLinears, Task
from steering.engine.cpu.kernels.operations import steer
from steering.shapes import Tensor


class Mixing(torch.nn.Module):
    """As in a decoder block: two layers on the same rows, then one on what `combine` makes of them."""

    def __init__(self, combine: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.gate, self.up = torch.nn.Linear(32, 50), torch.nn.Linear(32, 50, bias=False)
        self.down = torch.nn.Linear(50, 32)
        self.to(torch.bfloat16).requires_grad_(False)
        self.combine = combine
        self.linears = PackedLinears(self)
        self.linears.attach(self.linears.placeholders())

    def forward(self, rows: Tensor, weights: list[Tensor]) -> Tensor:
        """rows (row, 32)."""
        self.linears.weights = weights
        down: Tensor = self.down(self.combine(self.gate(rows), self.up(rows)))
        return down


silu = torch.nn.functional.silu
COMBINATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gated": lambda gate, up: silu(gate) * up,
    "the other way round": lambda gate, up: up * silu(gate),
    "the second is the gate": lambda gate, up: gate * silu(up),
    "another activation": lambda gate, up: torch.relu(gate) * up,
    "the gate is used twice": lambda gate, up: silu(gate) * up + gate,
    "both are gates": lambda gate, up: silu(gate) * silu(up),
    "one is not used": lambda gate, _: silu(gate),
}
MATCHING = ("gated", "the other way round")


def mixing(name: str) -> Mixing:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Mixing(COMBINATIONS[name])


def exported(module: Mixing) -> torch.export.ExportedProgram:
    """Before it is rewrite."""
    weights = module.linears.placeholders()
    rows = torch.zeros(3, 32, dtype=torch.bfloat16)
    free: tuple[dict[int, Any], list[dict[int, Any]]] = ({0: torch.export.Dim.AUTO}, [{} for _ in weights])
    with torch.no_grad():
        return torch.export.export(module, (rows, weights), dynamic_shapes=free, strict=False)


def calls(program: torch.export.ExportedProgram, *targets: object) -> list[torch.fx.Node]:
    return [node for node in program.graph.nodes if node.target in targets]


def test_two_layers_on_the_same_rows_are_one_call() -> None:
    program = exported(mixing("another activation"))
    assert len(calls(program, LINEAR)) == 3
    first, second = calls(rewrite(program, kernels=True), LINEAR)
    assert first.args[3] == [50, 50]
    assert second.args[3] == [32]


def test_each_call_knows_what_the_next_reads() -> None:
    first, second = calls(rewrite(exported(mixing("another activation")), kernels=True), LINEAR)
    assert first.args[PREFETCH] == second.args[1]
    assert second.args[PREFETCH] == first.args[1]


@pytest.mark.parametrize("name", MATCHING)
def test_a_gate_and_what_passes_it_are_one_call_which_is_followed_by_the_gate(name: str) -> None:
    program = rewrite(exported(mixing(name)), kernels=True)
    [pair], [last] = calls(program, SWIGLU), calls(program, LINEAR)
    weights = pair.args[1]
    assert isinstance(weights, Sequence)
    gate, _ = weights
    assert pair.args[PREFETCH] == last.args[1]
    assert last.args[PREFETCH] == [gate]


@pytest.mark.parametrize("name", [name for name in COMBINATIONS if name not in MATCHING])
def test_what_is_not_such_a_pair_stays(name: str) -> None:
    assert not calls(rewrite(exported(mixing(name)), kernels=True), SWIGLU)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_it_computes_the_same(name: str, kernels: None) -> None:
    """The exponential of a gate to a step of bfloat16, all else to the bit."""
    module = mixing(name)
    weights = module.linears.pack()
    rows = torch.randn(4, 32, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    with torch.no_grad():
        expected = module(rows, weights)
        found = rewrite(exported(module), kernels=True).module()(rows, weights)
    if name in MATCHING:
        torch.testing.assert_close(found, expected, rtol=2**-6, atol=2**-8)
    else:
        assert torch.equal(found, expected)


class Block(torch.nn.Module):
    """The end of a block: a sum, steered. scale: of the second summand, as `add` takes it."""

    def __init__(self, *, scale: float = 1.0, shared: bool = False) -> None:
        super().__init__()
        self.scale, self.shared = scale, shared

    def forward(self, residual: Tensor, change: Tensor, tables: list[Tensor]) -> Tensor:
        """residual, change (1, token, 16); tables: what `steer` gets from `vectors` to `tasks`."""
        total = torch.add(residual, change, alpha=self.scale)
        steered = steer([total.reshape(-1, 16)], *tables, 0).reshape(total.shape)
        return steered + total if self.shared else steered


def tables() -> list[Tensor]:
    """Of three requests, the first without steering and the others with an add each."""
    vectors = torch.randn(3, 16, generator=torch.Generator().manual_seed(3))
    numbers = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 1.0], [0.0, 0.5, 1.0]])
    rows = torch.tensor([[[0]], [[1]], [[2]]])
    notes = torch.zeros(1, 3, 1), torch.zeros(1, 3), torch.zeros(1, 3)
    numbers_of_tokens = torch.arange(3), torch.ones(3, 1), torch.full((3,), torch.inf)
    return [
        vectors,
        numbers,
        torch.zeros(3, 5, dtype=torch.int64),
        rows,
        *numbers_of_tokens,
        *notes,
        torch.tensor([[Task.EDIT, 0]]),
    ]


def summands(change_shape: tuple[int, ...] = (1, 3, 16)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    shapes = (1, 3, 16), change_shape
    first, second = (torch.randn(*shape, generator=generator).to(torch.bfloat16) for shape in shapes)
    return first, second


def steered(block: Block, parts: tuple[Tensor, Tensor]) -> torch.export.ExportedProgram:
    return rewrite(torch.export.export(block, (*parts, tables()), strict=False), kernels=True)


@pytest.mark.usefixtures("loaded_library")
@pytest.mark.parametrize(
    ("block", "change_shape", "parts"),
    [
        (Block(), (1, 3, 16), 2),
        (Block(scale=2.0), (1, 3, 16), 1),
        (Block(shared=True), (1, 3, 16), 1),
        (Block(), (1, 1, 16), 1),
    ],
    ids=["its own", "scaled", "used elsewhere", "broadcast"],
)
def test_a_sum_is_formed_where_it_is_steered_if_it_is_wanted_there_alone(
    block: Block, change_shape: tuple[int, ...], parts: int
) -> None:
    given = summands(change_shape)
    program = steered(block, given)
    [call] = calls(program, STEER)
    summed = call.args[0]
    assert isinstance(summed, Sequence)
    assert len(summed) == parts
    with CallbackScope(lambda *_: None, lambda *_: None):
        assert torch.equal(program.module()(*given, tables()), block(*given, tables()))
