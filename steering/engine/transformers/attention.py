"""PagedAttention: attention over cache blocks, as an implementation of transformers' attention interface."""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import count
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from steering.engine.transformers.paged_cache import PagedCache, PagedLayer
from steering.engine.transformers.request import Batch, Request, block_table
from steering.injection.rows import Segment
from steering.shapes import Bool, Float, Int, Tensor
from steering.uploads import uploaded

UNEVEN, UNEVEN_DECODE = 1.5, 3.0
"""A group's segments are at most that many times as long as its shortest: padding costs, and so does every group. DECODE: the same for
the pasts of single tokens, where a group costs more than its padding."""
TILE = 128
"""Queries of a tile: half the work of a long prompt is not done since they cannot see it, and scores stay in the CPU cache."""


class Scores(NamedTuple):
    """How scores are computed. window: how many positions are seen, None: all before. softcap: the bound of tanh capping."""

    scaling: float
    window: int | None
    softcap: float | None


Queries: TypeAlias = Float[Tensor, "row head query head_dim"]
Mask: TypeAlias = Bool[Tensor, "#row 1 query position"]
"""Which positions each query sees."""
AttentionKernel: TypeAlias = Callable[[Tensor, Tensor, Tensor, tuple[Tensor, Tensor], Batch, Scores], Tensor]
"""(query, key, value (1, head, token, head_dim), cached keys and values, batch, scores) -> as query."""
AttentionFunction: TypeAlias = Callable[[int, Queries, Tensor, Tensor, Scores], Queries]
"""(layer, query, key, value, scores) -> as query: attends from each token of the running pass to what it may see."""
Observe: TypeAlias = Callable[[int, Queries, Tensor, Scores], None]
"""(layer, query, key, scores)."""
_numbers = count()


class Group:
    """Segments in one padded call, padded on the right with repetitions of their last token, whose results are dropped.

    fresh: all begin at position 0, so that they see tokens of this pass alone; otherwise their past is in the cache.
    longest: tokens of the longest segment.
    filled: positions that the segment with the longest past sees.
    """

    def __init__(self, segments: Sequence[Segment[Request]], device: torch.device) -> None:
        self.segments, self.device = segments, device
        self.fresh = segments[0].first == 0
        self.longest = max(segment.length for segment in segments)
        self.filled = max(segment.last_position for segment in segments) + 1
        self._masks: dict[int | None, Tensor] = {}

    @cached_property
    def _tokens(self) -> Int[Tensor, "padded"]:
        flat = [min(s.start + n, s.end - 1) for s in self.segments for n in range(self.longest)]
        return uploaded(flat, self.device)

    @cached_property
    def _blocks(self) -> Int[Tensor, "segment block"]:
        return block_table(self.segments, self.device)

    def tokens_of(
        self, states: Float[Tensor, "1 head token head_dim"]
    ) -> Float[Tensor, "segment head longest head_dim"]:
        """Returns the tokens of each segment; a view where there is only one."""
        first = self.segments[0]
        if len(self.segments) == 1:
            return states[:, :, first.start : first.end]
        rows = states[0].index_select(1, self._tokens)
        return rows.view(states.shape[1], len(self.segments), -1, states.shape[3]).transpose(0, 1)

    def past(
        self, layer: PagedLayer
    ) -> tuple[Float[Tensor, "segment kv_head filled head_dim"], Float[Tensor, "segment kv_head filled head_dim"]]:
        """Copies the keys and values that the cache holds for each segment, the tokens of this pass included."""
        return layer.past(self._blocks, self.filled)

    def mask(self, window: int | None, *, needed: bool = False) -> Bool[Tensor, "segment 1 longest filled"] | None:
        """Returns which positions each token sees; None where that is all before it and no mask is `needed`."""
        if self.fresh and not needed and (window is None or self.filled <= window):
            return None
        if window not in self._masks:
            firsts = uploaded([segment.first for segment in self.segments], self.device)
            at = firsts[:, None] + torch.arange(self.longest, device=self.device)
            self._masks[window] = visible(at, self.longest if self.fresh else self.filled, window)
        return self._masks[window]


def visible(at: Int[Tensor, "row query"], positions: int, window: int | None) -> Bool[Tensor, "row 1 query position"]:
    """Returns which of the first positions each query sees, from its own position."""
    index = torch.arange(positions, device=at.device)
    seen = index <= at[:, :, None]
    if window is not None:
        seen = seen & (index > at[:, :, None] - window)
    return seen[:, None]


