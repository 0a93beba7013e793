"""PackedLinears: runs a model's linear layers from packed weights, in eager passes and compiled graphs alike."""

from functools import partial
from math import prod

import torch
from torch import nn

from steering.engine.cpu.kernels.operations import PANEL, pack_weight, packed_linear, pad_bias
from steering.engine.cpu.kernels.processor import supports_packed_linear
from steering.shapes import Tensor


class PackedLinears:
    """The linear layers of a model that `packed_linear` supports. While attached they multiply by `weights`.

    The model keeps its own weights for gradients, which `packed_linear` does not compute.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [module for module in model.modules() if type(module) is nn.Linear and _supported(module)]
        widest = max((layer.out_features for layer in self._layers), default=0)
        zeros = pad_bias(torch.zeros(widest))
        self._biases = [zeros if layer.bias is None else pad_bias(layer.bias.detach()) for layer in self._layers]
        self.weights: list[Tensor] = []

    @classmethod
    def of(cls, model: nn.Module, *, kernels: bool) -> "PackedLinears | None":
        """The linear layers of a model if they use our kernel. kernels: whether passes use our kernels at all."""
        weight = next(model.parameters())
        return cls(model) if kernels and supports_packed_linear(weight.dtype, weight.device) else None

    def pack(self) -> list[Tensor]:
        """Packs every weight: as much memory again as the model's own, in one allocation, which can have huge pages."""
        shapes = self._shapes()
        sizes = [prod(shape) for shape in shapes]
        pieces = torch.split(torch.empty(sum(sizes), dtype=torch.bfloat16), sizes)
        packed = [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
        for view, layer in zip(packed, self._layers, strict=True):
            view.copy_(pack_weight(layer.weight.detach()))
        return packed

    def placeholders(self) -> list[Tensor]:
        """Returns tensors with the shapes of the packed weights, for tracing."""
        return [layer.weight.new_empty(shape) for layer, shape in zip(self._layers, self._shapes(), strict=True)]

    def _shapes(self) -> list[tuple[int, int, int, int]]:
        """(panel, pair, column of the panel, 2) of each packed weight."""
        return [(-(-layer.out_features // PANEL), layer.in_features // 2, PANEL, 2) for layer in self._layers]

    def attach(self, weights: list[Tensor]) -> None:
        """Makes the layers multiply by packed weights."""
        self.weights = weights
        for index, layer in enumerate(self._layers):
            layer.forward = partial(self._forward, index)  # type: ignore[method-assign]

    def close(self) -> None:
        """Makes the layers multiply by their own weights again."""
        for layer in self._layers:
            layer.__dict__.pop("forward", None)
        self.weights = []

    def _forward(self, index: int, rows: Tensor) -> Tensor:
        layer = self._layers[index]
        if rows.requires_grad and torch.is_grad_enabled():
            return nn.functional.linear(rows, layer.weight, layer.bias)
        weight, next_weight = self.weights[index], self.weights[(index + 1) % len(self.weights)]
        return packed_linear(rows, [weight], [self._biases[index]], [layer.out_features], [next_weight])


def _supported(layer: nn.Linear) -> bool:
    """Whether the kernel supports a layer: bfloat16, an even width, and a forward that nothing else has replaced."""
    return layer.weight.dtype == torch.bfloat16 and layer.in_features % 2 == 0 and "forward" not in layer.__dict__
