"""Attention over blocks is softmax over what a token's own sequence holds up to its position, however passes are formed."""

from dataclasses import dataclass

import pytest
import torch

from steering.engine.cpu.kernels.operations import paged_attention
from steering.engine.transformers.block_pool import BLOCK
from steering.engine.transformers.paged_cache import PairedLayout
from steering.shapes import Tensor

pytestmark = pytest.mark.usefixtures("kernels", "threads")
Shape = tuple[int, int, int]
SHAPES: list[Shape] = [(4, 4, 32), (9, 3, 64), (8, 2, 96), (5, 1, 128), (16, 2, 256)]
"""(heads, heads of keys, width): 1, 3, 4, 5 and 8 heads per key."""
PIECES = [(16, 0), (1, 15), (33, 16), (5, 47), (1, 48), (3, 191), (70, 192), (1, 400)]
"""(tokens, position of the first) of each sequence: prompts, pieces of prompts, and single tokens that decode."""
LENGTH = 450
SCALING = 0.25
LAYOUT = PairedLayout()
of_any_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
within_windows = pytest.mark.parametrize("window", [None, 1, 5, 250])
with_softcaps = pytest.mark.parametrize("softcap", [None, 3.0])


@dataclass(frozen=True)
class Sequences:
    """keys, values (sequence, kv_head, position, width), and where their blocks are in a cache."""

    keys: Tensor
    values: Tensor
    blocks: Tensor

    @classmethod
    def of(cls, count: int, shape: Shape) -> "Sequences":
        """Random states of that many sequences; their blocks lie anywhere."""
        size, each = (count, shape[1], LENGTH, shape[2]), -(-LENGTH // BLOCK)
        order = torch.randperm(count * each, generator=torch.Generator().manual_seed(0)) + 1
        return cls(normal(1, *size), normal(2, *size), order.view(count, each))

    def cached(self, filled: list[int]) -> tuple[Tensor, Tensor]:
        """A cache (kv_head, slot, width) that holds so many positions of each sequence."""
        size = (self.keys.shape[1], (self.blocks.numel() + 1) * BLOCK, self.keys.shape[3])
        keys, values = torch.zeros(2, *size, dtype=torch.bfloat16).unbind()
        for number, count in enumerate(filled):
            slots = (self.blocks[number][:, None] * BLOCK + torch.arange(BLOCK)).view(-1)[:count]
            LAYOUT.write_keys(keys, slots, self.keys[number, :, :count])
            LAYOUT.write_values(values, slots, self.values[number, :, :count])
        return keys, values

    def arriving(self, pieces: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """The keys and values (1, kv_head, token, width) of a piece of each sequence, one after the other."""
        found = [
            torch.cat([states[n, :, at : at + tokens] for n, (tokens, at) in enumerate(pieces)], dim=1)[None]
            for states in (self.keys, self.values)
        ]
        return found[0], found[1]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def queries(tokens: int, shape: Shape) -> Tensor:
    """(1, head, token, width) as layers leave them: the heads of a token lie together."""
    return normal(3, 1, tokens, shape[0], shape[2]).transpose(1, 2)


def table(pieces: list[tuple[int, int]]) -> Tensor:
    """The segments of pieces, one after the other."""
    firsts = [sum(tokens for tokens, _ in pieces[:n]) for n in range(len(pieces))]
    return torch.tensor([[first, tokens, at] for first, (tokens, at) in zip(firsts, pieces, strict=True)])


def seen(
    query: Tensor, states: Sequences, number: int, position: int, window: int | None, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """query (head, token, width) from `position` on -> (what they get, the same of the values' sizes), in float64."""
    tokens = query.shape[1]
    keys, values = (part[number, :, None, : position + tokens].double() for part in (states.keys, states.values))
    by_key = query.double().view(len(keys), -1, tokens, query.shape[2])
    scores = SCALING * by_key @ keys.transpose(2, 3)
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    distance = torch.arange(position, position + tokens)[:, None] - torch.arange(position + tokens)
    unseen = (distance < 0) | (distance >= (window or LENGTH))
    weights = scores.masked_fill(unseen, -torch.inf).softmax(-1)
    return (weights @ values).flatten(0, 1), (weights @ values.abs()).flatten(0, 1)


@of_any_shape
@within_windows
@with_softcaps
def test_tokens_see_their_own_sequence(shape: Shape, window: int | None, softcap: float | None) -> None:
    """Weights are rounded to bfloat16, and then the result. Afterwards the cache holds the new states too."""
    states = Sequences.of(len(PIECES), shape)
    query, new = queries(sum(tokens for tokens, _ in PIECES), shape), states.arriving(PIECES)
    keys, values = states.cached([at for _, at in PIECES])
    found = paged_attention(query, *new, keys, values, table(PIECES), states.blocks, SCALING, window, softcap)
    assert found.shape == (1, query.shape[2], shape[0], shape[2])
    for number, (first, tokens, position) in enumerate(table(PIECES).tolist()):
        part = slice(first, first + tokens)
        exact, size = seen(query[0, :, part], states, number, position, window, softcap)
        assert ((found[0, part].transpose(0, 1) - exact).abs() <= (exact.abs() + size) * 2**-8).all()
    expected = states.cached([at + tokens for tokens, at in PIECES])
    assert torch.equal(keys, expected[0])
    assert torch.equal(values, expected[1])


def test_a_score_below_the_range_of_float32_has_no_weight() -> None:
    """Planted: the product with one key is -infinity in float32."""
    shape, pieces = SHAPES[0], [(1, 20)]
    states, query = Sequences.of(1, shape), queries(1, shape)
    states.keys[0, :, 5] = -3e38 * query[0, :, 0].sign()
    new, ways = states.arriving(pieces), (SCALING, None, None)
    found = paged_attention(query, *new, *states.cached([20]), table(pieces), states.blocks, *ways)
    exact, size = seen(query[0], states, 0, 20, None, None)
    assert ((found[0].transpose(0, 1) - exact).abs() <= (exact.abs() + size) * 2**-8).all()


@of_any_shape
@pytest.mark.parametrize("window", [None, 20, 250])
def test_a_segment_gets_the_same_bits_alone_and_among_others(shape: Shape, window: int | None) -> None:
    states = Sequences.of(len(PIECES), shape)
    query, new = queries(sum(tokens for tokens, _ in PIECES), shape), states.arriving(PIECES)
    filled = [at for _, at in PIECES]
    together = paged_attention(query, *new, *states.cached(filled), table(PIECES), states.blocks, SCALING, window, None)
    for number, (first, tokens, position) in enumerate(table(PIECES).tolist()):
        part = slice(first, first + tokens)
        arriving = [state[:, :, part] for state in (query, *new)]
        segment, blocks = torch.tensor([[0, tokens, position]]), states.blocks[number][None]
        alone = paged_attention(*arriving, *states.cached(filled), segment, blocks, SCALING, window, None)
        assert torch.equal(alone, together[:, part])


@of_any_shape
@pytest.mark.parametrize("window", [None, 20, 250])
@pytest.mark.parametrize("cut", [1, 16, 47, 100, 191, 192, 299])
def test_a_prompt_gets_the_same_bits_whole_and_in_pieces(shape: Shape, window: int | None, cut: int) -> None:
    states, query = Sequences.of(1, shape), queries(300, shape)
    new, ways = states.arriving([(300, 0)]), (SCALING, window, None)
    expected = paged_attention(query, *new, *states.cached([0]), table([(300, 0)]), states.blocks, *ways)
    found, cache = [], states.cached([0])
    for begin, end in ((0, cut), (cut, 300)):
        arriving = [state[:, :, begin:end] for state in (query, *new)]
        segment = torch.tensor([[0, end - begin, begin]])
        found.append(paged_attention(*arriving, *cache, segment, states.blocks, *ways))
    assert torch.equal(torch.cat(found, 1), expected)


@of_any_shape
@pytest.mark.parametrize("window", [None, 20, 250])
@pytest.mark.parametrize("cut", [16, 48, 96, 192, 288])
def test_segments_of_a_pass_may_share_full_blocks(shape: Shape, window: int | None, cut: int) -> None:
    states, query = Sequences.of(1, shape), queries(300, shape)
    new, ways = states.arriving([(300, 0)]), (SCALING, window, None)
    expected = paged_attention(query, *new, *states.cached([0]), table([(300, 0)]), states.blocks, *ways)
    segments, blocks = torch.tensor([[cut, 300 - cut, cut], [0, cut, 0]]), states.blocks.expand(2, -1)
    assert torch.equal(paged_attention(query, *new, *states.cached([0]), segments, blocks, *ways), expected)


@of_any_shape
@pytest.mark.parametrize("window", [None, 20])
def test_an_answer_gets_the_same_bits_decoded_and_read(shape: Shape, window: int | None) -> None:
    states, query = Sequences.of(1, shape), queries(40, shape)
    new, cache, ways = states.arriving([(40, 0)]), states.cached([0]), (SCALING, window, None)
    read = paged_attention(query, *new, *states.cached([0]), table([(40, 0)]), states.blocks, *ways)
    for token in range(40):
        arriving = [state[:, :, token : token + 1] for state in (query, *new)]
        found = paged_attention(*arriving, *cache, torch.tensor([[0, 1, token]]), states.blocks, *ways)
        assert torch.equal(found, read[:, token : token + 1])


def rotated(states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """As `apply_rotary_pos_emb` of transformers, one operation after the other."""
    low, high = states.chunk(2, dim=-1)
    return states * cosines + torch.cat((-high, low), dim=-1) * sines


@of_any_shape
@pytest.mark.parametrize("piece", [(1, 20), (1, 15), (300, 0), (70, 33)], ids=str)
def test_queries_and_keys_are_rotated_as_a_model_rotates_them(shape: Shape, piece: tuple[int, int]) -> None:
    """To the bit, in the result and in the cache."""
    tokens, at = piece
    states, query = Sequences.of(1, shape), queries(piece[0], shape)
    key, value = states.arriving([piece])
    angles = torch.rand(1, 1, tokens, shape[2], generator=torch.Generator().manual_seed(5)) * 6
    rotation = angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)
    ways = (torch.tensor([[0, tokens, at]]), states.blocks, SCALING, None, None)
    expected_cache, cache = states.cached([at]), states.cached([at])
    expected = paged_attention(rotated(query, *rotation), rotated(key, *rotation), value, *expected_cache, *ways)
    assert torch.equal(paged_attention(query, key, value, *cache, *ways, *rotation), expected)
    assert torch.equal(cache[0], expected_cache[0])


def test_states_may_lie_in_any_way() -> None:
    shape, pieces = SHAPES[0], [(6, 20)]
    states = Sequences.of(1, shape)
    arriving = (queries(6, shape), *states.arriving(pieces))
    turned = [state.transpose(2, 3).contiguous().transpose(2, 3) for state in arriving]
    ways = (table(pieces), states.blocks, SCALING, None, None)
    expected = paged_attention(*arriving, *states.cached([20]), *ways)
    assert torch.equal(paged_attention(*turned, *states.cached([20]), *ways), expected)


def refusals() -> dict[str, tuple[Shape, Tensor, Tensor, str]]:
    """The states' shape, keys, values, the message."""
    good, apart = normal(0, 2, 32, 64), normal(0, 32, 2, 64).transpose(0, 1)
    narrow = good[..., :48].contiguous()
    return {
        "a width of 48": ((4, 2, 48), narrow, narrow, "head widths must be equal"),
        "keys of another width": ((4, 2, 32), good, good[..., :32].contiguous(), "head widths must be equal"),
        "values of another width": ((4, 2, 64), good, good[..., :32].contiguous(), "must be a multiple"),
        "keys lie apart": ((4, 2, 64), apart, good, "contiguous cache"),
        "values lie apart": ((4, 2, 64), good, apart, "contiguous cache"),
        "keys in float32": ((4, 2, 64), good.float(), good, "bfloat16"),
        "half a block": ((4, 2, 64), good[:, :24].contiguous(), good[:, :24].contiguous(), "contiguous cache"),
    }


def given(shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """query, key and value of one token."""
    heads, shared, width = shape
    return normal(0, 1, heads, 1, width), normal(1, 1, shared, 1, width), normal(2, 1, shared, 1, width)


@pytest.mark.parametrize("name", refusals())
def test_what_does_not_fit_is_refused(name: str) -> None:
    shape, keys, values, message = refusals()[name]
    with pytest.raises(RuntimeError, match=message):
        paged_attention(
            *given(shape), keys, values, torch.tensor([[0, 1, 0]]), torch.tensor([[1]]), SCALING, None, None
        )


@pytest.mark.parametrize(
    ("segment", "block", "message"),
    [
        ([0, 2, 0], 1, "exceeds the tokens or its block table"),
        ([0, 1, 16], 1, "exceeds the tokens or its block table"),
        ([0, 1, -1], 1, "exceeds the tokens or its block table"),
        ([0, 1, 0], 2, "block 2 of 2"),
        ([0, 1, 0], -1, "block -1 of 2"),
    ],
)
def test_segments_and_blocks_beyond_the_cache_are_refused(segment: list[int], block: int, message: str) -> None:
    states = normal(0, 2, 32, 64)
    with pytest.raises(RuntimeError, match=message):
        paged_attention(
            *given((4, 2, 64)),
            states,
            states.clone(),
            torch.tensor([segment]),
            torch.tensor([[block]]),
            SCALING,
            None,
            None,
        )
