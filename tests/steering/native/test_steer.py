"""After a block the residual goes on as it is, with the bank's rows, or as Python answers; on any processor."""

import pytest
import torch

from steering.engine.graph_calls import Task, answering
from steering.native.operations import steer
from steering.shapes import Residual, Tensor

pytestmark = [
    pytest.mark.usefixtures("loaded_library"),
    pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16]),
]
TASKS = torch.tensor([Task.NOTHING, Task.ADD, Task.VISIT, Task.ADD])
NOTHING, ADD, VISIT = 0, 1, 2
"""Layers with such a task."""
SLOTS = 8


def states(dtype: torch.dtype, tokens: int = 5, width: int = 64) -> Residual:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(width)).to(dtype)


def bank(width: int = 64, slots: int = SLOTS) -> tuple[Tensor, Tensor]:
    """rows (layer, slot, d_model), inverse (layer, slot), which holds something already."""
    generator = torch.Generator().manual_seed(7)
    rows = torch.randn(len(TASKS), slots, width, generator=generator)
    return rows, torch.rand(len(TASKS), slots, generator=generator)


class Refusal(Exception):
    """What a visitor raises."""


def unexpected(layer: int, residual: Residual) -> None:
    """A visitor that nobody is to call."""
    raise AssertionError


@pytest.mark.parametrize("width", [1, 7, 16, 64, 576])
@pytest.mark.parametrize("layer", [1, 3])
def test_rows_of_the_layer_are_added_in_float32(dtype: torch.dtype, layer: int, width: int) -> None:
    residual, (rows, inverse) = states(dtype, 5, width), bank(width)
    before = residual.clone()
    with answering(unexpected):
        found = steer(residual, rows, inverse, TASKS, layer)
    assert found.dtype == dtype
    assert torch.equal(found, (before.float() + rows[layer, :5]).to(dtype))
    assert torch.equal(residual, before)


@pytest.mark.parametrize("width", [1, 7, 16, 64, 576])
@pytest.mark.parametrize("layer", [1, 3])
def test_inverse_norms_gather_at_that_layer_only(dtype: torch.dtype, layer: int, width: int) -> None:
    residual, (rows, inverse) = states(dtype, 5, width), bank(width)
    expected = inverse.clone()
    expected[layer, :5] += 1 / residual.double().norm(dim=1).float()
    steer(residual, rows, inverse, TASKS, layer)
    torch.testing.assert_close(inverse[layer, :5], expected[layer, :5], rtol=1e-6, atol=0)
    inverse[layer, :5] = expected[layer, :5]
    assert torch.equal(inverse, expected)


def test_a_residual_of_zeros_has_a_finite_inverse(dtype: torch.dtype) -> None:
    residual, (rows, _) = torch.zeros(5, 64, dtype=dtype), bank()
    inverse = torch.zeros(len(TASKS), SLOTS)
    assert torch.equal(steer(residual, rows, inverse, TASKS, ADD), rows[ADD, :5].to(dtype))
    torch.testing.assert_close(inverse[ADD, :5], torch.full((5,), 1e12))


@pytest.mark.usefixtures("threads")
def test_a_row_gets_the_same_bits_alone_and_among_others(dtype: torch.dtype) -> None:
    """As many as are worth several threads."""
    tokens, width = 200, 576
    residual, (rows, inverse) = states(dtype, tokens, width), bank(width, tokens)
    apart = inverse.clone()
    together = steer(residual, rows, inverse, TASKS, ADD)
    assert torch.equal(together, (residual.float() + rows[ADD]).to(dtype))
    for token in range(tokens):
        one = slice(token, token + 1)
        assert torch.equal(steer(residual[one], rows[:, one], apart[:, one], TASKS, ADD), together[one])
    assert torch.equal(apart, inverse)


def test_fewer_rows_than_tokens_are_refused(dtype: torch.dtype) -> None:
    rows, inverse = bank()
    with pytest.raises(RuntimeError, match="a row of the bank for each token"):
        steer(states(dtype, SLOTS + 1), rows, inverse, TASKS, ADD)


@pytest.mark.parametrize("layer", [NOTHING, ADD, VISIT])
def test_the_residual_need_not_lie_together(dtype: torch.dtype, layer: int) -> None:
    """Neither its rows nor its columns."""
    wide = states(dtype, 10, 128)
    for residual in (wide[::2, :64], wide[:5, ::2]):
        (rows, inverse), (_, apart) = bank(), bank()
        with answering(lambda _, arriving: arriving * 2):
            found = steer(residual, rows, inverse, TASKS, layer)
            assert torch.equal(found, steer(residual.contiguous(), rows, apart, TASKS, layer))
        assert torch.equal(inverse, apart)


def test_with_nothing_to_do_it_is_a_copy(dtype: torch.dtype) -> None:
    residual, (rows, inverse) = states(dtype), bank()
    before, met = residual.clone(), inverse.clone()
    with answering(unexpected):
        found = steer(residual, rows, inverse, TASKS, NOTHING)
    assert torch.equal(found, before)
    assert torch.equal(inverse, met)
    found.zero_()
    assert torch.equal(residual, before)


def test_a_visitor_is_given_the_layer_and_the_residual_and_its_answer_goes_on(dtype: torch.dtype) -> None:
    residual, (rows, inverse) = states(dtype), bank()
    before, met = residual.clone(), inverse.clone()
    visits: list[tuple[int, Residual]] = []

    def visitor(layer: int, arriving: Residual) -> Residual:
        visits.append((layer, arriving.clone()))
        return arriving * 2 + 1

    with answering(visitor):
        found = steer(residual, rows, inverse, TASKS, VISIT)
    [(layer, arriving)] = visits
    assert layer == VISIT
    assert arriving.dtype == dtype
    assert torch.equal(arriving, before)
    assert found.dtype == dtype
    assert torch.equal(found, before * 2 + 1)
    assert torch.equal(residual, before)
    assert torch.equal(inverse, met)


def test_a_visitor_may_leave_the_residual_as_it_is(dtype: torch.dtype) -> None:
    residual, (rows, inverse) = states(dtype), bank()
    with answering(lambda *_: None):
        found = steer(residual, rows, inverse, TASKS, VISIT)
    assert torch.equal(found, residual)
    found.zero_()
    assert torch.equal(residual, states(dtype))


def test_what_a_visitor_raises_reaches_the_caller(dtype: torch.dtype) -> None:
    """And the next pass is none the worse for it."""
    residual, (rows, inverse) = states(dtype), bank()

    def visitor(layer: int, arriving: Residual) -> Residual:
        raise Refusal(f"not at layer {layer}")

    with answering(visitor), pytest.raises(Refusal, match="not at layer 2"):
        steer(residual, rows, inverse, TASKS, VISIT)
    with answering(lambda _, arriving: -arriving):
        assert torch.equal(steer(residual, rows, inverse, TASKS, VISIT), -residual)