class LengthGroups:
    """All segments of a pass in groups of about equal length, short ones first, each padded to one batched attention call.

    back: the index of each flat token of the pass among the groups' tokens; None: the same.
    """

    def __init__(self, segments: Iterable[Segment[Request]], device: torch.device) -> None:
        members: list[list[Segment[Request]]] = []
        for segment in sorted(segments, key=lambda s: (s.first > 0, s.length > 1, s.last_position, s.length)):
            if not members or not _alike(members[-1], segment):
                members.append([])
            members[-1].append(segment)
        self.groups = [Group(group, device) for group in members]
        self.back: Int[Tensor, token] | None = None
        if len(members) == len(members[0]) == 1:
            return
        flat = [0] * sum(segment.length for group in members for segment in group)
        offset = 0
        for group in self.groups:
            for segment in group.segments:
                flat[segment.start : segment.end] = range(offset, offset + segment.length)
                offset += group.longest
        self.back = uploaded(flat, device)

    def restored(
        self, parts: list[Float[Tensor, "segment head longest head_dim"]]
    ) -> Float[Tensor, "1 head token head_dim"]:
        """Returns the groups' results as flat tokens of the pass, in its order."""
        if self.back is None:
            return parts[0]
        flat = [part.transpose(0, 1).reshape(part.shape[1], -1, part.shape[3]) for part in parts]
        together = flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)
        return together.index_select(1, self.back).unsqueeze(0)


def _alike(group: list[Segment[Request]], segment: Segment[Request]) -> bool:
    """Whether a segment, whose past is not shorter than those of the group, may be padded together with them."""
    lengths = [member.length for member in (*group, segment)]
    uneven = UNEVEN_DECODE if max(lengths) == 1 else UNEVEN
    return (
        (group[0].first > 0) == (segment.first > 0)
        and segment.last_position + 1 <= uneven * (group[0].last_position + 1)
        and max(lengths) <= UNEVEN * min(lengths)
    )


