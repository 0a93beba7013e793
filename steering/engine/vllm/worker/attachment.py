"""Attaches steering to a model of vLLM: one opaque operation behind each decoder layer.

The operation is registered with torch, so that a compiled graph calls it and its body stays Python: what acts in a pass
differs from pass to pass. A layer where nothing acts costs the call alone. CUDA graphs do not run Python when they are
replayed; on a GPU the operation is therefore one of those at which vLLM splits its graphs (`SPLITTING_OP`).
"""

from typing import Any

import torch
from torch import nn

from steering.engine.vllm.worker.state import WorkerSteering
from steering.errors import UnsupportedModel
from steering.shapes import Tensor

SPLITTING_OP = "steering::act"


class _Attached:
    """The steering of this worker process; vLLM has one model in each."""

    steering: WorkerSteering | None = None


@torch.library.custom_op(SPLITTING_OP, mutates_args=("hidden",))
def act(hidden: torch.Tensor, residual: torch.Tensor | None, layer: int) -> None:
    """Steers the stream hidden (+ residual) behind a layer by changing `hidden` in place."""
    if _Attached.steering is not None:
        _Attached.steering.act(layer, hidden, residual)


@act.register_fake
def _(hidden: torch.Tensor, residual: torch.Tensor | None, layer: int) -> None:
    """Has no result to describe."""


def decoder_layers(model: nn.Module, layer_count: int) -> dict[int, nn.Module]:
    """Returns the decoder layers of this pipeline stage by their index in the whole model.

    vLLM keeps a list of all layers in every stage, with placeholders for those of the others. Raises UnsupportedModel.
    """
    lists = [one for one in model.modules() if isinstance(one, nn.ModuleList) and len(one) == layer_count]
    if len(lists) != 1:
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be steered: {len(lists)} lists of {layer_count} layers were found in it"
        )
    return {index: layer for index, layer in enumerate(lists[0]) if type(layer).__name__ != "PPMissingLayer"}


def attach(model: nn.Module, steering: WorkerSteering, layers: dict[int, nn.Module]) -> None:
    """Registers the hooks. To be called after the weights are loaded and before the model is compiled: hooks that are
    registered later are ignored by a compiled model."""
    _Attached.steering = steering
    for index, layer in layers.items():
        layer.register_forward_hook(_hook(index, type(model).__name__, steering.d_model))


def _hook(index: int, model: str, d_model: int) -> Any:
    def hook(_layer: nn.Module, _arguments: Any, output: Any) -> None:
        hidden, residual = output if isinstance(output, tuple) and len(output) == 2 else (output, None)
        _check(hidden, model, d_model)
        if residual is not None:
            _check(residual, model, d_model)
        torch.ops.steering.act(hidden, residual, index)

    return hook


def _check(stream: Any, model: str, d_model: int) -> None:
    """vLLM's layers return the stream, or a pair whose sum it is (as its own EAGLE-3 interface reads it)."""
    if not isinstance(stream, Tensor) or stream.dim() != 2 or stream.shape[1] != d_model:
        raise UnsupportedModel(f"{model} cannot be steered: a layer returns something else than one residual stream")
