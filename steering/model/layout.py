"""Finds the decoder blocks of an architecture by its structure."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from steering.errors import UnsupportedModel
from steering.model.hook_points import HOOKS, kind_of
from steering.spec import Hook

ATTENTION_KINDS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Layer types whose state is keys and values of each token, which a key-value cache can store."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The parts of a decoder-only model that steering reads and writes.

    blocks: the decoder blocks in order.
    attention: "interface" when every block calls transformers' attention interface with plain queries, keys and values; "own" when
        blocks compute attention themselves, or add chunks, sinks or windows that only their masks contain.
    cache_argument: the name of forward's key-value cache.
    inner: the modules of hook points inside blocks, by point; of HEADS the projection that the heads enter. Those of every block, or of
        none (`steering/model/verification.py` finds them).
    head_count: of the heads that can be read and ablated; 0 where none can.
    """

    architecture: str
    blocks: nn.ModuleList
    embedding: nn.Module
    d_model: int
    layer_count: int
    vocab_size: int
    attention: Literal["interface", "own"]
    cache_argument: Literal["cache", "past_key_values"]
    inner: Mapping[int, nn.Module] = field(default_factory=dict)
    head_count: int = 0

    @property
    def hooks(self) -> tuple[Hook, ...]:
        """The hook points of the blocks."""
        kinds = {kind_of(point) for point in self.inner} | {0}
        return tuple(hook for kind, hook in enumerate(HOOKS) if kind in kinds)

    @property
    def device(self) -> torch.device:
        """Where the tokens of a pass go in and its logits come out: the device of the embedding."""
        return next(self.embedding.parameters()).device

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The device of each block."""
        return tuple(next(block.parameters()).device for block in self.blocks)


def find_layout(model: PreTrainedModel) -> Layout:
    """Finds the layout. Raises UnsupportedModel with the architecture and the reason for other models."""
    config = model.config.get_text_config()
    _refuse_other_kinds(model, getattr(config, "layer_types", None) or ())
    blocks = _find_blocks(model, config.num_hidden_layers)
    embedding, unembedding = model.get_input_embeddings(), model.get_output_embeddings()
    if unembedding is None:
        raise _unsupported(model, "it has no language-model head to generate with")
    d_model = int(config.hidden_size)
    width = getattr(unembedding, "in_features", d_model)
    if width != d_model:
        raise _unsupported(model, f"its head reads {width} numbers, but its residual stream is {d_model} wide")
    return Layout(
        architecture=type(model).__name__,
        blocks=blocks,
        embedding=embedding,
        d_model=d_model,
        layer_count=len(blocks),
        vocab_size=int(unembedding.weight.shape[0]),
        attention=_attention_of(model, blocks),
        cache_argument=_cache_argument_of(model),
    )


def _unsupported(model: PreTrainedModel, reason: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{type(model).__name__} (model type {model.config.model_type!r}) cannot be steered: {reason}. "
        "Decoder-only transformers with attention in every block can."
    )


def _refuse_other_kinds(model: PreTrainedModel, layer_types: Sequence[str]) -> None:
    others = sorted(set(layer_types) - ATTENTION_KINDS)
    if model.config.is_encoder_decoder:
        raise _unsupported(model, "it is an encoder-decoder model")
    if getattr(model, "_is_stateful", False):  # transformers before 5.25; later versions name the kind of each layer
        raise _unsupported(
            model, "it keeps a recurrent state (state-space or hybrid) instead of keys and values per token"
        )
    if others:
        raise _unsupported(
            model, f"some of its layers are {', '.join(others)}, which keep no keys and values per token"
        )
    if "input_ids" not in inspect.signature(model.forward).parameters:
        raise _unsupported(model, "it does not take token ids")


def _find_blocks(model: PreTrainedModel, count: int) -> nn.ModuleList:
    """Finds the list of `count` modules of the class that must not be split over devices: the decoder block."""
    block_names = set(getattr(model, "_no_split_modules", None) or ())
    found = []
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            names = {type(block).__name__ for block in module}
            if names <= block_names or (not block_names and len(names) == 1):
                found.append(module)
    if not found:
        raise _unsupported(model, f"no list of {count} decoder blocks was found in it")
    if len(found) > 1:  # one may be of a part that reads images
        decoder = set(model.get_decoder().modules())
        found = [blocks for blocks in found if blocks in decoder] or found
    if len(found) > 1:
        raise _unsupported(model, f"{len(found)} lists of {count} blocks were found in it, and one must be the decoder")
    return found[0]


def _attention_of(model: PreTrainedModel, blocks: nn.ModuleList) -> Literal["interface", "own"]:
    config = model.config.get_text_config()
    chunked = "chunked_attention" in (getattr(config, "layer_types", None) or ()) or bool(
        getattr(config, "attention_chunk_size", None)
    )
    sinks = any(name.rpartition(".")[2] in {"sinks", "sink"} for name, _ in blocks.named_parameters())
    supported = bool(getattr(model, "_supports_attention_backend", False))
    return "interface" if supported and not chunked and not sinks else "own"


def _cache_argument_of(model: PreTrainedModel) -> Literal["cache", "past_key_values"]:
    """transformers 5.24 calls the argument `cache`; earlier versions know only the older name."""
    for forward in (model.forward, model.base_model.forward):
        names = inspect.signature(forward).parameters
        if "cache" in names:
            return "cache"
        if "past_key_values" in names:
            return "past_key_values"
    raise _unsupported(model, "its forward takes no key-value cache")
