"""How the passes of an engine are computed: the one place that chooses, and the only importer of `steering.engine.cpu`."""

from collections.abc import Sequence

import torch

from steering.engine.cpu.executor import CompiledExecutor
from steering.engine.cpu.graphs import uses_attention_kernel
from steering.engine.cpu.thread_count import ThreadCount
from steering.engine.transformers.eager import EagerExecutor
from steering.engine.transformers.executor import CompileRequest, ModelParts, PassExecutor
from steering.engine.transformers.memory.paged_cache import LayerShape, PairedLayout, RowLayout
from steering.threads import openmp_thread_setter


def create_executor(parts: ModelParts, device: torch.device, request: CompileRequest | None) -> PassExecutor:
    """Creates the executor of an engine.

    Compiled execution needs a CPU and a model that attends through transformers' attention interface.
    """
    if request is None or device.type != "cpu" or parts.layout.attention == "own":
        return EagerExecutor(parts)
    return CompiledExecutor(parts, request)


def block_layout(shapes: Sequence[LayerShape], request: CompileRequest | None) -> RowLayout:
    """Chooses how blocks are arranged: as the attention kernel reads them, where passes will use it."""
    kernels = request is not None and uses_attention_kernel(shapes, kernels=request.kernels)
    return PairedLayout() if kernels else RowLayout()


def create_thread_count(device: torch.device, *, adaptive: bool) -> ThreadCount:
    """Creates what sets the threads of passes: a fixed number unless `adaptive`, on a CPU whose OpenMP library can be told."""
    apply = openmp_thread_setter()
    if apply is None or not adaptive or device.type != "cpu":
        return ThreadCount(1, lambda _count: None)
    return ThreadCount(torch.get_num_threads(), apply)
