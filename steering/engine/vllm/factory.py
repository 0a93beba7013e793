"""Opens the vllm engine: starts vLLM's processes, attaches steering, measures norms, and tests that steering acts."""

import asyncio
import os
from typing import Any

import psutil
import structlog
import vllm
from vllm.engine.arg_utils import AsyncEngineArgs

from steering.engine.norms import complete
from steering.engine.options import EngineOptions
from steering.engine.vllm.client import VllmClient
from steering.engine.vllm.description import DescribedModel, describe
from steering.engine.vllm.engine import VllmEngine
from steering.engine.vllm.loop_thread import LoopThread
from steering.engine.vllm.self_test import check_hashes, check_steering
from steering.engine.vllm.versions import PLUGIN_VERSION, check_version
from steering.errors import ModelLoadFailed, SteeringError
from steering.threads import call_in_thread

log = structlog.get_logger()

SHARE_OF_MEMORY = 4
"""On a CPU a fourth of the memory that is free becomes the key-value cache; vLLM would take nearly all of it."""

ENVIRONMENT = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a server has threads, whose locks a forked child would inherit
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the worker adapts V1
    "VLLM_NO_USAGE_STATS": "1",
}
DEFAULTS = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}

# on a CPU vLLM refuses to bind the threads of more workers than there are NUMA nodes
SEVERAL_WORKERS = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def open_engine(options: EngineOptions) -> VllmEngine:
    """Opens the engine; blocks for as long as loading takes.

    Raises ModelLoadFailed, UnsupportedModel, OutOfMemory, InvalidRequest.
    """
    check_version(vllm.__version__, untested=options.vllm_untested)
    described = call_in_thread(lambda: describe(options))
    options.report(f"Starting vLLM {vllm.__version__} with {described.info.name}")
    os.environ.update(ENVIRONMENT)
    processes = options.tensor_parallel_size * options.pipeline_parallel_size
    for name, value in (DEFAULTS | (SEVERAL_WORKERS if processes > 1 else {})).items():
        os.environ.setdefault(name, value)
    thread = LoopThread()
    try:
        client = thread.call(_connected(engine_arguments(options, described)))
    except BaseException as error:
        thread.stop()
        if isinstance(error, SteeringError) or not isinstance(error, Exception):
            raise
        raise ModelLoadFailed(f"vLLM could not start: {error}") from error
    engine = VllmEngine(described, options.limits, thread, client, "eager" if options.compiled is False else "compiled")
    call_in_thread(lambda: asyncio.run(complete(engine, lambda: _tested(engine))))
    return engine


async def _connected(arguments: AsyncEngineArgs) -> VllmClient:
    client = VllmClient(arguments)
    await client.connect()
    return client


async def _tested(engine: VllmEngine) -> None:
    """Tests steering, and finds out what the prefix cache knows of it."""
    await check_steering(engine)
    engine.client.hashes_know_steering = await check_hashes(engine)
    log.info("vllm_started", hashes_know_steering=engine.client.hashes_know_steering, blocks=engine.client.blocks)


def engine_arguments(options: EngineOptions, described: DescribedModel) -> AsyncEngineArgs:
    """Returns the arguments with which vLLM is started."""
    limits, info = options.limits, described.info
    running = limits.max_running + limits.max_background
    return AsyncEngineArgs(
        model=str(described.folder),
        skip_tokenizer_init=True,
        trust_remote_code=False,
        dtype=info.dtype,
        max_model_len=info.context_length,
        max_num_seqs=running,
        max_num_batched_tokens=max(limits.idle_prefill_tokens, running),
        max_logprobs=-1,
        enable_prefix_caching=limits.share_prefixes,
        scheduling_policy="priority",
        disable_log_stats=True,
        enable_log_requests=False,
        worker_cls="steering.engine.vllm.worker.worker.SteeringWorker",
        additional_config={"steering": PLUGIN_VERSION},
        enforce_eager=options.compiled is False,
        tensor_parallel_size=options.tensor_parallel_size,
        pipeline_parallel_size=options.pipeline_parallel_size,
        **_memory(options, info.device),
        **_graphs(info.device),
    )


def _memory(options: EngineOptions, device: str) -> dict[str, Any]:
    size = options.limits.cache_bytes
    if size is None and device == "cpu":
        size = psutil.virtual_memory().available // SHARE_OF_MEMORY
    return {} if size is None else {"kv_cache_memory_bytes": size}


def _graphs(device: str) -> dict[str, Any]:
    """On a GPU, graphs are split at our operation, whose Python would not run when a graph is replayed."""
    if device == "cpu":
        return {}
    from vllm.config.compilation import CompilationConfig  # noqa: PLC0415 - not needed on a CPU

    from steering.engine.vllm.worker.attachment import SPLITTING_OP  # noqa: PLC0415 - not needed on a CPU

    splitting = [*CompilationConfig._attention_ops, SPLITTING_OP]
    return {"compilation_config": {"splitting_ops": splitting, "cudagraph_mode": "PIECEWISE"}}
