"""After a block the residual goes on as it is, with the bank's rows, or as Python answers; on any processor."""

import pytest
import torch

from steering.engine.transformers.execution.compiled.callbacks import CallbackScope, Opcode
from steering.engine.transformers.execution.kernels.operations import steer
from steering.shapes import Residual, Tensor

pytestmark = [
    pytest.mark.usefixtures("loaded_library"),
    pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16]),
]
OPCODES = torch.tensor([Opcode.NONE, Opcode.ADD, Opcode.CALLBACK, Opcode.ADD])
NONE, ADD, CALLBACK = 0, 1, 2
"""Layers with such a task."""
SLOTS, PHASES = 8, 3


def states(dtype: torch.dtype, tokens: int = 5, width: int = 64) -> Residual:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(width)).to(dtype)


def bank(tokens: int = 5, width: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """rows (phase, layer, slot, d_model); indices (token,), mixed and some more than once; inverse (layer, a few more
    than tokens), which holds something already."""
    generator = torch.Generator().manual_seed(7)
    rows = torch.randn(PHASES, len(OPCODES), SLOTS, width, generator=generator)
    phases = torch.randint(0, PHASES, (tokens,), generator=generator)
    slots = torch.randint(0, SLOTS, (tokens,), generator=generator)
    return rows, phases * (len(OPCODES) * SLOTS) + slots, torch.rand(len(OPCODES), tokens + 3, generator=generator)


def rows_at(layer: int, rows: Tensor, indices: Tensor) -> Tensor:
    """Each token's row of the bank, found the slow way."""
    return torch.stack([rows[index // (len(OPCODES) * SLOTS), layer, index % SLOTS] for index in indices.tolist()])


class Refusal(Exception):
    """What a callback raises."""


def unexpected(layer: int, residual: Residual) -> None:
    """A callback that nobody is to call."""
    raise AssertionError


@pytest.mark.parametrize("width", [1, 7, 16, 64, 576])
@pytest.mark.parametrize("layer", [1, 3])
def test_each_token_gets_its_row_of_the_layer_in_float32(dtype: torch.dtype, layer: int, width: int) -> None:
    residual, (rows, indices, inverse) = states(dtype, 5, width), bank(5, width)
    before = residual.clone()
    with CallbackScope(unexpected):
        found = steer([residual], rows, indices, inverse, OPCODES, layer)
    assert found.dtype == dtype
    assert torch.equal(found, (before.float() + rows_at(layer, rows, indices)).to(dtype))
    assert torch.equal(residual, before)


@pytest.mark.parametrize("width", [1, 7, 16, 64, 576])
@pytest.mark.parametrize("layer", [1, 3])
def test_inverse_norms_gather_at_that_layer_only(dtype: torch.dtype, layer: int, width: int) -> None:
    residual, (rows, indices, inverse) = states(dtype, 5, width), bank(5, width)
    expected = inverse.clone()
    expected[layer, :5] += 1 / residual.double().norm(dim=1).float()
    steer([residual], rows, indices, inverse, OPCODES, layer)
    torch.testing.assert_close(inverse[layer, :5], expected[layer, :5], rtol=1e-6, atol=0)
    inverse[layer] = expected[layer]
    assert torch.equal(inverse, expected)


def test_a_residual_of_zeros_has_a_finite_inverse(dtype: torch.dtype) -> None:
    residual, (rows, indices, inverse) = torch.zeros(5, 64, dtype=dtype), bank()
    found = steer([residual], rows, indices, inverse, OPCODES, ADD)
    assert torch.equal(found, rows_at(ADD, rows, indices).to(dtype))
    torch.testing.assert_close(inverse[ADD, :5], torch.full((5,), 1e12))


@pytest.mark.parametrize("width", [1, 7, 64, 576])
@pytest.mark.parametrize("layer", [NONE, ADD, CALLBACK])
def test_two_parts_are_as_their_sum(dtype: torch.dtype, layer: int, width: int) -> None:
    """Rounded, as a model rounds it that forms the sum by itself."""
    parts, (rows, indices, inverse) = [states(dtype, 5, width), 3 * states(dtype, 6, width)[1:]], bank(5, width)
    apart = inverse.clone()
    with CallbackScope(lambda _, arriving: arriving * 2):
        found = steer(parts, rows, indices, inverse, OPCODES, layer)
        assert torch.equal(found, steer([parts[0] + parts[1]], rows, indices, apart, OPCODES, layer))
    assert torch.equal(inverse, apart)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("parts", [1, 2])
def test_a_row_gets_the_same_bits_alone_and_among_others(dtype: torch.dtype, parts: int) -> None:
    """As many as are worth several threads."""
    tokens, width = 200, 576
    summands, (rows, indices, inverse) = [states(dtype, tokens, width)] * parts, bank(tokens, width)
    apart = inverse.clone()
    together = steer(summands, rows, indices, inverse, OPCODES, ADD)
    assert torch.equal(
        together, (sum(summands, torch.zeros((), dtype=dtype)).float() + rows_at(ADD, rows, indices)).to(dtype)
    )
    for token in range(tokens):
        one, met = slice(token, token + 1), apart[:, token : token + 1].contiguous()
        alone = steer([summand[one] for summand in summands], rows, indices[one], met, OPCODES, ADD)
        assert torch.equal(alone, together[one])
        apart[:, one] = met
    assert torch.equal(apart, inverse)


@pytest.mark.parametrize("index", [-1, PHASES * len(OPCODES) * SLOTS])
def test_a_place_outside_of_the_bank_is_refused(dtype: torch.dtype, index: int) -> None:
    rows, indices, inverse = bank()
    indices[2] = index
    with pytest.raises(RuntimeError, match="row index"):
        steer([states(dtype)], rows, indices, inverse, OPCODES, ADD)


@pytest.mark.parametrize(
    ("tokens", "width", "message"),
    [(4, 64, "one row index per token"), (5, 32, "as wide as the residual")],
)
def test_a_bank_for_others_is_refused(dtype: torch.dtype, tokens: int, width: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        steer([states(dtype)], *bank(tokens, width), OPCODES, ADD)


def test_fewer_sums_than_tokens_are_refused(dtype: torch.dtype) -> None:
    rows, indices, inverse = bank()
    with pytest.raises(RuntimeError, match="one inverse norm per token"):
        steer([states(dtype)], rows, indices, inverse[:, :4], OPCODES, ADD)


@pytest.mark.parametrize("parts", [[], [(5, 64)] * 3, [(5, 64), (4, 64)]])
def test_other_than_one_or_two_parts_of_one_shape_are_refused(dtype: torch.dtype, parts: list[tuple[int, int]]) -> None:
    with pytest.raises(RuntimeError, match="part"):
        steer([states(dtype, *shape) for shape in parts], *bank(), OPCODES, ADD)


@pytest.mark.parametrize("layer", [NONE, ADD, CALLBACK])
def test_the_residual_need_not_lie_together(dtype: torch.dtype, layer: int) -> None:
    """Neither its rows nor its columns."""
    wide = states(dtype, 10, 128)
    for residual in (wide[::2, :64], wide[:5, ::2]):
        (rows, indices, inverse), (_, _, apart) = bank(), bank()
        with CallbackScope(lambda _, arriving: arriving * 2):
            found = steer([residual], rows, indices, inverse, OPCODES, layer)
            assert torch.equal(found, steer([residual.contiguous()], rows, indices, apart, OPCODES, layer))
        assert torch.equal(inverse, apart)


def test_with_nothing_to_do_it_is_a_copy(dtype: torch.dtype) -> None:
    residual, (rows, indices, inverse) = states(dtype), bank()
    before, met = residual.clone(), inverse.clone()
    with CallbackScope(unexpected):
        found = steer([residual], rows, indices, inverse, OPCODES, NONE)
    assert torch.equal(found, before)
    assert torch.equal(inverse, met)
    found.zero_()
    assert torch.equal(residual, before)


def test_a_callback_gets_layer_and_residual_and_its_result_is_used(dtype: torch.dtype) -> None:
    residual, (rows, indices, inverse) = states(dtype), bank()
    before, met = residual.clone(), inverse.clone()
    calls: list[tuple[int, Residual]] = []

    def callback(layer: int, arriving: Residual) -> Residual:
        calls.append((layer, arriving.clone()))
        return arriving * 2 + 1

    with CallbackScope(callback):
        found = steer([residual], rows, indices, inverse, OPCODES, CALLBACK)
    [(layer, arriving)] = calls
    assert layer == CALLBACK
    assert arriving.dtype == dtype
    assert torch.equal(arriving, before)
    assert found.dtype == dtype
    assert torch.equal(found, before * 2 + 1)
    assert torch.equal(residual, before)
    assert torch.equal(inverse, met)


def test_a_callback_may_leave_the_residual_unchanged(dtype: torch.dtype) -> None:
    residual, (rows, indices, inverse) = states(dtype), bank()
    with CallbackScope(lambda *_: None):
        found = steer([residual], rows, indices, inverse, OPCODES, CALLBACK)
    assert torch.equal(found, residual)
    found.zero_()
    assert torch.equal(residual, states(dtype))


def test_an_error_of_a_callback_reaches_the_caller(dtype: torch.dtype) -> None:
    """And the next pass is none the worse for it."""
    residual, (rows, indices, inverse) = states(dtype), bank()

    def callback(layer: int, arriving: Residual) -> Residual:
        raise Refusal(f"not at layer {layer}")

    with CallbackScope(callback), pytest.raises(Refusal, match="not at layer 2"):
        steer([residual], rows, indices, inverse, OPCODES, CALLBACK)
    with CallbackScope(lambda _, arriving: -arriving):
        assert torch.equal(steer([residual], rows, indices, inverse, OPCODES, CALLBACK), -residual)
