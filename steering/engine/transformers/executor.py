"""PassExecutor: runs prepared forward passes of one engine."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import nn

from steering.engine.transformers.attention import AttentionPatch, PagedAttention
from steering.engine.transformers.paged_cache import PagedCache
from steering.engine.transformers.request import Batch
from steering.injection.injector import Injection
from steering.injection.readouts import ReadoutCollector
from steering.injection.slots import Slots
from steering.model.blocks import Weights
from steering.model.hooks import ResidualHooks, StopForward
from steering.model.info import ModelInfo
from steering.model.layout import Layout
from steering.shapes import Int, Logits, Residual, Tensor

SamplingKernel: TypeAlias = Callable[[Logits, Tensor, Tensor, int, Tensor | None], Tensor]
"""(logits (row, vocab), settings (row, 4), states (row, 4), ranked, allowed) -> tokens, then whether the row is finite; see
cpu/kernels/operations.py: sample."""
Install: TypeAlias = Callable[[Callable[[], None]], None]
"""Runs a function on the engine's thread between two passes. May be called from any thread."""


def is_packable(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is a linear layer that our kernel takes: bfloat16, an even width, and a forward that nothing else has replaced."""
    return (
        type(module) is nn.Linear
        and module.weight.dtype == torch.bfloat16
        and module.in_features % 2 == 0
        and "forward" not in module.__dict__
    )


@dataclass(frozen=True, slots=True, eq=False)
class ModelParts:
    """The model and the state that every executor of one engine shares."""

    model: Any
    layout: Layout
    hooks: ResidualHooks
    cache: PagedCache
    slots: Slots


@dataclass(frozen=True, slots=True)
class CompileRequest:
    """Which model the compile worker loads, and where compiled artefacts are kept.

    info, content: of the loaded model, the latter its `content_digest`.
    source, revision: how to load it again.
    kernels: whether passes use our C++ kernels where the CPU supports them.
    graph: whether passes are compiled, or have the kernels alone.
    weights, folder: how linear layers keep their weights, and where the files of the model are.
    """

    info: ModelInfo
    content: str
    source: str | None
    revision: str | None
    cache_dir: Path
    kernels: bool = True
    graph: bool = True
    weights: Weights = "dtype"
    folder: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PreparedPass:
    """One pass, ready to run: the tokens, what steers them, and what is read from them.

    keep: the flat tokens whose logits are wanted.
    stop_after: nothing after this layer is needed; None: logits are.
    """

    batch: Batch
    injection: Injection
    readers: ReadoutCollector
    keep: Int[Tensor, "kept"]
    stop_after: int | None = None

    @property
    def layers(self) -> frozenset[int]:
        """The layers after which `on_layer` does something."""
        stop = () if self.stop_after is None else (self.stop_after,)
        return self.injection.layers.union(self.readers.layers, stop)

    def decide(self, layer: int, residual: Residual) -> None:
        """Reads the residual as it arrives at a layer, for a pass that applies edits by itself."""
        self.injection.decide(layer, residual.float())

    def read(self, layer: int, residual: Residual) -> None:
        """Reads the residual as it leaves a layer, for a pass that applies edits by itself."""
        after = residual.float()
        self.injection.control(layer, after)
        if layer in self.readers.layers:
            self.readers.read(layer, after)

    def on_layer(self, layer: int, residual: Residual) -> Residual | None:
        """Steers and reads the residual after a layer. Raises StopForward after `stop_after`."""
        steers, reads = layer in self.injection.layers, layer in self.readers.layers
        if not (steers or reads or layer == self.stop_after):
            return None
        if layer in self.injection.alone and not reads and layer != self.stop_after:
            return self.injection.edit(layer, residual)
        change = self.injection.addition(layer, residual) if layer in self.injection.additive else None
        if change is not None and not reads:
            return torch.add(residual, change, out=torch.empty_like(residual))
        before = residual.float()
        after = before
        if steers:
            after = self.injection.apply(layer, before) if change is None else before + change
        if reads:
            self.readers.read(layer, after)
        if layer == self.stop_after:
            raise StopForward
        return None if after is before else after


class PassExecutor:
    """Runs the passes of one engine, all on the engine's thread: here by calling the model under its hooks, on any device, which is
    the reference for compiled passes. It patches the model's attention until it is closed.

    name: `eager`, `eager+kernels`, `eager+graphs`, `compiled` or `compiled+kernels`: what runs the next pass; results of two names may
    differ by rounding.
    kernels: how our kernels compute, see cpu/kernel_choice.py; empty where there are none.
    batch_invariant: whether a token's results have the same bits however passes are formed: alone, in a batch, decoded or read.
    carries_hook_points: whether the next pass may act and read at hook points inside blocks at no more than their own cost.
    sampling_kernel: chooses the tokens of the next pass from bfloat16 logits; None where there is no such kernel.
    attention: None for a model that builds its own masks.
    weight_bytes: of the weights that linear layers are multiplied by, by format, where our kernels packed them.
    """

    def __init__(self, parts: ModelParts) -> None:
        self.name, self.kernels, self.batch_invariant = "eager", "", False
        self.carries_hook_points = True
        self.sampling_kernel: SamplingKernel | None = None
        self.weight_bytes: dict[str, int] = {}
        self._parts = parts
        self.attention = None if parts.layout.attention == "own" else PagedAttention(parts.cache)
        self._patch = None if self.attention is None else AttentionPatch(parts.model, self.attention.attended)

    def start(self, install: Install) -> None:
        """Begins whatever is prepared in the background, which is nothing here; `install` hands it to the engine's thread."""

    def run(self, prepared: PreparedPass) -> Logits | None:
        """Returns the logits of the kept tokens; None when the pass stopped early."""
        batch, parts = prepared.batch, self._parts
        rows = 1 if self.attention is not None else len(batch.segments)
        arguments: dict[str, Any] = {
            "input_ids": batch.token_ids.view(rows, -1),
            "use_cache": True,
            parts.layout.cache_argument: parts.cache,
            # a keep index counts the tokens of a row; for several rows it is applied to the logits of all tokens
            "logits_to_keep": prepared.keep if rows == 1 else 0,
        }
        if self.attention is None:
            filled = batch.segments[0].last_position + 1
            arguments["attention_mask"] = torch.ones(rows, filled, dtype=torch.int64, device=batch.token_ids.device)
        else:
            arguments["position_ids"] = batch.positions.view(rows, -1)
        parts.cache.batch = batch
        try:
            with torch.no_grad(), parts.hooks.step(prepared.on_layer, sorted(prepared.layers)):
                output = parts.model(**arguments)
        except StopForward:
            return None
        finally:
            parts.cache.batch = None
        logits: Tensor = output.logits.flatten(0, 1)
        return logits if rows == 1 else logits[prepared.keep]

    def close(self) -> None:
        """Ends background work and leaves the model as it was before. Harmless when repeated."""
        if self._patch is not None:
            self._patch.close()
