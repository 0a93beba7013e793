"""Does a model leave its attention, plain and whole, to transformers' attention interface? Asked by one short pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from steering.shapes import Tensor

NAME = "steering-probe"
HARMLESS = frozenset({"position_ids", "cache_position"})
"""Tensors that blocks hand on without meaning anything by them; any other is a mask, bias or sink of their own."""


class AttentionProbe:
    """An attention implementation that notes how it is called and answers zeros. Registered under NAME, once."""

    def __init__(self) -> None:
        self.calls: list[bool] = []
        self.layers: list[int | None] = []

    def __call__(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *_: Any,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """query (row, head, seq, head_dim) -> zeros (row, seq, head, head_dim)."""
        own = [name for name, option in options.items() if torch.is_tensor(option) and name not in HARMLESS]
        same_width = query.shape[-1] == key.shape[-1] == value.shape[-1]
        same_length = query.shape[-2] == key.shape[-2] == value.shape[-2]
        self.calls.append(attention_mask is None and not own and same_width and same_length)
        self.layers.append(getattr(module, "layer_idx", None))
        return torch.zeros_like(query).transpose(1, 2), None


_probe = AttentionProbe()
AttentionInterface.register(NAME, _probe)


def uses_attention_interface(model: PreTrainedModel, token_ids: Tensor, layer_count: int) -> bool:
    """True when each block makes one call, in order, with queries, keys and values of one width and nothing beside them.

    Masks of windows and of padding are transformers' own affair and do not count: they are asked for by name.
    """
    _probe.calls, _probe.layers = [], []
    try:
        with _implementation(model), torch.no_grad():
            model(token_ids, use_cache=False)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError):
        return False  # a model that picks its attention by name elsewhere cannot find this one
    return _probe.layers == list(range(layer_count)) and all(_probe.calls)


@contextmanager
def _implementation(model: PreTrainedModel) -> Iterator[None]:
    """The probe as the attention of every part of the model, for the length of one pass."""
    parts: list[Any] = [getattr(part, "config", None) for part in model.modules()]
    configs = {id(config): config for config in parts}
    held = [
        (config, config._attn_implementation) for config in configs.values() if hasattr(config, "_attn_implementation")
    ]
    try:
        for config, _ in held:
            config._attn_implementation = NAME
        yield
    finally:
        for config, before in held:
            config._attn_implementation = before
