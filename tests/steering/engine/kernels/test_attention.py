"""Attention over slots is softmax over what a token's own slot holds up to its position, whoever runs beside it.

Slots hold what is not a number wherever nobody has written yet: none of it may reach a result.
"""

from dataclasses import dataclass

import pytest
import torch

from steering.engine.transformers.execution.kernels.operations import decode_attention, prefill_attention
from steering.shapes import Tensor

pytestmark = pytest.mark.usefixtures("kernels", "threads")
Shape = tuple[int, int, int]
SHAPES: list[Shape] = [(4, 4, 32), (9, 3, 64), (8, 2, 96), (5, 1, 128), (16, 2, 256)]
"""(heads, heads of keys, width): 1, 3, 4, 5 and 8 heads a key."""
POSITIONS = [0, 15, 16, 47, 48, 191, 192, 400]
PIECES = [(16, 0), (1, 15), (33, 16), (5, 47), (20, 48), (3, 191), (70, 192), (2, 400)]
"""(tokens, position of the first)."""
CAPACITY = 450
SCALING = 0.25
NO_COPIES = torch.zeros(0, 3, dtype=torch.int64)
of_any_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
within_windows = pytest.mark.parametrize("window", [None, 1, 5, 250])
with_softcaps = pytest.mark.parametrize("softcap", [None, 3.0])


@dataclass(frozen=True)
class Slots:
    """keys, values (slot, kv_head, position, width)."""

    keys: Tensor
    values: Tensor

    def copied(self, begin: int = 0, end: int | None = None) -> "Slots":
        """Slots from `begin` to `end`."""
        return Slots(self.keys[begin:end].clone(), self.values[begin:end].clone())

    def bits(self) -> Tensor:
        """Equal where numbers are the same, or the same kind of no number."""
        return torch.stack([self.keys, self.values]).view(torch.int16)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def slots_with(filled: list[int], shape: Shape) -> Slots:
    """A slot for each number, which holds so many positions."""
    size = (len(filled), shape[1], CAPACITY, shape[2])
    slots = Slots(normal(1, *size), normal(2, *size))
    for slot, count in enumerate(filled):
        slots.keys[slot, :, count:] = slots.values[slot, :, count:] = torch.nan
    return slots


