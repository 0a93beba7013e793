"""PagedAttention: attention over cache blocks, as an implementation of transformers' attention interface."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.nn.functional import scaled_dot_product_attention

from steering.engine.transformers.attention.length_groups import LengthGroups
from steering.engine.transformers.attention.query_tiling import tiled, worthwhile
from steering.engine.transformers.batch import Batch
from steering.engine.transformers.memory.paged_cache import PagedCache, PagedLayer
from steering.shapes import Bool, Float, Tensor


class Scores(NamedTuple):
    """How scores are computed. window: how many positions are seen, None: all before. softcap: the bound of tanh capping."""

    scaling: float
    window: int | None
    softcap: float | None


AttentionKernel: TypeAlias = Callable[[Tensor, Tensor, Tensor, tuple[Tensor, Tensor], Batch, Scores], Tensor]
"""(query, key, value (1, head, token, head_dim), cached keys and values, batch, scores) -> as query."""


class AttentionFunction(ABC):
    """The signature of transformers' attention interface, reduced to what differs between implementations."""

    def __call__(  # noqa: PLR0913, PLR0917 - the signature is transformers'
        self,
        module: torch.nn.Module,
        query: Float[Tensor, "row head query head_dim"],
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,  # noqa: ARG002 - masks are made from the batch
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
        """Attends from each token of the running pass to what it may see."""


class PagedAttention(AttentionFunction):
    """The attention function of one engine. A pass without a batch (fitting) is plain causal attention.

    kernel: computes attention over the blocks itself, and writes them; None: keys and values are written by the cache.
    """

    def __init__(self, cache: PagedCache) -> None:
        self._cache = cache
        self.kernel: AttentionKernel | None = None
        self._batch: Batch | None = None
        self._groups: LengthGroups | None = None

    def write_and_attend(
        self,
        layer: int,
        query: Float[Tensor, "1 head token head_dim"],
        key: Tensor,
        value: Tensor,
        *scores: Any,
    ) -> Float[Tensor, "1 head token head_dim"]:
        """Does the same for a compiled pass, whose graph knows no cache: keys and values are written first."""
        key, value = self._cache.update(key, value, layer)
        return self.attended(layer, query, key, value, Scores(*scores))

    def attended(
        self, layer: int, query: Float[Tensor, "row head query head_dim"], key: Tensor, value: Tensor, scores: Scores
    ) -> Float[Tensor, "row head query head_dim"]:
        """See AttentionFunction."""
        batch = self._cache.batch
        if batch is None:  # whole texts, padded on the right
            return causal(query, key, value, scores)
        states: PagedLayer = self._cache.layers[layer]
        if self.kernel is not None:
            return self.kernel(query, key, value, (states.keys, states.values), batch, scores)
        groups = self._groups_of(batch)
        parts = []
        for group in groups.groups:
            keys, values = (group.tokens_of(key), group.tokens_of(value)) if group.fresh else group.past(states)
            mask = group.mask(scores.window, needed=scores.softcap is not None)
            parts.append(masked(group.tokens_of(query), keys, values, mask, scores))
        return groups.restored(parts)

    def _groups_of(self, batch: Batch) -> LengthGroups:
        if self._batch is not batch or self._groups is None:
            self._batch, self._groups = batch, LengthGroups.of(batch.segments, batch.positions.device)
        return self._groups


def grouped(query: Tensor, key: Tensor, value: Tensor, mask: Bool[Tensor, "..."], scores: Scores) -> Tensor:
    """Computes attention by two matmuls, scores and weights in float32: query (row, head, query, head_dim), key and value
    (row, kv_head, position, head_dim) -> as query. Heads that share a key are rows of one matmul, so keys are not repeated.
    """
    folded, folded_mask = _folded(query, key.shape[1], mask)
    found = torch.matmul(folded.float() * scores.scaling, key.transpose(-1, -2).float())
    if scores.softcap is not None:
        found = torch.tanh(found / scores.softcap) * scores.softcap
    found = found.masked_fill(~folded_mask, torch.finfo(found.dtype).min)
    weights = torch.softmax(found, dim=-1).to(value.dtype)
    return torch.matmul(weights, value).reshape(*query.shape[:3], value.shape[-1])


def _folded(
    query: Float[Tensor, "row head query head_dim"], kv_heads: int, mask: Bool[Tensor, "#row 1 query position"]
) -> tuple[Float[Tensor, "row kv_head folded head_dim"], Bool[Tensor, "#row 1 mask_row position"]]:
    """The queries of heads that share a key, one after the other, and their mask: one row for each, or one for all."""
    rows, heads, length, head_dim = query.shape
    group = heads // kv_heads
    folded = query.reshape(rows, kv_heads, group * length, head_dim)
    return folded, mask if length == 1 else mask.repeat(1, 1, group, 1)


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
        if query.shape[2] == 1 and mask is not None:
            return grouped(query, key, value, mask, scores)
        return tiled(query, key, value, mask, scores.scaling)
    if mask is None:
        gqa = query.shape[1] != key.shape[1]
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scores.scaling, enable_gqa=gqa)
    # With a mask and enable_gqa, CUDA only has the math kernel, which keeps all scores in float32. Folding the heads that
    # share a key into the query needs neither.
    folded, folded_mask = _folded(query, key.shape[1], mask)
    found = scaled_dot_product_attention(folded, key, value, attn_mask=folded_mask, scale=scores.scaling)
    return found.reshape(*query.shape[:3], value.shape[-1])
