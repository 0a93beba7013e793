"""Opens the vllm engine: starts vLLM's processes, attaches steering, measures norms, and tests that steering acts.

An engine that does not steer must not serve.
"""

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import psutil
import structlog
import torch
import vllm
from vllm.engine.arg_utils import AsyncEngineArgs

from steering.concepts.loader import load_neutral
from steering.engine.api import GenerationRequest, SamplingParams, TokenEvent
from steering.engine.cpu.kernels.library import built, load
from steering.engine.norms import complete
from steering.engine.options import EngineOptions
from steering.engine.vllm.client import VllmClient
from steering.engine.vllm.description import PLUGIN_VERSION, DescribedModel, check_version, describe
from steering.engine.vllm.engine import LoopThread, VllmEngine
from steering.engine.vllm.messages import EDITS_IN_GRAPHS, HOOK_POINTS, KERNELS, SPLITTING_OP
from steering.errors import ModelLoadFailed, SteeringError
from steering.model.hook_points import HEADS, HOOKS, KINDS, point_of
from steering.model.info import ModelInfo
from steering.plan.types import LINEAR, UNSTEERED, Edits, Intervention, SteeringPlan
from steering.spec import InterventionSpec
from steering.threads import call_in_thread

log = structlog.get_logger()

SHARE_OF_MEMORY = 4
"""On a CPU a fourth of the memory that is free becomes the key-value cache; vLLM would take nearly all of it."""

ENVIRONMENT = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a server has threads, whose locks a forked child would inherit
    "VLLM_NO_USAGE_STATS": "1",
}
DEFAULTS = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}

# on a CPU vLLM refuses to bind the threads of more workers than there are NUMA nodes
SEVERAL_WORKERS = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}

LARGE = 100.0
"""Typical norms that the add of the self-test is long: the residual is then little else."""
TOKENS = 4
"""Tokens of an answer of the self-test."""


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


def engine_arguments(options: EngineOptions, described: DescribedModel) -> AsyncEngineArgs:
    """Returns the arguments with which vLLM is started."""
    limits, info = options.limits, described.info
    running = limits.max_running + limits.max_background
    more: dict[str, Any] = {}
    size = limits.cache_bytes
    if size is None and info.device == "cpu":
        size = psutil.virtual_memory().available // SHARE_OF_MEMORY
    if size is not None:
        more["kv_cache_memory_bytes"] = size
    in_graphs = options.edits_in_graphs
    if in_graphs is None:  # on a CPU they cost more than the operation, which is skipped where nothing acts
        in_graphs = info.device != "cpu" and limits.cuda_graphs and options.compiled is not False
    kernels = None if in_graphs else _kernels(options, info)
    splits = info.device != "cpu" and not in_graphs  # graphs are split at our operation, whose Python no replay runs
    if splits:
        from vllm.config.compilation import CompilationConfig  # noqa: PLC0415 - not needed on a CPU

        splitting = [*CompilationConfig._attention_ops, SPLITTING_OP]
        more["compilation_config"] = {"splitting_ops": splitting, "cudagraph_mode": "PIECEWISE"}
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
        worker_cls="steering.engine.vllm.worker.SteeringWorker",
        additional_config={
            "steering": PLUGIN_VERSION,
            EDITS_IN_GRAPHS: in_graphs,
            HOOK_POINTS: _hook_points(options, info, splits=splits),
            **({KERNELS: str(kernels)} if kernels is not None else {}),
        },
        enforce_eager=options.compiled is False,
        tensor_parallel_size=options.tensor_parallel_size,
        pipeline_parallel_size=options.pipeline_parallel_size,
        **more,
    )


def _kernels(options: EngineOptions, info: ModelInfo) -> Path | None:
    """Returns the library of our kernels, which steers on a CPU. Without it operations of torch do."""
    if not options.kernels or info.device != "cpu":
        return None
    try:
        library = built(options.cache_dir)
        load(library)  # in this process it shows whether the workers can
    except (OSError, CalledProcessError) as error:
        log.warning("kernels_not_built", reason=str(error)[:300])
        return None
    return library


def _hook_points(options: EngineOptions, info: ModelInfo, *, splits: bool) -> tuple[list[int], int]:
    """Returns the kinds of points inside layers to hook, and the number of heads. None where each process has a part of a module's
    output, and where graphs would be split at each of them."""
    if options.tensor_parallel_size > 1 or (splits and options.compiled is not False):
        return [], 0
    heads = [HEADS] if info.head_count else []
    return [kind for kind, hook in enumerate(HOOKS) if kind and hook in info.hooks] + heads, info.head_count


