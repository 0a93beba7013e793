"""SlotAttention: attention over cache slots, as an implementation of transformers' attention interface."""

from itertools import count
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from steering.engine.batch import Batch, Segment
from steering.engine.kv_cache import SlotCache
from steering.shapes import Bool, Float, Tensor

_numbers = count()


class SlotAttention:
    """One engine's attention function, registered under a name of its own while the engine lives.

    Decode is grouped-query attention by batched matmul over the filled part of the slots, keys not repeated. A packed
    prompt pass attends within each segment; segments that start at position 0 share one padded causal call. A pass
    without slots (fitting) is plain causal attention.
    """

    def __init__(self, cache: SlotCache) -> None:
        self._cache = cache
        self.name = f"slots-{next(_numbers)}"
        self._replaced: list[tuple[Any, Any]] = []
        ALL_ATTENTION_FUNCTIONS.register(self.name, self)

    def attach(self, model: torch.nn.Module) -> None:
        """Makes every attention module of the model dispatch to this function."""
        configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
        found = [config for config in configs.values() if hasattr(config, "_attn_implementation")]
        self._replaced += [(config, config._attn_implementation) for config in found]
        for config in found:
            config._attn_implementation = self.name

    def close(self) -> None:
        """The model attends as it did before, unless something else was attached meanwhile."""
        ours = [(config, before) for config, before in self._replaced if config._attn_implementation == self.name]
        for config, before in ours:  # outer configs first: setting one sets those inside it
            config._attn_implementation = before
        self._replaced.clear()
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop(self.name, None)

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
        batch = self._cache.batch
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        if batch is None:  # a pass without slots: whole texts, padded on the right
            out = causal(query, key, value, 0, scaling, sliding_window, softcap)
        elif batch.decode:
            out = grouped(query, key, value, batch.mask(sliding_window), scaling, softcap)
        elif len(batch.segments) > 1 and softcap is None and all(s.first == 0 for s in batch.segments):
            out = self._fresh(batch, query, key, value, scaling, sliding_window)
        else:
            layer = self._cache.layers[module.layer_idx]
            pieces = [
                self._segment(s, query, key, value, layer, scaling, sliding_window, softcap) for s in batch.segments
            ]
            out = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)
        return out.transpose(1, 2), None

    @staticmethod
    def _fresh(batch: Batch, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None) -> Tensor:
        """Whole prompts side by side: padded on the right, where causality already hides the padding."""
        there, back = batch.padding()
        count = len(batch.segments)

        def padded(states: Tensor) -> Tensor:
            rows = states[0].index_select(1, there)
            return rows.view(states.shape[1], count, -1, states.shape[3]).transpose(0, 1)

        out = causal(padded(query), padded(key), padded(value), 0, scaling, window, None)
        flat = out.transpose(0, 1).reshape(query.shape[1], -1, out.shape[3])
        return flat.index_select(1, back).unsqueeze(0)

    @staticmethod
    def _segment(
        segment: Segment,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layer: Any,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        part = slice(segment.start, segment.end)
        if segment.first == 0:
            keys, values = key[:, :, part], value[:, :, part]
        else:
            slot, filled = segment.sequence.slot, segment.last_position + 1
            keys, values = layer.keys[slot : slot + 1, :, :filled], layer.values[slot : slot + 1, :, :filled]
        return causal(query[:, :, part], keys, values, segment.first, scaling, window, softcap)


def grouped(
    query: Tensor, key: Tensor, value: Tensor, mask: Bool[Tensor, "..."], scaling: float, softcap: float | None
) -> Tensor:
    """query (row, head, query, head_dim), key and value (row, kv_head, position, head_dim) -> as query.

    Heads that share a key are rows of one matmul, so keys are read once and never repeated.
    """
    rows, heads, length, head_dim = query.shape
    kv_heads = key.shape[1]
    folded = query.reshape(rows, kv_heads, heads // kv_heads * length, head_dim)
    scores = torch.matmul(folded, key.transpose(-1, -2)) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if length > 1:
        mask = mask.repeat(1, 1, heads // kv_heads, 1)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    return torch.matmul(weights, value).reshape(rows, heads, length, value.shape[-1])


def causal(
    query: Tensor, key: Tensor, value: Tensor, first: int, scaling: float, window: int | None, softcap: float | None
) -> Tensor:
    """Causal attention of queries at positions first, first + 1, ... over keys at positions 0, 1, ..."""
    length, filled = query.shape[2], key.shape[2]
    plain = first == 0 and (window is None or filled <= window)
    mask = None
    if not plain or softcap is not None:
        at = torch.arange(first, first + length, device=query.device)[:, None]
        index = torch.arange(filled, device=query.device)
        mask = index <= at
        if window is not None:
            mask = mask & (index > at - window)
    if softcap is not None:
        assert mask is not None
        return grouped(query, key, value, mask[None, None], scaling, softcap)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=plain, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
