"""Executors: how a prepared forward pass is computed."""

from collections.abc import Sequence

import torch

from steering.engine.transformers.execution.base import CompileRequest, ModelParts, PassExecutor
from steering.engine.transformers.execution.compiled.executor import CompiledExecutor
from steering.engine.transformers.execution.compiled.graphs import uses_attention_kernel
from steering.engine.transformers.execution.eager import EagerExecutor
from steering.engine.transformers.memory.paged_cache import LayerShape, PairedLayout, RowLayout


def create_executor(parts: ModelParts, device: torch.device, request: CompileRequest | None) -> PassExecutor:
    """Creates the executor of an engine: the one place where it is chosen.

    Compiled execution needs a CPU and a model that attends through transformers' attention interface.
    """
    if request is None or device.type != "cpu" or parts.layout.attention == "own":
        return EagerExecutor(parts)
    return CompiledExecutor(parts, request)


def block_layout(shapes: Sequence[LayerShape], request: CompileRequest | None) -> RowLayout:
    """Chooses how blocks are arranged: as the attention kernel reads them, where passes will use it."""
    kernels = request is not None and uses_attention_kernel(shapes, kernels=request.kernels)
    return PairedLayout() if kernels else RowLayout()
