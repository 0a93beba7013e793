"""PackedLinears: a model's linear layers run from weights packed for the processor, in eager passes and compiled graphs alike."""

from functools import partial

import torch
from torch import nn

from steering.engine.transformers.execution.kernels.huge_pages import side_by_side
from steering.engine.transformers.execution.kernels.operations import PANEL, linears, packed, padded
from steering.shapes import Tensor


class PackedLinears:
    """The linear layers of one model that our kernel takes, in its order. `weights` is what they multiply by while attached.

    The model keeps its own weights: fitting goes backwards through them, which packed ones do not know.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [module for module in model.modules() if type(module) is nn.Linear and _packs(module)]
        widest = max((layer.out_features for layer in self._layers), default=0)
        without = padded(torch.zeros(widest))
        self._biases = [without if layer.bias is None else padded(layer.bias.detach()) for layer in self._layers]
        self.weights: list[Tensor] = []

    def packed(self) -> list[Tensor]:
        """Every weight, packed: as much memory again as the model's own."""
        weights = side_by_side(self._shapes(), torch.bfloat16)
        for layer, weight in zip(self._layers, weights, strict=True):
            weight.copy_(packed(layer.weight.detach()))
        return weights

    def placeholders(self) -> list[Tensor]:
        """Tensors of the packed weights' shapes, for tracing."""
        return [layer.weight.new_empty(shape) for layer, shape in zip(self._layers, self._shapes(), strict=True)]

    def _shapes(self) -> list[tuple[int, ...]]:
        return [(-(-layer.out_features // PANEL), layer.in_features // 2, PANEL, 2) for layer in self._layers]

    def attach(self) -> None:
        """From here on the layers multiply by `weights`."""
        for index, layer in enumerate(self._layers):
            layer.forward = partial(self._forward, index)  # type: ignore[method-assign]

    def close(self) -> None:
        """The layers multiply by their own weights again."""
        for layer in self._layers:
            layer.__dict__.pop("forward", None)
        self.weights = []

    def _forward(self, index: int, rows: Tensor) -> Tensor:
        layer = self._layers[index]
        if rows.requires_grad and torch.is_grad_enabled():
            return nn.functional.linear(rows, layer.weight, layer.bias)
        weight, following = self.weights[index], self.weights[(index + 1) % len(self.weights)]
        return linears(rows, [weight], [self._biases[index]], [layer.out_features], [following])


def _packs(layer: nn.Linear) -> bool:
    """Whether the kernel takes it: bfloat16, inputs in pairs, and nobody else stands in for its forward."""
    return layer.weight.dtype == torch.bfloat16 and layer.in_features % 2 == 0 and "forward" not in layer.__dict__