async def _tested(engine: VllmEngine) -> None:
    """Tests steering, and finds out what the prefix cache knows of it. For an engine whose typical norms are measured: that has read
    every layer, which the test of the hooks needs."""
    await _check_steering(engine)
    engine.client.hashes_know_steering = await _check_hashes(engine)
    log.info("vllm_started", hashes_know_steering=engine.client.hashes_know_steering, blocks=engine.client.blocks)


async def _check_steering(engine: VllmEngine) -> None:
    """Raises ModelLoadFailed where a layer has no hook that runs, where a plan of zeros changes the tokens, or where a large add does
    not: as graphs apply the edits of a request, or as the operation behind each layer applies those of an operator. Hook points inside
    layers are offered where those of every layer ran as often as that of the layer."""
    info = engine.info
    calls = await engine.call_workers("steering_calls")
    ran = {int(point): count for found in calls for point, count in found.items()}
    missing = sorted(set(range(info.layer_count)) - ran.keys())
    if missing:
        raise ModelLoadFailed(f"the hooks of layers {missing} never ran: the engine does not serve unsteered")
    layers = range(info.layer_count)
    kinds = [kind for kind in range(KINDS) if all(ran.get(point_of(one, kind)) == ran[one] for one in layers)]
    hooks = tuple(hook for kind, hook in enumerate(HOOKS) if kind in kinds)
    engine.info = info = replace(info, hooks=hooks, head_count=info.head_count if HEADS in kinds else 0)
    layer = info.layer_count // 2
    direction = torch.randn(info.d_model, generator=torch.Generator().manual_seed(0))
    change = LARGE * info.typical_norms[layer] * direction / direction.norm()
    prompt = engine.tokenizer.encode(load_neutral()[0])[: info.context_length - TOKENS]

    async def tokens(plan: SteeringPlan) -> list[int]:
        return [event.token_id for event in await _events(engine, prompt, plan, TOKENS) if event.finish is None]

    plain = await tokens(UNSTEERED)
    if await tokens(_plan(layer, torch.zeros_like(change), "self-test zero")) != plain:
        raise ModelLoadFailed("the self-test failed: a plan of zeros changes the tokens; the engine does not serve")
    for mandatory in (False, True):
        if await tokens(_plan(layer, change, f"self-test add {mandatory}", mandatory=mandatory)) == plain:
            raise ModelLoadFailed(
                "the self-test failed: a large add changes nothing; the engine does not serve unsteered"
            )


async def _check_hashes(engine: VllmEngine) -> bool:
    """Returns whether cached blocks of a steered prompt are kept from a plain request, and plain ones are shared.

    During the test their hashes alone keep them apart. False too where the context is too short to tell, or nothing is
    shared at all.
    """
    length = 2 * engine.client.block_size + 1
    if length + 1 > engine.info.context_length:
        return False
    text = engine.tokenizer.encode(load_neutral()[0])
    prompt = (text * (length // len(text) + 1))[:length]

    async def cached(plan: SteeringPlan) -> int:
        finish = (await _events(engine, prompt, plan, 1, cache_salt="self-test"))[-1].finish
        assert finish is not None
        return finish.cached_tokens

    change = torch.full((engine.info.d_model,), engine.info.typical_norms[0])
    engine.client.hashes_know_steering = True
    try:
        await cached(_plan(0, change, "self-test hashes", reusable=True))
        first, second = await cached(UNSTEERED), await cached(UNSTEERED)
    finally:
        engine.client.hashes_know_steering = False
    return first == 0 < second


async def _events(
    engine: VllmEngine, prompt: tuple[int, ...], plan: SteeringPlan, tokens: int, cache_salt: str = ""
) -> list[TokenEvent]:
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
    request = GenerationRequest(prompt, sampling, plan, priority=1, cache_salt=cache_salt)
    return [event async for event in engine.generate(request)]


def _plan(
    layer: int, change: torch.Tensor, fingerprint: str, *, reusable: bool = False, mandatory: bool = False
) -> SteeringPlan:
    """Adds a change at a layer to every residual."""
    spec = InterventionSpec(vector="self-test", layers=(layer,))
    numbers = torch.tensor([[1.0, 0.0, 1.0]])
    edits = Edits(
        fingerprint, fingerprint, (0,), change[None], torch.zeros_like(change)[None], numbers, (LINEAR,), mandatory
    )
    return SteeringPlan(
        interventions=(Intervention(spec, "", "", (layer,)),),
        layers={layer: (edits,)},
        fingerprint=fingerprint,
        prompt_fingerprint=fingerprint,
        reusable=reusable,
        mandatory=int(mandatory),
    )
