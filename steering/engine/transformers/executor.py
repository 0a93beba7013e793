"""What executors take: the model with its state, and prepared forward passes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from steering.engine.transformers.batch import Batch
from steering.engine.transformers.memory.paged_cache import PagedCache
from steering.injection.injector import Injection
from steering.injection.readouts import ReadoutCollector
from steering.injection.slots import Slots
from steering.model.hooks import ResidualHooks, StopForward
from steering.model.info import ModelInfo
from steering.model.layout import Layout
from steering.shapes import Int, Logits, Residual, Tensor

SamplingKernel: TypeAlias = Callable[[Logits, Tensor, Tensor], Tensor]
"""(logits (row, vocab), settings (row, 4), states (row, 4)) -> (row, 2), see kernels/operations.py: sample."""
Install: TypeAlias = Callable[[Callable[[], None]], None]
"""Runs a function on the engine's thread between two passes. May be called from any thread."""


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

    info, content: of the loaded model, the latter its `content_digest`. source, revision: how to load it again. kernels: whether compiled passes use our C++ kernels
    where the CPU supports them.
    """

    info: ModelInfo
    content: str
    source: str | None
    revision: str | None
    cache_dir: Path
    kernels: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class PreparedPass:
    """One pass, ready to run: the tokens, what steers them, and what is read from them.

    keep: the flat tokens whose logits are wanted. stop_after: nothing after this layer is needed; None: logits are.
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
        """Reads the residual (token, d_model) as it arrives at a layer, for a pass that applies edits by itself."""
        self.injection.decide(layer, residual.float())

    def read(self, layer: int, residual: Residual) -> None:
        """Reads the residual (token, d_model) as it leaves a layer, for a pass that applies edits by itself."""
        after = residual.float()
        self.injection.control(layer, after)
        if layer in self.readers.layers:
            self.readers.read(layer, after)

    def on_layer(self, layer: int, residual: Residual) -> Residual | None:
        """Steers and reads the residual after a layer. Raises StopForward after `stop_after`."""
        steers, reads = layer in self.injection.layers, layer in self.readers.layers
        if not (steers or reads or layer == self.stop_after):
            return None
        before = residual.float()
        after = self.injection.apply(layer, before) if steers else before
        if reads:
            self.readers.read(layer, after)
        if layer == self.stop_after:
            raise StopForward
        return None if after is before else after


class PassExecutor(Protocol):
    """Runs passes of one engine, all on the engine's thread.

    name: `eager`, `compiled` or `compiled+kernels`: what runs the next pass; results of two names may differ by rounding.
    batch_invariant: whether a token's results have the same bits however passes are formed: alone, in a batch, decoded or read.
    sampling_kernel: chooses the tokens of the next pass from bfloat16 logits; None where there is no such kernel.
    """

    name: str
    batch_invariant: bool
    sampling_kernel: SamplingKernel | None

    def start(self, install: Install) -> None:
        """Begins whatever is prepared in the background; `install` hands it to the engine's thread."""

    def run(self, prepared: PreparedPass) -> Logits | None:
        """Returns the logits of the kept tokens (token, vocab); None when the pass stopped early."""

    def close(self) -> None:
        """Ends background work and leaves the model as it was before. Harmless when repeated."""
