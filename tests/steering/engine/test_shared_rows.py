"""Linear layers on the same rows become one call in an exported graph, which still computes the same."""

import pytest
import torch

from steering.engine.packed_linears import PackedLinears
from steering.engine.shared_rows import FOLLOWING, LINEARS, joined


class Gated(torch.nn.Module):
    """As in a decoder block: two layers on the same rows, then one on their product."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = torch.nn.Linear(32, 50), torch.nn.Linear(32, 50, bias=False)
        self.down = torch.nn.Linear(50, 32)
        self.to(torch.bfloat16).requires_grad_(False)
        self.linears = PackedLinears(self)

    def forward(self, rows: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
        """rows (row, 32)."""
        self.linears.weights = weights
        down: torch.Tensor = self.down(torch.relu(self.gate(rows)) * self.up(rows))
        return down


@pytest.fixture
def gated() -> Gated:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Gated()
    module.linears.attach()
    return module


def exported(gated: Gated) -> torch.export.ExportedProgram:
    """Before its calls are joined."""
    weights = gated.linears.placeholders()
    rows = torch.zeros(3, 32, dtype=torch.bfloat16)
    free = ({0: torch.export.Dim.AUTO}, [{} for _ in weights])
    with torch.no_grad():
        return torch.export.export(gated, (rows, weights), dynamic_shapes=free, strict=False)


def calls(program: torch.export.ExportedProgram) -> list[torch.fx.Node]:
    return [node for node in program.graph.nodes if node.target is LINEARS]


def test_two_layers_on_the_same_rows_are_one_call(gated: Gated) -> None:
    program = exported(gated)
    assert len(calls(program)) == 3
    first, second = calls(joined(program))
    assert first.args[3] == [50, 50]
    assert second.args[3] == [32]


def test_each_call_knows_what_the_next_reads(gated: Gated) -> None:
    first, second = calls(joined(exported(gated)))
    assert first.args[FOLLOWING] == second.args[1]
    assert second.args[FOLLOWING] == first.args[1]


def test_it_computes_the_same(gated: Gated, kernels: None) -> None:
    weights = gated.linears.packed()
    rows = torch.randn(4, 32, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    with torch.no_grad():
        expected = gated(rows, weights)
        assert torch.equal(joined(exported(gated)).module()(rows, weights), expected)
