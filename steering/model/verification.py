"""Checks a layout by short forward passes, before anything is steered by it."""

import inspect
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from steering.errors import UnsupportedModel
from steering.model.hook_points import HEADS, HOOKS, BlockOutput, kind_of, point_of, residual_of
from steering.model.layout import Layout
from steering.shapes import Int, Tensor

PROBE = [[0, 1], [0, 2]]
"""Two rows that differ in their last token: a causal model computes the same residual for the first."""
PROBE_NAME = "steering-probe"
ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")
MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "ff", "fc2")
PROJECTION_NAMES = ("o_proj", "out_proj", "c_proj", "dense", "wo")
"""Names of modules in the blocks of transformers: of attention, of the MLP (or its last layer), and of attention's output projection."""
IGNORED = frozenset({"position_ids", "cache_position"})
"""Tensors that blocks pass on without using them; any other is a mask, bias or sink of the model's own."""


def verify_layout(model: PreTrainedModel, layout: Layout) -> Layout:
    """Returns the layout with its `attention` confirmed by a pass, and its hook points inside blocks. Raises UnsupportedModel unless
    each block runs once, in order, returns [row, seq, d_model], and is causal."""
    token_ids = torch.tensor(PROBE, device=next(layout.embedding.parameters()).device)
    recorded: list[tuple[int, Tensor]] = []

    def record(layer: int, _block: object, _arguments: object, output: BlockOutput) -> None:
        recorded.append((layer, residual_of(output)))

    with ExitStack() as hooks, torch.no_grad():
        for layer, block in enumerate(layout.blocks):
            hooks.enter_context(block.register_forward_hook(partial(record, layer)))
        try:
            model(token_ids, use_cache=False)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a model may need inputs besides token ids
            raise UnsupportedModel(
                f"{layout.architecture} cannot be steered: its forward pass fails ({error})"
            ) from error
    reason = _reason_against(recorded, layout)
    if reason:
        raise UnsupportedModel(f"{layout.architecture} cannot be steered: {reason}")
    if layout.attention == "interface" and not _uses_attention_interface(model, token_ids, layout.layer_count):
        layout = replace(layout, attention="own")
    return _with_hook_points(model, layout, token_ids)


def _reason_against(recorded: list[tuple[int, Tensor]], layout: Layout) -> str | None:
    if [layer for layer, _ in recorded] != list(range(layout.layer_count)):
        return "its blocks do not run once each, in order"
    wanted = (len(PROBE), len(PROBE[0]), layout.d_model)
    for layer, residual in recorded:
        if tuple(residual.shape) != wanted:
            return f"block {layer} returns {tuple(residual.shape)} where a residual stream would be {wanted}"
    first = recorded[-1][1][:, 0].float()
    # Rows of one batch may differ by rounding on some devices; a model that is not causal differs by far more.
    if not torch.allclose(first[0], first[1], rtol=1e-2, atol=1e-2 * float(first.abs().mean())):
        return "it is not causal: a later token changes the residual of an earlier position"
    return None


def _with_hook_points(model: PreTrainedModel, layout: Layout, token_ids: Int[Tensor, "row seq"]) -> Layout:
    """Returns the layout with hook points confirmed by a pass: each runs once, with [row, seq, width]."""
    layout = with_named_hook_points(model, layout)
    shapes: dict[int, list[tuple[int, ...]]] = {point: [] for point in layout.inner}

    def record(point: int, _module: object, arguments: tuple[Any, ...], output: BlockOutput) -> None:
        shapes[point].append(tuple((arguments[0] if kind_of(point) == HEADS else residual_of(output)).shape))

    with ExitStack() as hooks, torch.no_grad():
        for point, module in layout.inner.items():
            hooks.enter_context(module.register_forward_hook(partial(record, point)))
        model(token_ids, use_cache=False)

    def confirmed(kind: int) -> bool:
        at_kind = [seen for point, seen in shapes.items() if kind_of(point) == kind]
        width = layout.d_model if kind != HEADS else at_kind[0][0][-1] if at_kind[0] else 0
        wanted = (token_ids.numel(), width)
        fits = all(len(one) == 1 and (prod(one[0][:-1]), one[0][-1]) == wanted for one in at_kind)
        return fits and (kind != HEADS or width % layout.head_count == 0)

    return _with_kinds(layout, {kind for kind in set(map(kind_of, layout.inner)) if confirmed(kind)})


