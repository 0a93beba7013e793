"""Fixes the rotary frequencies of models that would choose them anew in every pass."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def freeze_rope(model: nn.Module, context_length: int) -> None:
    """Makes the frequencies of `longrope` and `dynamic` RoPE constant.

    transformers chooses them by the longest position of a pass, so one long request would change the queries of every
    other request in its batch, against keys that were cached with the other set. As in vLLM, longrope takes its long
    set if the served context exceeds the original one. Dynamic RoPE keeps its first set, which is right up to
    max_position_embeddings, and the served context is never longer.
    """
    modules: Iterator[Any] = model.modules()
    for module in modules:
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, str):
            if _freeze(module, kinds, None, context_length):
                module.rope_type = "default"
        elif isinstance(kinds, dict):  # Gemma 3 and others: one set for each type of layer
            for layer_type, kind in list(kinds.items()):
                if _freeze(module, kind, layer_type, context_length):
                    kinds[layer_type] = "default"


def _freeze(module: Any, kind: str, layer_type: str | None, context_length: int) -> bool:
    """Installs the frequencies of one set. Returns False for a kind whose frequencies never change."""
    if kind != "longrope":
        return "dynamic" in kind
    parameters = module.config.rope_parameters
    original = int((parameters if layer_type is None else parameters[layer_type])["original_max_position_embeddings"])
    if context_length > original:
        name = "inv_freq" if layer_type is None else f"{layer_type}_inv_freq"
        buffer = getattr(module, name)
        options = {} if layer_type is None else {"layer_type": layer_type}
        frequencies, _ = ROPE_INIT_FUNCTIONS[kind](module.config, buffer.device, seq_len=original + 1, **options)
        with torch.no_grad():
            buffer.copy_(frequencies)
    return True
