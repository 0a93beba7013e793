"""Finds the decoder blocks of an architecture by its structure, and checks them by short passes."""

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from steering.errors import UnsupportedModel
from steering.shapes import Float, Int, Tensor

BlockOutput: TypeAlias = Tensor | tuple[Any, ...]
"""What a decoder block returns: the residual [row, seq, d_model] itself, or a tuple that starts with it."""
ATTENTION_KINDS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Layer types whose state is keys and values of each token, which a key-value cache can store."""
PROBE = [[0, 1], [0, 2]]
"""Two rows that differ in their last token: a causal model computes the same residual for the first."""
PROBE_NAME = "steering-probe"
IGNORED = frozenset({"position_ids", "cache_position"})
"""Tensors that blocks pass on without using them; any other is a mask, bias or sink of the model's own."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The parts of a decoder-only model that steering reads and writes.

    blocks: the decoder blocks in order.
    attention: "interface" when every block calls transformers' attention interface with plain queries, keys and values.
    cache_argument: the name of forward's key-value cache.
    """

    architecture: str
    blocks: nn.ModuleList
    embedding: nn.Module
    d_model: int
    layer_count: int
    vocab_size: int
    attention: Literal["interface", "own"]
    cache_argument: Literal["cache", "past_key_values"]


def residual_of(output: BlockOutput) -> Float[Tensor, "row seq d_model"]:
    """Returns the residual in a block's output, in either of its two forms."""
    return output[0] if isinstance(output, tuple) else output


def with_residual(output: BlockOutput, residual: Float[Tensor, "row seq d_model"]) -> BlockOutput:
    """Returns the output with another residual and all else unchanged."""
    return (residual, *output[1:]) if isinstance(output, tuple) else residual


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
    if getattr(model, "_is_stateful", False):
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


def verify_layout(model: PreTrainedModel, layout: Layout) -> Layout:
    """Returns the layout with its `attention` confirmed by a pass. Raises UnsupportedModel unless each block runs once,
    in order, returns [row, seq, d_model], and is causal."""
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
        return replace(layout, attention="own")
    return layout


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


def _uses_attention_interface(model: PreTrainedModel, token_ids: Int[Tensor, "row seq"], layer_count: int) -> bool:
    """Returns whether each block makes one call of transformers' attention interface, in order, with queries, keys and
    values of one width, the window that the configuration gives its layer, and no further tensors; a window that only
    transformers' masks contain would be lost, since masks of ours take their place."""
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
