"""A forward pass as a function of tensors, so that it can be exported and compiled ahead of time, once for all batches.

What differs between passes is an input, or happens in Python callbacks: what is decided or read between layers, and
attention without a kernel.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from enum import IntFlag
from functools import lru_cache, partial
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from steering.engine.cpu.kernels import blocks as quantized
from steering.engine.cpu.kernels.operations import (
    define,
    pack_weight,
    packed_linear,
    packed_shape,
    pad_bias,
    paged_attention,
    steer,
)
from steering.engine.transformers.attention import AttentionPatch, Queries, Scores
from steering.engine.transformers.block_pool import BLOCK
from steering.engine.transformers.executor import is_packable
from steering.engine.transformers.paged_cache import LayerShape
from steering.model.blocks import INPUTS, INT8, Weights, int8_blocks, read_blocks
from steering.model.device import needs_kernels, page_out, takes_kernels
from steering.model.hook_points import KINDS
from steering.model.hooks import ResidualHooks
from steering.model.layout import Layout
from steering.shapes import Float, Int, Logits, Residual, Tensor

HEAD_WIDTH_STEP = 32
"""Kernels read heads a register at a time, so their width is a multiple of this many bfloat16 values."""
ALIGNMENT = 64  # bytes of a cache line
FREE: Any = torch.export.Dim.AUTO  # a size that differs between passes: one graph serves every batch
ReadResidual: TypeAlias = Callable[[int, Residual], None]
"""(layer, residual (token, d_model) in the model's dtype or float32): reads it, and does not change it."""
SteeringInputs: TypeAlias = tuple[Tensor, ...]  # the arguments of `kernels.operations.steer` from `vectors` to `tasks`
_pass = threading.local()


class CallbackScope:
    """Sets the callbacks of the compiled pass that runs on this thread inside the `with` statement.

    attend: (layer, query, key, value, scaling, window, softcap), states (row, head, token, head_dim) -> as query.
    """

    def __init__(self, decide: ReadResidual, read: ReadResidual, attend: Callable[..., Tensor] | None = None) -> None:
        self._callbacks = decide, read, attend

    def __enter__(self) -> None:
        _pass.decide, _pass.read, _pass.attend = self._callbacks

    def __exit__(self, *_: object) -> None:
        _pass.decide = _pass.read = _pass.attend = None


def _residual_callback(residual: Tensor, layer: int, read: bool) -> None:
    """read: whether the residual has left the layer, and does not arrive there."""
    (_pass.read if read else _pass.decide)(layer, residual)


def _attention_callback(query: Tensor, key: Tensor, value: Tensor, layer: int, *scores: Any) -> Tensor:
    """query (row, head, token, head_dim) -> (row, token, head, head_dim), contiguous like the traced shape."""
    attended: Tensor = _pass.attend(layer, query, key, value, *scores)
    return attended.transpose(1, 2).contiguous()


def _attention_shape(query: Tensor, _key: Tensor, value: Tensor, *_: object) -> Tensor:
    row, head, token, _head_dim = query.shape
    return query.new_empty(row, token, head, value.shape[-1])


define("residual_callback(Tensor residual, int layer, bool read) -> ()", lambda *_: None, _residual_callback)
attention_callback: Callable[..., Tensor] = define(
    "attention_callback(Tensor query, Tensor key, Tensor value, int layer, float scaling, int? window, float? softcap) "
    "-> Tensor",
    _attention_shape,
    _attention_callback,
)


class Task(IntFlag):
    """What `steer` does after a block, in this order."""

    DECIDE = 1  # calls the callback of conditions, which set the weights of edits
    EDIT = 2  # applies the edits of each token's request
    READ = 4  # calls the callback of what reads the result: controllers and readouts


@lru_cache(maxsize=256)
def tasks(
    layer_count: int, decide: frozenset[int], edited: tuple[int, ...], read: frozenset[int], note: int
) -> Int[Tensor, "layer 2"]:
    """Returns the tasks of every layer. note: where the doses of the first edited layer are noted; the others follow. Cached,
    since consecutive passes rarely differ; nothing writes to it."""
    notes = {layer: note + number for number, layer in enumerate(edited)}
    table = []
    for layer in range(layer_count):
        task = Task.DECIDE * (layer in decide) | Task.EDIT * (layer in notes) | Task.READ * (layer in read)
        table.append([task, notes.get(layer, 0)])
    return torch.tensor(table)


class PanelLayout:
    """Where the packed weight of a layer lies in memory: panels with its blocks, its weights in bfloat16, or both.

    form: of the blocks; None: there are none.
    """

    def __init__(self, form: str | None, outputs: int, inputs: int, *, dense: bool) -> None:
        self._dense = packed_shape(outputs, inputs)
        self.panels = self._dense[0]
        self._blocks = None if form is None else quantized.packed_shape(form, outputs, inputs)
        self.block_bytes = 0 if self._blocks is None else prod(self._blocks[1:])
        self.dense_bytes = 2 * prod(self._dense[1:]) if dense else 0
        self.size = self.panels * (self.block_bytes + self.dense_bytes)

    def views(self, memory: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the weight as the kernel takes it, (panel, block, byte) or (panel, pair, column of the panel, 2), and its part in
        bfloat16, if there is one. memory: at least `size` bytes."""
        panels = memory[: self.size].view(self.panels, -1)
        blocks, dense = torch.split(panels, [self.block_bytes, self.dense_bytes], 1)
        halves = torch.unflatten(dense.view(torch.bfloat16), 1, self._dense[1:]) if self.dense_bytes else None
        if self._blocks is not None:
            return torch.unflatten(blocks, 1, self._blocks[1:]), halves
        assert halves is not None
        return halves, halves


class PackedLinears:
    """The linear layers of a model that `is_packable` names. While attached they multiply by `weights`, in eager passes and compiled
    graphs alike.

    The model keeps its own weights for gradients, which `packed_linear` does not compute.

    weights: `gguf` packs the blocks in the folder of the model, for layers that have some; `auto` also the same weights in bfloat16,
    which calls of many rows read; `int8` rounds to blocks; `dtype` packs bfloat16 alone.
    formats: of the blocks of each layer; None: it has none.
    """

    def __init__(self, model: nn.Module, weights: Weights = "dtype", folder: Path | None = None) -> None:
        layers = {name: module for name, module in model.named_modules() if is_packable(module)}
        stored = read_blocks(folder) if weights in {"auto", "gguf"} and folder is not None else {}
        embedding = getattr(model, "get_input_embeddings", lambda: None)()
        self._embedding = getattr(embedding, "weight", None)
        self._layers, self._blocks = list(layers.values()), [stored.get(name) for name in layers]
        self.formats = [None if blocks is None else blocks.format for blocks in self._blocks]
        if weights == "int8":
            self.formats = [INT8 if layer.in_features % INPUTS[INT8] == 0 else None for layer in self._layers]
        self._layouts = [
            PanelLayout(form, layer.out_features, layer.in_features, dense=form is None or weights == "auto")
            for layer, form in zip(self._layers, self.formats, strict=True)
        ]
        widest = max((layer.out_features for layer in self._layers), default=0)
        zeros = pad_bias(torch.zeros(widest))
        self._biases = [zeros if layer.bias is None else pad_bias(layer.bias.detach()) for layer in self._layers]
        self.weights: list[Tensor] = []

    @classmethod
    def of(
        cls, model: nn.Module, *, kernels: bool, weights: Weights = "dtype", folder: Path | None = None
    ) -> "PackedLinears | None":
        """The linear layers of a model if they use our kernel: in bfloat16. kernels: whether passes use our kernels."""
        weight = next(model.parameters())
        used = kernels and takes_kernels(weight.dtype, weight.device)
        return cls(model, weights, folder) if used else None

    @property
    def widths(self) -> list[int]:
        """How many inputs each layer has."""
        return [layer.in_features for layer in self._layers]

    def covers(self, model: nn.Module) -> bool:
        """Whether every matrix of the model but embeddings is multiplied by our kernel."""
        ours = {id(layer.weight) for layer in self._layers}
        embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        return all(id(one) in ours | embeddings for one in model.parameters() if one.dim() > 1)

    def pack(self) -> list[Tensor]:
        """Packs every weight in one allocation, which can have huge pages."""
        sizes = [-(-layout.size // ALIGNMENT) * ALIGNMENT for layout in self._layouts]
        pieces = torch.split(torch.empty(sum(sizes), dtype=torch.uint8), sizes)
        packed = [layout.views(piece) for layout, piece in zip(self._layouts, pieces, strict=True)]
        for (weight, dense), layer, blocks in zip(packed, self._layers, self._blocks, strict=True):
            if dense is not None:
                dense.copy_(pack_weight(layer.weight.detach()))
            if weight is not dense:
                quantized.pack_blocks(blocks or int8_blocks(layer.weight.detach()), weight)
                if blocks is not None:
                    page_out(blocks.rows)
        return [weight for weight, _ in packed]

    def placeholders(self) -> list[Tensor]:
        """Returns tensors with the shapes of the packed weights, for tracing."""
        return [layout.views(torch.empty(layout.size, dtype=torch.uint8))[0] for layout in self._layouts]

    def bytes_by_format(self) -> dict[str, int]:
        """Returns the bytes of the packed weights by their format."""
        sizes: dict[str, int] = {}
        for form, layout in zip(self.formats, self._layouts, strict=True):
            for name, size in ((form, layout.block_bytes), ("bfloat16", layout.dense_bytes)):
                if name is not None and size:
                    sizes[name] = sizes.get(name, 0) + layout.panels * size
        return sizes

    def attach(self, weights: list[Tensor]) -> None:
        """Makes the layers multiply by packed weights. The memory of their own, mapped from the files, may be used otherwise until a
        gradient reads them again."""
        self.weights = weights
        for layer in self._layers:
            if layer.weight is not self._embedding:
                page_out(layer.weight)
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
            return _linear_with_gradient(rows, layer)
        weight, next_weight = self.weights[index], self.weights[(index + 1) % len(self.weights)]
        return packed_linear(rows, [weight], [self._biases[index]], [layer.out_features], [next_weight])


def _linear_with_gradient(rows: Tensor, layer: nn.Linear) -> Tensor:
    """Multiplies by the layer's own weights, in float32 where torch is slow in bfloat16: with few rows and small layers slower,
    otherwise many times faster."""
    if not needs_kernels(rows.dtype, rows.device):
        return nn.functional.linear(rows, layer.weight, layer.bias)
    widened: Tensor = _WidenedLinear.apply(rows, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return widened


class _WidenedLinear(torch.autograd.Function):
    """A linear layer in float32 that keeps its bfloat16 weight for the gradient, by reference: autograd would keep the float32 copy.
    The gradient is that of the rows; the weights of a model are frozen."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return nn.functional.linear(rows.float(), weight.float(), None if bias is None else bias.float()).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,), (weight,) = gradients, ctx.saved_tensors
        return (gradient.float() @ weight.float()).to(gradient.dtype), None, None


def uses_attention_kernel(shapes: Sequence[LayerShape], *, kernels: bool) -> bool:
    """Whether passes use `paged_attention`, whose cache has a layout of its own: in bfloat16, where every layer has as many
    values as keys, of one supported width."""
    return kernels and all(
        takes_kernels(shape.dtype, shape.device)
        and (shape.key_heads, shape.key_width) == (shape.value_heads, shape.value_width)
        and shape.key_width % HEAD_WIDTH_STEP == 0
        for shape in shapes
    )


class PassGraph(nn.Module):
    """The model under its hooks, steered by `steer` after every block, over the tokens of many requests in one row.

    Attention is computed by our kernel, which writes the cached keys and values in place, or by a callback.

    shapes: what the cache keeps in each layer.
    linears: read packed weights, which are inputs of the graph; None: weights are constants of the graph.
    """

    def __init__(
        self, model: Any, layout: Layout, shapes: Sequence[LayerShape], linears: PackedLinears | None, *, kernels: bool
    ) -> None:
        super().__init__()
        self.model = model
        self._layout, self._shapes, self._linears = layout, shapes, linears
        self.kernels = kernels and takes_kernels(shapes[0].dtype, shapes[0].device)
        self.packed = linears is not None
        self._attention_kernel = uses_attention_kernel(shapes, kernels=kernels)
        self._hooks = ResidualHooks(layout)

    def close(self) -> None:
        """Leaves the model as it was."""
        self._hooks.remove()

    def forward(
        self,
        token_ids: Int[Tensor, "token"],
        positions: Int[Tensor, "token"],
        keep: Int[Tensor, "kept"],
        sequences: tuple[Int[Tensor, "segment 3"], Int[Tensor, "segment block"]],
        steering: SteeringInputs,
        keys: list[Float[Tensor, "kv_head slot head_dim"]],
        values: list[Float[Tensor, "kv_head slot head_dim"]],
        weights: list[Tensor],
    ) -> tuple[Float[Tensor, "kept vocab"]]:
        """Returns the logits of the tokens in `keep`. sequences: segments and block tables of `paged_attention`. keys, values: of
        each layer."""

        def attended(layer: int, query: Queries, key: Tensor, value: Tensor, scores: Scores) -> Queries:
            if not self._attention_kernel:
                return attention_callback(query, key, value, layer, *scores).transpose(1, 2)
            states = keys[layer], values[layer]
            return paged_attention(query, key, value, *states, *sequences, *scores).transpose(1, 2)

        if self._linears is not None:
            self._linears.weights = weights
        steered = self._hooks.step(lambda layer, residual: steer([residual], *steering, layer))
        with closing(AttentionPatch(self.model, attended)), steered:
            output = self.model(
                input_ids=token_ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=keep
            )
        logits: Logits = output.logits
        return (logits[0],)

    def example(self) -> tuple[Any, ...]:
        """Returns arguments to trace with. No two free sizes are equal, or the tracer would unify them."""
        ids = torch.arange(1, 8)
        segments, blocks = torch.tensor([[0, 4, 3], [4, 3, 0]]), torch.tensor([[3, 1, 2, 4], [5, 6, 7, 8]])
        slots = 11 * BLOCK
        keys = [torch.zeros(shape.key_heads, slots, shape.key_width, dtype=shape.dtype) for shape in self._shapes]
        values = [torch.zeros(shape.value_heads, slots, shape.value_width, dtype=shape.dtype) for shape in self._shapes]
        weights = [] if self._linears is None else self._linears.weights
        steering = tuple(torch.zeros(size, dtype=dtype) for size, dtype, _ in self._steering(len(ids)))
        return ids, ids + 3, torch.tensor([2, 3, 6]), (segments, blocks), steering, keys, values, weights

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """Returns the free sizes: everything but the model's own."""
        states = [{1: FREE}] * len(self._shapes)
        weights: list[dict[int, Any]] = [] if self._linears is None else [{} for _ in self._linears.weights]
        steering = tuple(dict.fromkeys(free, FREE) for _, _, free in self._steering(1))
        return {0: FREE}, {0: FREE}, {0: FREE}, ({0: FREE}, {0: FREE, 1: FREE}), steering, states, states, weights

    def _steering(self, tokens: int) -> list[tuple[tuple[int, ...], torch.dtype, tuple[int, ...]]]:
        """The size of an example, the type and the free dimensions of each of SteeringInputs."""
        number, whole, layers = torch.float32, torch.int64, self._layout.layer_count
        return [
            ((17, self._layout.d_model), number, (0,)),  # vectors
            ((17, 3), number, (0,)),  # numbers
            ((17, 5), whole, (0,)),  # codes
            ((13, KINDS * layers, 5), whole, (0, 2)),  # rows
            ((tokens,), whole, (0,)),  # slots
            ((tokens, 6), number, (0, 1)),  # weights
            ((tokens,), number, (0,)),  # left
            ((14, tokens, 8), number, (0, 1, 2)),  # edits
            ((14, tokens), number, (0, 1)),  # changes
            ((14, tokens), number, (0, 1)),  # scaled
            ((layers, 2), whole, ()),  # tasks
        ]
