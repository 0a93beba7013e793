"""A model's linear layers multiply by packed weights while attached, and by their own before, after and for gradients."""

import pytest
import torch
from torch import nn

from steering.engine.cpu.graphs import PackedLinears

ROWS = 5


def model() -> nn.Sequential:
    """Two layers, one without a bias, and one that cannot be packed since its width is odd."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Linear(64, 100), nn.Linear(100, 33, bias=False), nn.Linear(33, 8)
    return nn.Sequential(*layers).to(torch.bfloat16).requires_grad_(False)


def rows() -> torch.Tensor:
    """(row, width)."""
    return torch.randn(ROWS, 64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)


def test_packed_weights_multiply_as_the_models_own(kernels: None) -> None:
    layers, given = model(), rows()
    expected = layers(given)
    linears = PackedLinears(layers)
    linears.attach(linears.pack())
    torch.testing.assert_close(layers(given), expected, rtol=2e-2, atol=2e-2)
    linears.close()
    assert torch.equal(layers(given), expected)


def test_they_are_what_is_multiplied_by(kernels: None) -> None:
    """Planted: weights of zeros leave the bias alone."""
    layers = model()
    first = layers[0]
    assert isinstance(first, nn.Linear)
    linears = PackedLinears(layers)
    linears.attach([torch.zeros_like(weight) for weight in linears.pack()])
    assert torch.equal(first(rows()), first.bias.expand(ROWS, -1))
    linears.close()


def test_what_the_kernel_does_not_take_stays_as_it_is(kernels: None) -> None:
    """An odd width, another type, and a layer that somebody else stands in for."""
    layers = (
        nn.Sequential(nn.Linear(33, 4), nn.Linear(64, 4), nn.Linear(64, 4)).to(torch.bfloat16).requires_grad_(False)
    )
    layers[1].to(torch.float32)
    layers[2].forward = lambda rows: rows
    linears = PackedLinears(layers)
    assert linears.pack() == []
    linears.attach([])
    linears.close()
    assert "forward" in layers[2].__dict__


def test_placeholders_have_the_packed_shapes() -> None:
    linears = PackedLinears(model())
    assert [one.shape for one in linears.placeholders()] == [one.shape for one in linears.pack()]
    assert len(linears.placeholders()) == 2


@pytest.mark.parametrize("needs_gradient", [True, False])
def test_gradients_go_through_the_models_own_weights(needs_gradient: bool, kernels: None) -> None:
    layers = model()
    linears = PackedLinears(layers)
    linears.attach(linears.pack())
    given = rows().requires_grad_(needs_gradient)
    result = layers(given)
    assert result.requires_grad is needs_gradient
    if needs_gradient:
        result.sum().backward()
        assert given.grad is not None
        assert bool(given.grad.abs().sum() > 0)
    linears.close()