class AttentionPatch:
    """A model's attention modules dispatch to `function` through transformers' attention interface until `close`; its name is
    its own."""

    def __init__(self, model: torch.nn.Module, function: AttentionFunction) -> None:
        self.name, self._function = f"slots-{next(_numbers)}", function
        ALL_ATTENTION_FUNCTIONS.register(self.name, self._attend)
        configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
        attending = [config for config in configs.values() if hasattr(config, "_attn_implementation")]
        self._replaced = [(config, config._attn_implementation) for config in attending]
        for config in attending:
            config._attn_implementation = self.name

    def _attend(  # noqa: PLR0913, PLR0917 - the signature is transformers'
        self,
        module: torch.nn.Module,
        query: Queries,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,  # noqa: ARG002 - masks are made from the batch
        scaling: float | None = None,
        dropout: float = 0.0,  # noqa: ARG002 - never in inference
        sliding_window: int | None = None,
        softcap: float | None = None,
        **_: Any,
    ) -> tuple[Float[Tensor, "row query head head_dim"], None]:
        scores = Scores(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
        layer: int = module.layer_idx  # type: ignore[assignment]  # torch types attributes of modules as tensors
        # contiguous, because some models take a view of it; the others would copy it when they reshape it
        return self._function(layer, query, key, value, scores).transpose(1, 2).contiguous(), None

    def close(self) -> None:
        """The model attends as it did before, unless something else was attached meanwhile."""
        ours = [(config, before) for config, before in self._replaced if config._attn_implementation == self.name]
        for config, before in ours:  # outer configs first: setting one sets those inside it
            config._attn_implementation = before
        self._replaced.clear()
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop(self.name, None)


class PagedAttention:
    """The attention function of one engine. A pass without a batch (fitting) is plain causal attention.

    kernel: computes attention over the blocks itself, and writes them; None: keys and values are written by the cache.
    observe: called with what each layer of a pass without a batch attends by.
    """

    def __init__(self, cache: PagedCache) -> None:
        self._cache = cache
        self.kernel: AttentionKernel | None = None
        self.observe: Observe | None = None
        self._batch: Batch | None = None
        self._groups: dict[torch.device, LengthGroups] = {}

    def write_and_attend(self, layer: int, query: Queries, key: Tensor, value: Tensor, *scores: Any) -> Queries:
        """Does the same for a compiled pass, whose graph knows no cache: keys and values are written first."""
        key, value = self._cache.update(key, value, layer)
        return self.attended(layer, query, key, value, Scores(*scores))

    def attended(self, layer: int, query: Queries, key: Tensor, value: Tensor, scores: Scores) -> Queries:
        """See AttentionFunction."""
        batch = self._cache.batch
        if batch is None:  # whole texts, padded on the right
            length, mask = query.shape[2], None
            if self.observe is not None:
                self.observe(layer, query, key, scores)
            if scores.softcap is not None or (scores.window is not None and length > scores.window):
                mask = visible(torch.arange(length, device=query.device)[None], length, scores.window)
            return masked(query, key, value, mask, scores)
        states: PagedLayer = self._cache.layers[layer]
        if self.kernel is not None:
            return self.kernel(query, key, value, (states.keys, states.values), batch, scores)
        if self._batch is not batch:
            self._batch, self._groups = batch, {}
        if (groups := self._groups.get(query.device)) is None:
            groups = self._groups[query.device] = LengthGroups(batch.segments, query.device)
        parts = []
        for group in groups.groups:
            keys, values = (group.tokens_of(key), group.tokens_of(value)) if group.fresh else group.past(states)
            mask = group.mask(scores.window, needed=scores.softcap is not None)
            parts.append(masked(group.tokens_of(query), keys, values, mask, scores))
        return groups.restored(parts)


def masked(query: Tensor, key: Tensor, value: Tensor, mask: Mask | None, scores: Scores) -> Tensor:
    """Computes attention under a mask: query (row, head, query, head_dim), key and value (row, kv_head, position, head_dim)
    -> as query. None: causal, from position 0 on."""
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
    attended = scaled_dot_product_attention(folded, key, value, attn_mask=folded_mask, scale=scores.scaling)
    return attended.reshape(*query.shape[:3], value.shape[-1])


def _folded(
    query: Queries, kv_heads: int, mask: Mask
) -> tuple[Float[Tensor, "row kv_head folded head_dim"], Bool[Tensor, "#row 1 mask_row position"]]:
    """The queries of heads that share a key, one after the other, and their mask: one row for each, or one for all."""
    rows, heads, length, head_dim = query.shape
    group = heads // kv_heads
    folded = query.reshape(rows, kv_heads, group * length, head_dim)
    return folded, mask if length == 1 else mask.repeat(1, 1, group, 1)


def grouped(query: Tensor, key: Tensor, value: Tensor, mask: Mask, scores: Scores) -> Tensor:
    """Does what `masked` does by two matmuls, scores and weights in float32."""
    attended = torch.matmul(weights_of(query, key, mask, scores).to(value.dtype), value)
    return attended.reshape(*query.shape[:3], value.shape[-1])


def weights_of(query: Tensor, key: Tensor, mask: Mask, scores: Scores) -> Float[Tensor, "row kv_head folded position"]:
    """Returns attention weights in float32. Heads that share a key are rows of one matmul, one after the other, so keys are not
    repeated."""
    folded, folded_mask = _folded(query, key.shape[1], mask)
    logits = torch.matmul(folded.float() * scores.scaling, key.transpose(-1, -2).float())
    if scores.softcap is not None:
        logits = torch.tanh(logits / scores.softcap) * scores.softcap
    logits = logits.masked_fill(~folded_mask, torch.finfo(logits.dtype).min)
    return torch.softmax(logits, dim=-1)


def worthwhile(query: Tensor) -> bool:
    """Whether `tiled` is faster than torch's fused attention."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16


def tiled(
    query: Float[Tensor, "segment head query head_dim"],
    key: Float[Tensor, "segment kv_head position head_dim"],
    value: Float[Tensor, "segment kv_head position value_dim"],
    mask: Bool[Tensor, "segment 1 query position"] | None,
    scaling: float,
) -> Float[Tensor, "segment head query value_dim"]:
    """Grouped-query attention, tile by tile of queries, two matmuls each; no scores for positions behind a tile's last query.

    mask: which positions each query sees, none behind its own (None: causal, from position 0 on). One segment alone ends at the
    last position.
    """
    segments, heads, length, head_dim = query.shape
    kv_heads, behind = key.shape[1], key.shape[2] - length
    key, value = key.contiguous(), value.contiguous()
    hidden = None if mask is None else ~mask
    parts = []
    for start in range(0, length, TILE):
        end = min(start + TILE, length)
        seen = behind + end if segments == 1 or mask is None else key.shape[2]
        asked = (query[:, :, start:end] * scaling).reshape(segments, kv_heads, -1, head_dim)
        scores = torch.matmul(asked, key[:, :, :seen].transpose(-1, -2))
        by_head = scores.view(segments, kv_heads, heads // kv_heads, end - start, seen)
        if hidden is None:  # all see what lies before the block
            edge = torch.ones(end - start, end - start, dtype=torch.bool, device=query.device).triu_(1)
            by_head[..., start:].masked_fill_(edge, float("-inf"))
        else:
            by_head.masked_fill_(hidden[:, :, None, start:end, :seen], float("-inf"))
        attended = torch.matmul(torch.softmax(scores, dim=-1), value[:, :, :seen])
        parts.append(attended.view(segments, heads, end - start, value.shape[-1]))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
