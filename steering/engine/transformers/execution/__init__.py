"""Executors: how a prepared forward pass is computed. The rest of the engine knows the PassExecutor protocol only."""

import torch

from steering.engine.transformers.execution.base import CompileRequest, ModelParts, PassExecutor, PreparedPass
from steering.engine.transformers.execution.compiled.executor import CompiledExecutor
from steering.engine.transformers.execution.eager import EagerExecutor


def create_executor(parts: ModelParts, device: torch.device, request: CompileRequest | None) -> PassExecutor:
    """Creates the executor of an engine: the one place where it is chosen.

    Compiled execution needs a CPU and a model that attends through transformers' attention interface.
    """
    eager = EagerExecutor(parts)
    if request is None or device.type != "cpu" or parts.layout.attention == "own":
        return eager
    return CompiledExecutor(parts, eager, request)


__all__ = ["CompileRequest", "ModelParts", "PassExecutor", "PreparedPass", "create_executor"]
