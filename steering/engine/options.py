"""What an operator chooses when an engine is opened."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from steering.model.blocks import Weights
from steering.model.quantization import Quantization


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds on sequences, positions and memory.

    max_running: live sequences at once. contended_running: those of one API key while other keys have requests too.
    max_waiting: live requests in the queue before `overloaded`.
    max_background: captures and other background requests at once. max_background_waiting: those of one client that may wait when another
    call of it comes.
    prefill_tokens: most prompt positions of a pass while sequences decode, whose streams wait that long. idle_prefill_tokens: the
    same while none decodes. cache_bytes: memory for keys and values; None: a share of what is free when the engine starts.
    pretouch_bytes: how much of it an idle engine writes ahead of use on a CPU; 0: nothing.
    share_prefixes: whether prompts that begin alike share their keys and values.
    adaptive_threads: whether passes on a CPU use fewer threads where other processes occupy processors; see ThreadCount.
    cuda_graphs: whether decode passes on a CUDA device are replayed from graphs; see GraphExecutor. In the engine vllm, whose passes are:
    whether edits are part of its graphs.
    """

    max_running: int = 64
    contended_running: int = 8
    max_waiting: int = 256
    max_background: int = 32
    max_background_waiting: int = 4096
    prefill_tokens: int = 2048
    idle_prefill_tokens: int = 2048
    cache_bytes: int | None = None
    pretouch_bytes: int = 512 << 20
    share_prefixes: bool = True
    adaptive_threads: bool = True
    cuda_graphs: bool = True


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Everything an entry of ENGINES needs to open itself.

    model: a name, folder, file or hub id; an engine may read it as it likes. cache_dir: where converted and compiled
    files are kept. device, dtype: "auto" or a name. device_map: "auto" spreads the blocks over all GPUs, by accelerate.
    quantization: how plain weights are quantized while they are loaded. weights: how our kernels keep those of linear layers, "auto":
    as a GGUF file has them, and in the compute dtype for calls of many rows where memory allows. compiled: whether passes are compiled in the
    background, "auto": if the model is small. kernels: whether passes use our C++ kernels where the CPU supports them,
    and our Triton kernel on a CUDA device.
    vllm_untested: whether the vllm engine starts with a version of vLLM that it was not tested with. edits_in_graphs: whether its edits are
    operations of vLLM's compiled graphs; None: on a GPU, where `cuda_graphs` of the limits says so. tensor_parallel_size,
    pipeline_parallel_size: how many processes share each layer, and the layers; engines that run in one process refuse more than 1. self_test: whether the engine compares its passes with
    the model's own forward pass before it serves. report: receives each step of loading.
    """

    model: str
    cache_dir: Path
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    device_map: Literal["auto"] | None = None
    quantization: Quantization | None = None
    weights: Weights = "auto"
    compiled: bool | Literal["auto"] = "auto"
    kernels: bool = True
    self_test: bool = True
    vllm_untested: bool = False
    edits_in_graphs: bool | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    limits: EngineLimits = field(default_factory=EngineLimits)
    report: Callable[[str], None] = lambda _step: None
