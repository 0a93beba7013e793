"""SlotAttention: attention over cache slots, as an implementation of transformers' attention interface."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from steering.engine.transformers.attention.query_tiling import in_blocks, worthwhile
from steering.engine.transformers.memory.slot_cache import SlotCache
from steering.shapes import Bool, Float, Tensor


class Scores(NamedTuple):
    """How scores are made. window: how many positions are seen, None: all before. softcap: what they are bent to."""

    scaling: float
    window: int | None
    softcap: float | None


class AttentionFunction(ABC):
    """What transformers' attention interface calls, as one method over what differs."""

    def __call__(  # noqa: PLR0913, PLR0917 - the signature is transformers'
        self,
        module: torch.nn.Module,
        query: Float[Tensor, "row head query head_dim"],
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,  # noqa: ARG002 - masks are the batch's
        scaling: float | None = None,
        dropout: float = 0.0,  # noqa: ARG002 - never in inference
        sliding_window: int | None = None,
        softcap: float | None = None,
        **_: Any,
    ) -> tuple[Float[Tensor, "row query head head_dim"], None]:
        """query (row, head, query, head_dim) -> (row, query, head, head_dim)."""
        scores = Scores(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
        layer: int = module.layer_idx  # type: ignore[assignment]  # torch types attributes of modules as tensors
        return self.attended(layer, query, key, value, scores).transpose(1, 2), None

    @abstractmethod
    def attended(
        self, layer: int, query: Float[Tensor, "row head query head_dim"], key: Tensor, value: Tensor, scores: Scores
    ) -> Float[Tensor, "row head query head_dim"]:
        """Each token of the pass that runs over what it may see."""


class SegmentKernel(Protocol):
    """A faster implementation of prompt attention, which an executor may install."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        states: tuple[Tensor, Tensor],
        tables: tuple[Tensor, Tensor],
        scores: Scores,
    ) -> Tensor | None:
        """Returns attention like `SlotAttention.attended`, or None for shapes that it does not support.

        states: cached keys and values. tables: segments and prefix copies of the batch.
        """
        ...


class SlotAttention(AttentionFunction):
    """One engine's attention function, which knows the pass that runs.

    Decode is grouped-query attention by batched matmul over the filled part of the slots, keys not repeated. A packed
    prompt pass attends within each segment, segments of about equal length next to each other. A pass without slots
    (fitting) is plain causal attention.
    """

    def __init__(self, cache: SlotCache) -> None:
        self._cache = cache
        self.segment_kernel: SegmentKernel | None = None

    def write_and_attend(
        self,
        layer: int,
        query: Float[Tensor, "row head query head_dim"],
        key: Tensor,
        value: Tensor,
        *scores: Any,
    ) -> Float[Tensor, "row head query head_dim"]:
        """The same for a compiled prompt pass, whose graph knows no cache: keys and values are written first."""
        key, value = self._cache.update(key, value, layer)
        return self.attended(layer, query, key, value, Scores(*scores))

    def attended(
        self, layer: int, query: Float[Tensor, "row head query head_dim"], key: Tensor, value: Tensor, scores: Scores
    ) -> Float[Tensor, "row head query head_dim"]:
        """See AttentionFunction."""
        batch = self._cache.batch
        if batch is None:  # a pass without slots: whole texts, padded on the right
            return causal(query, key, value, scores)
        if batch.decode:
            return grouped(query, key, value, batch.mask(scores.window), scores)
        states = self._cache.layers[layer]
        if self.segment_kernel is not None:
            tables = batch.table(), batch.loan_table()
            attended = self.segment_kernel(query, key, value, (states.keys, states.values), tables, scores)
            if attended is not None:
                return attended
        beside = batch.side_by_side()
        parts = []
        for group in beside.groups:
            seen = (key, value) if group.fresh else (states.keys, states.values)
            keys, values = map(group.rows if group.fresh else group.past, seen)
            mask = group.mask(scores.window, needed=scores.softcap is not None)
            parts.append(masked(group.rows(query), keys, values, mask, scores))
        return beside.restored(parts)


def grouped(query: Tensor, key: Tensor, value: Tensor, mask: Bool[Tensor, "..."], scores: Scores) -> Tensor:
    """query (row, head, query, head_dim), key and value (row, kv_head, position, head_dim) -> as query.

    Heads that share a key are rows of one matmul, so keys are read once and never repeated.
    """
    rows, heads, length, head_dim = query.shape
    kv_heads = key.shape[1]
    folded = query.reshape(rows, kv_heads, heads // kv_heads * length, head_dim)
    found = torch.matmul(folded, key.transpose(-1, -2)) * scores.scaling
    if scores.softcap is not None:
        found = torch.tanh(found / scores.softcap) * scores.softcap
    if length > 1:
        mask = mask.repeat(1, 1, heads // kv_heads, 1)
    found = found.masked_fill(~mask, torch.finfo(found.dtype).min)
    weights = torch.softmax(found, dim=-1, dtype=torch.float32).to(value.dtype)
    return torch.matmul(weights, value).reshape(rows, heads, length, value.shape[-1])


def causal(query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
    """Causal attention within whole texts, from position 0 on."""
    length, window = query.shape[2], scores.window
    mask = None
    if scores.softcap is not None or (window is not None and length > window):
        at, index = torch.arange(length, device=query.device)[:, None], torch.arange(length, device=query.device)
        mask = (index <= at)[None, None]
        if window is not None:
            mask = mask & (index > at - window)
    return masked(query, key, value, mask, scores)


def masked(query: Tensor, key: Tensor, value: Tensor, mask: Bool[Tensor, "..."] | None, scores: Scores) -> Tensor:
    """Attention under a mask; None: causal, from position 0 on."""
    if scores.softcap is not None:
        assert mask is not None
        return grouped(query, key, value, mask, scores)
    if worthwhile(query):
        return in_blocks(query, key, value, mask, scores.scaling)
    gqa = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scores.scaling, enable_gqa=gqa
    )