def with_named_hook_points(model: PreTrainedModel, layout: Layout) -> Layout:
    """Returns the layout with the hook points that every block has by the names of its modules."""
    inner = {
        point: one for layer, block in enumerate(layout.blocks) for point, one in hook_modules(layer, block).items()
    }
    heads = int(getattr(model.config.get_text_config(), "num_attention_heads", 0) or 0)
    counts = Counter(map(kind_of, inner))
    kinds = {kind for kind, count in counts.items() if count == layout.layer_count}
    if not heads or layout.attention != "interface":
        kinds.discard(HEADS)
    return _with_kinds(replace(layout, inner=inner, head_count=heads), kinds)


def _with_kinds(layout: Layout, kinds: Collection[int]) -> Layout:
    inner = {point: module for point, module in layout.inner.items() if kind_of(point) in kinds}
    return replace(layout, inner=inner, head_count=layout.head_count if HEADS in kinds else 0)


def hook_modules(layer: int, block: nn.Module) -> dict[int, nn.Module]:
    """Returns the modules of a block that are hook points by their names; of HEADS the projection that the heads enter."""
    attention = _child(block, ATTENTION_NAMES)
    projection = None if attention is None else _child(attention, PROJECTION_NAMES)
    parts = {HOOKS.index("attention"): attention, HOOKS.index("mlp"): _child(block, MLP_NAMES), HEADS: projection}
    return {
        point_of(layer, kind): part for kind, part in parts.items() if part is not None and not _adds_residual(part)
    }


def _child(module: nn.Module, names: Sequence[str]) -> nn.Module | None:
    """Returns the child that has one of the names, the first of them that is there."""
    return next((child for name in names if (child := dict(module.named_children()).get(name)) is not None), None)


def _adds_residual(module: nn.Module) -> bool:
    """Whether what a module returns contains the residual already, as in BLOOM and BERT."""
    inside = any(type(child).__name__.endswith("SelfOutput") for child in module.children())
    return inside or "residual" in inspect.signature(module.forward).parameters


def _uses_attention_interface(model: PreTrainedModel, token_ids: Int[Tensor, "row seq"], layer_count: int) -> bool:
    """Returns whether each block calls transformers' attention interface once, in order, with queries, keys and values
    of one width, its configured window and no more tensors, since masks of ours take the place of transformers'."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layer_count
    layers: list[int | None] = []
    plain: list[bool] = []

    def probe(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *_: Any, **options: Any
    ) -> tuple[Tensor, None]:
        """query (row, head, seq, head_dim) -> zeros (row, seq, head, head_dim)."""
        own = any(torch.is_tensor(option) and name not in IGNORED for name, option in options.items())
        same_size = query.shape[-2:] == key.shape[-2:] == value.shape[-2:]
        layer = getattr(module, "layer_idx", None)
        slides = layer is not None and layer < len(kinds) and kinds[layer] == "sliding_attention"
        windowed = options.get("sliding_window") == (window if slides else None)
        plain.append(attention_mask is None and not own and same_size and windowed)
        layers.append(layer)
        return torch.zeros_like(query).transpose(1, 2), None

    AttentionInterface.register(PROBE_NAME, probe)
    configs = {id(config): config for part in model.modules() if (config := getattr(part, "config", None))}
    selected = [config for config in configs.values() if hasattr(config, "_attn_implementation")]
    previous = [config._attn_implementation for config in selected]
    try:
        for config in selected:
            config._attn_implementation = PROBE_NAME
        with torch.no_grad():
            model(token_ids, use_cache=False)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError):
        return False  # the model selects its attention by name elsewhere, and does not know this one
    finally:
        for config, name in zip(selected, previous, strict=True):
            config._attn_implementation = name
    return layers == list(range(layer_count)) and all(plain)
