"""Attention by blocks of queries is the library's attention, whatever the block's edges fall on."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from steering.engine.transformers.attention import TILE, tiled, worthwhile
from steering.shapes import Tensor

HEADS, KV_HEADS, WIDTH = 6, 2, 8


def states(segments: int, length: int, past: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    query = torch.randn(segments, HEADS, length, WIDTH, generator=generator)
    key, value = torch.randn(2, segments, KV_HEADS, past + length, WIDTH, generator=generator).unbind()
    return query, key, value


def seen(firsts: list[int], length: int, total: int, window: int | None) -> Tensor:
    at = (torch.tensor(firsts)[:, None] + torch.arange(length))[:, None, :, None]
    index = torch.arange(total)
    return (index <= at) & (index > at - (window or total))


@pytest.mark.parametrize("length", [1, 5, TILE, TILE + 1, 3 * TILE - 7])
@pytest.mark.parametrize("segments", [1, 3])
def test_causal(segments: int, length: int) -> None:
    query, key, value = states(segments, length, 0)
    expected = scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(tiled(query, key, value, None, 0.3), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 9, TILE + 3])
@pytest.mark.parametrize("firsts", [[40], [40, 3, 17]])
def test_behind_a_past_and_within_a_window(firsts: list[int], window: int | None) -> None:
    """Segments of one group begin at different positions: the furthest need not be the last."""
    length = 2 * TILE + 5
    query, key, value = states(len(firsts), length, max(firsts))
    mask = seen(firsts, length, max(firsts) + length, window)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(tiled(query, key, value, mask, 0.3), expected, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_it_is_as_near_to_exact_as_that_allows() -> None:
    query, key, value = (state.to(torch.bfloat16) for state in states(2, TILE + 40, 0))
    exact = scaled_dot_product_attention(
        query.float(), key.float(), value.float(), is_causal=True, scale=0.3, enable_gqa=True
    )
    assert worthwhile(query)
    assert not worthwhile(query.float())
    assert (tiled(query, key, value, None, 0.3).float() - exact).abs().max() < 0.02