def arriving(rows: int, tokens: int, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """query, key, value (row, head, token, width) as layers leave them: the heads of a token lie together."""
    heads, shared, width = shape
    query, key, value = (normal(3 + count, rows, tokens, count, width) for count in (heads, shared, shared + 100))
    return query.transpose(1, 2), key.transpose(1, 2), value[:, :, :shared].transpose(1, 2)


def seen(
    query: Tensor, slots: Slots, slot: int, position: int, window: int | None, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """query (head, width) of the token at `position` -> (what it gets, the same of the values' sizes), in float64."""
    first = 0 if window is None else max(0, position - window + 1)
    keys = slots.keys[slot, :, first : position + 1].double()
    values = slots.values[slot, :, first : position + 1].double()
    by_key = query.double().view(len(keys), -1, query.shape[1])
    scores = SCALING * by_key @ keys.transpose(1, 2)
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    weights = scores.softmax(-1)
    return (weights @ values).view(query.shape), (weights @ values.abs()).view(query.shape)


def table(pieces: list[tuple[int, int]]) -> Tensor:
    """Segments, one after another, the last of them in the first slot."""
    rows, first = [], 0
    for index, (tokens, position) in enumerate(pieces):
        rows.append([first, tokens, len(pieces) - 1 - index, position])
        first += tokens
    return torch.tensor(rows)


def written(slots: Slots, key: Tensor, value: Tensor, segments: Tensor) -> Slots:
    """A copy of the slots, with each segment's keys and values (1, kv_head, token, width) at their positions."""
    after = slots.copied()
    for first, tokens, slot, position in segments.tolist():
        for offset in range(tokens):
            after.keys[slot, :, position + offset] = key[0, :, first + offset]
            after.values[slot, :, position + offset] = value[0, :, first + offset]
    return after


@of_any_shape
@within_windows
@with_softcaps
def test_rows_see_their_own_slot(shape: Shape, window: int | None, softcap: float | None) -> None:
    """Weights are float32: only the result is rounded."""
    slots = slots_with([*POSITIONS, 30], shape)
    query, key, value = arriving(len(POSITIONS), 1, shape)
    after = slots.copied()
    for row, position in enumerate(POSITIONS):
        after.keys[row, :, position], after.values[row, :, position] = key[row, :, 0], value[row, :, 0]
    positions = torch.tensor(POSITIONS)
    found = decode_attention(query, key, value, slots.keys, slots.values, positions, SCALING, window, softcap)
    assert torch.equal(slots.bits(), after.bits())
    assert found.shape == (len(POSITIONS), 1, shape[0], shape[2])
    for row, position in enumerate(POSITIONS):
        exact, size = seen(query[row, :, 0], after, row, position, window, softcap)
        assert ((found[row, 0] - exact).abs() <= exact.abs() * 2**-8 + size * 2**-15).all()


@of_any_shape
@within_windows
@with_softcaps
def test_segments_see_their_own_slot(shape: Shape, window: int | None, softcap: float | None) -> None:
    """Weights are rounded to bfloat16, and then the result."""
    slots, segments = slots_with([*[position for _, position in reversed(PIECES)], 30], shape), table(PIECES)
    query, key, value = arriving(1, sum(tokens for tokens, _ in PIECES), shape)
    after = written(slots, key, value, segments)
    found = prefill_attention(
        query, key, value, slots.keys, slots.values, segments, NO_COPIES, SCALING, window, softcap
    )
    assert torch.equal(slots.bits(), after.bits())
    assert found.shape == (1, query.shape[2], shape[0], shape[2])
    for first, tokens, slot, position in segments.tolist():
        for offset in range(tokens):
            exact, size = seen(query[0, :, first + offset], after, slot, position + offset, window, softcap)
            assert ((found[0, first + offset] - exact).abs() <= (exact.abs() + size) * 2**-8).all()


@within_windows
def test_a_prompt_of_several_blocks_sees_itself(window: int | None) -> None:
    shape = SHAPES[1]
    slots, segments = slots_with([0], shape), torch.tensor([[0, CAPACITY, 0, 0]])
    query, key, value = arriving(1, CAPACITY, shape)
    found = prefill_attention(query, key, value, slots.keys, slots.values, segments, NO_COPIES, SCALING, window, None)
    for token in range(CAPACITY):
        exact, size = seen(query[0, :, token], slots, 0, token, window, None)
        assert ((found[0, token] - exact).abs() <= (exact.abs() + size) * 2**-8).all()


@of_any_shape
@pytest.mark.parametrize("window", [None, 20, 250])
def test_a_row_gets_the_same_bits_alone_and_among_others(shape: Shape, window: int | None) -> None:
    before = slots_with(POSITIONS, shape)
    query, key, value = arriving(len(POSITIONS), 1, shape)
    slots, positions = before.copied(), torch.tensor(POSITIONS)
    together = decode_attention(query, key, value, slots.keys, slots.values, positions, SCALING, window, None)
    for row in range(len(POSITIONS)):
        one, own = slice(row, row + 1), before.copied(row, row + 1)
        states = (query[one], key[one], value[one])
        alone = decode_attention(*states, own.keys, own.values, positions[one], SCALING, window, None)
        assert torch.equal(alone, together[one])


@of_any_shape
@pytest.mark.parametrize("window", [None, 20, 250])
def test_a_segment_gets_the_same_bits_alone_and_among_others(shape: Shape, window: int | None) -> None:
    segments = table(PIECES)
    before = slots_with([position for _, position in reversed(PIECES)], shape)
    states, slots = arriving(1, sum(tokens for tokens, _ in PIECES), shape), before.copied()
    together = prefill_attention(*states, slots.keys, slots.values, segments, NO_COPIES, SCALING, window, None)
    for first, tokens, slot, position in segments.tolist():
        part, own = slice(first, first + tokens), before.copied(slot, slot + 1)
        query, key, value = (state[:, :, part] for state in states)
        segment = torch.tensor([[0, tokens, 0, position]])
        alone = prefill_attention(query, key, value, own.keys, own.values, segment, NO_COPIES, SCALING, window, None)
        assert torch.equal(alone, together[:, part])


@of_any_shape
@pytest.mark.parametrize("window", [None, 20, 250])
@pytest.mark.parametrize("cut", [1, 16, 47, 100, 191, 192, 299])
def test_a_prompt_gets_the_same_bits_whole_and_in_pieces(shape: Shape, window: int | None, cut: int) -> None:
    """In two passes, and as two segments of one."""
    states = arriving(1, 300, shape)
    whole, in_passes, in_one = (slots_with([0], shape) for _ in range(3))
    ways = (NO_COPIES, SCALING, window, None)
    expected = prefill_attention(*states, whole.keys, whole.values, torch.tensor([[0, 300, 0, 0]]), *ways)
    found = []
    for begin, end in ((0, cut), (cut, 300)):
        query, key, value = (state[:, :, begin:end] for state in states)
        segment = torch.tensor([[0, end - begin, 0, begin]])
        found.append(prefill_attention(query, key, value, in_passes.keys, in_passes.values, segment, *ways))
    assert torch.equal(torch.cat(found, 1), expected)
    segments = torch.tensor([[cut, 300 - cut, 0, cut], [0, cut, 0, 0]])
    assert torch.equal(prefill_attention(*states, in_one.keys, in_one.values, segments, *ways), expected)
    assert torch.equal(in_passes.bits(), whole.bits())
    assert torch.equal(in_one.bits(), whole.bits())


def test_what_is_lent_is_copied_before_anyone_attends() -> None:
    """The borrower begins where its loans end: at first with what the lender held, then with what it computes only now."""
    shape, borrowed = SHAPES[1], 40
    states, slots = arriving(1, 70, shape), slots_with([0, 10, 7], shape)
    segments = torch.tensor([[0, 20, 0, borrowed], [20, 50, 1, 10]])
    loans = torch.tensor([[0, 1, position] for position in range(borrowed)])
    own = written(slots, *states[1:], segments)
    own.keys[0, :, :borrowed], own.values[0, :, :borrowed] = own.keys[1, :, :borrowed], own.values[1, :, :borrowed]
    found = prefill_attention(*states, slots.keys, slots.values, segments, loans, SCALING, None, None)
    assert torch.equal(slots.bits(), own.bits())
    assert torch.equal(
        found, prefill_attention(*states, own.keys, own.values, segments, NO_COPIES, SCALING, None, None)
    )


def test_states_may_lie_in_any_way() -> None:
    shape, segments = SHAPES[0], torch.tensor([[0, 6, 0, 20]])
    states = arriving(1, 6, shape)
    turned = [state.transpose(2, 3).contiguous().transpose(2, 3) for state in states]
    one, other = slots_with([20], shape), slots_with([20], shape)
    expected = prefill_attention(*states, one.keys, one.values, segments, NO_COPIES, SCALING, None, None)
    found = prefill_attention(*turned, other.keys, other.values, segments, NO_COPIES, SCALING, None, None)
    assert torch.equal(found, expected)
    assert torch.equal(one.bits(), other.bits())


def refusals() -> dict[str, tuple[Shape, Tensor, Tensor, str]]:
    """The states' shape, keys, values, what is said of it."""
    good, apart = normal(0, 1, 2, 8, 64), normal(0, 1, 8, 2, 64).transpose(1, 2)
    return {
        "a width of 48": (
            (4, 2, 48),
            good[..., :48].contiguous(),
            good[..., :48].contiguous(),
            "head widths must be equal",
        ),
        "keys of another width": ((4, 2, 32), good, good[..., :32].contiguous(), "head widths must be equal"),
        "values of another width": ((4, 2, 64), good, good[..., :32].contiguous(), "head widths must be equal"),
        "keys lie apart": ((4, 2, 64), apart, good, "must be contiguous"),
        "values lie apart": ((4, 2, 64), good, apart, "must be contiguous"),
        "keys in float32": ((4, 2, 64), good.float(), good, "bfloat16"),
    }


@pytest.mark.parametrize("name", refusals())
def test_what_does_not_fit_is_refused(name: str) -> None:
    shape, keys, values, message = refusals()[name]
    states, place = arriving(1, 1, shape), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=message):
        decode_attention(*states, keys, values, place, SCALING, None, None)
    with pytest.raises(RuntimeError, match=message):
        prefill_attention(*states, keys, values, torch.tensor([[0, 1, 0, 0]]), NO_COPIES, SCALING, None, None)


def test_queries_in_float32_two_tokens_a_row_and_rows_without_a_slot_are_refused() -> None:
    shape, places = SHAPES[0], torch.zeros(2, dtype=torch.int64)
    slots, (query, key, value) = slots_with([0], shape), arriving(1, 1, shape)
    with pytest.raises(RuntimeError, match="bfloat16"):
        decode_attention(query.float(), key, value, slots.keys, slots.values, places, SCALING, None, None)
    for rows, tokens in ((1, 2), (2, 1)):
        with pytest.raises(RuntimeError, match="one token per row and a slot per row"):
            decode_attention(*arriving(rows, tokens, shape), slots.keys, slots.values, places, SCALING, None, None)
