"""Norms give what models compute operation by operation, whatever other rows are there."""

import pytest
import torch

from steering.engine.cpu.kernels.operations import add_rms_norm, rms_norm
from steering.shapes import Tensor

pytestmark = pytest.mark.usefixtures("kernels", "threads")
EPSILON = 1e-5
of_both_kinds = pytest.mark.parametrize("zero_centered", [False, True], ids=["Llama", "Gemma"])
widths = pytest.mark.parametrize("width", [16, 48, 576, 640])


def normal(seed: int, *shape: int) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3).to(torch.bfloat16)


def reference(rows: Tensor, weight: Tensor, *, zero_centered: bool) -> Tensor:
    """As LlamaRMSNorm and Gemma3RMSNorm, in float64 up to their first rounding."""
    wide = rows.double()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)
    if zero_centered:
        return (scaled * (1.0 + weight.double())).to(torch.bfloat16)
    return weight * scaled.to(torch.bfloat16)


@of_both_kinds
@widths
@pytest.mark.parametrize("rows", [1, 3, 200])
def test_rows_are_divided_by_their_root_mean_square(width: int, rows: int, zero_centered: bool) -> None:
    """To a step of bfloat16, where float32 and float64 round to different numbers."""
    states, weight = normal(1, 1, rows, width), normal(2, width)
    found = rms_norm(states, weight, EPSILON, zero_centered)
    torch.testing.assert_close(found, reference(states, weight, zero_centered=zero_centered), rtol=2**-7, atol=1e-6)


@of_both_kinds
@widths
def test_a_sum_in_front_is_rounded_and_returned(width: int, zero_centered: bool) -> None:
    first, second, weight = normal(1, 1, 70, width), normal(2, 1, 70, width), normal(3, width)
    total, normed = add_rms_norm(first, second, weight, EPSILON, zero_centered)
    assert torch.equal(total, first + second)
    assert torch.equal(normed, rms_norm(total, weight, EPSILON, zero_centered))


@of_both_kinds
def test_a_row_has_the_same_bits_alone_and_among_others(zero_centered: bool) -> None:
    states, weight = normal(1, 90, 576), normal(2, 576)
    together = rms_norm(states, weight, EPSILON, zero_centered)
    for row in range(len(states)):
        assert torch.equal(rms_norm(states[row : row + 1], weight, EPSILON, zero_centered)[0], together[row])


def test_rows_may_lie_in_any_way() -> None:
    heads, weight = normal(1, 1, 7, 3, 64).transpose(1, 2), normal(2, 64)
    for turned in (heads, heads.transpose(2, 3).contiguous().transpose(2, 3)):
        assert torch.equal(
            rms_norm(turned, weight, EPSILON, False), rms_norm(heads.contiguous(), weight, EPSILON, False)
        )
    states, weight = normal(1, 6, 64), normal(2, 64)
    turned = states.T.contiguous().T
    assert torch.equal(rms_norm(turned, weight, EPSILON, False), rms_norm(states, weight, EPSILON, False))
    total, normed = add_rms_norm(turned, states, weight, EPSILON, False)
    assert torch.equal(total, states + states)
    assert torch.equal(normed, rms_norm(states + states, weight, EPSILON, False))


@pytest.mark.parametrize(
    ("states", "weight"),
    [((2, 24), (24,)), ((2, 32), (16,)), ((2, 32), (2, 32))],
    ids=["not whole registers", "a shorter weight", "a matrix"],
)
def test_what_does_not_fit_is_refused(states: tuple[int, ...], weight: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match="rms_norm: expected rows and a weight"):
        rms_norm(normal(1, *states), normal(2, *weight), EPSILON, False)
