"""AttentionPatch: a function as the attention of a model, through transformers' attention interface."""

from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_numbers = count()


class AttentionPatch:
    """A model's attention modules dispatch to `function` until `close`; its name is its own."""

    def __init__(self, model: torch.nn.Module, function: Callable[..., Any]) -> None:
        self.name = f"slots-{next(_numbers)}"
        ALL_ATTENTION_FUNCTIONS.register(self.name, function)
        configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
        found = [config for config in configs.values() if hasattr(config, "_attn_implementation")]
        self._replaced = [(config, config._attn_implementation) for config in found]
        for config in found:
            config._attn_implementation = self.name

    def close(self) -> None:
        """The model attends as it did before, unless something else was attached meanwhile."""
        ours = [(config, before) for config, before in self._replaced if config._attn_implementation == self.name]
        for config, before in ours:  # outer configs first: setting one sets those inside it
            config._attn_implementation = before
        self._replaced.clear()
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop(self.name, None)
