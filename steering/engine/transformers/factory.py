"""Opens the transformers engine: loads the model, tests the engine's passes against the model's own, starts the engine's thread, and
measures the model's norms."""

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import structlog
import torch
from torch import nn
from torch._inductor.cpp_builder import get_cpp_compiler

from steering.concepts.loader import load_neutral
from steering.engine.api import GenerationRequest, SamplingParams, TokenEvent
from steering.engine.norms import complete
from steering.engine.options import EngineLimits, EngineOptions
from steering.engine.transformers.block_pool import BLOCK, blocks_for
from steering.engine.transformers.engine import TransformersEngine
from steering.engine.transformers.executor import CompileRequest, is_packable
from steering.engine.transformers.paged_cache import probe_shapes
from steering.errors import (
    InvalidRequest,
    NonfiniteActivations,
    OutOfMemory,
    SteeringError,
    UnsupportedModel,
    UnsupportedParameter,
)
from steering.model.blocks import INPUTS, Weights, blocks_path
from steering.model.device import free_memory, needs_kernels, takes_kernels
from steering.model.fingerprint import content_digest
from steering.model.loading import LoadedModel, load
from steering.model.memory_plan import Serving
from steering.shapes import Float, Tensor
from steering.threads import call_in_thread

log = structlog.get_logger()
MAX_COMPILED_PARAMETERS = 1_000_000_000
"""The largest model that is compiled by default: each graph holds weights of its own."""
COVERED = 0.9
"""Share of a model's weights, without embeddings, that our kernels must multiply by where torch is slow in bfloat16."""
PROMPTS = (20, 7)  # tokens of the two prompts of the self-test, which are answered together
PIECE = 12  # prompt tokens of a pass, so that the longer prompt is computed in two
WINDOW = 4  # sliding windows are shortened to this many positions, so that they hide a part of the prompt
TOKENS, LARGE_TOKENS = 3, 1  # tokens of each answer, and of a large model's
LARGE_PARAMETERS = 20_000_000_000
TOP = 20  # log probabilities compared at each token
EXACT, ROUNDED = 0.02, 0.25
"""Bounds in nats: of every difference in float32; of an answer's median difference in other dtypes, where rounding may choose
another expert at some tokens."""


def open_engine(options: EngineOptions) -> TransformersEngine:
    """Opens the engine; blocks for as long as loading takes.

    Raises ModelLoadFailed, UnsupportedModel, OutOfMemory, InvalidRequest.
    """
    if (options.tensor_parallel_size, options.pipeline_parallel_size) != (1, 1):
        raise InvalidRequest(
            "the engine 'transformers' runs in one process: tensor_parallel_size and pipeline_parallel_size need the "
            "engine 'vllm'",
            param="tensor_parallel_size",
        )
    # in threads that end, because the OpenMP pool of a caller that stays would slow every pass down
    engine = call_in_thread(lambda: _opened(options))
    with suppress(UnsupportedParameter):  # requests that need it are refused with the reason
        call_in_thread(engine.load_vocabulary)
    call_in_thread(lambda: asyncio.run(complete(engine)))
    return engine


def _opened(options: EngineOptions, largest: int = MAX_COMPILED_PARAMETERS) -> TransformersEngine:
    """largest: parameters of a model that is compiled by default; larger ones have the kernels alone, where they need them."""
    kernels = options.kernels and options.compiled is not False
    loaded = _load(options, kernels=kernels)
    may_change = options.dtype == "auto" and kernels and needs_kernels(loaded.model.dtype, loaded.model.device)
    reason = reason_against_kernels(loaded) if may_change else None
    if reason is None:
        loaded = self_tested(loaded) if options.self_test else loaded
        # again, since the test may have found that the model needs its own attention
        reason = reason_against_kernels(loaded) if may_change else None
    if reason is not None:
        log.info("dtype_changed", dtype="float32", reason=reason)
        del loaded  # before the second is loaded: memory may not hold both
        gc.collect()
        loaded, kernels = _load(options, kernels=False), False
        loaded = self_tested(loaded) if options.self_test else loaded
    request = _request(loaded, options, largest, kernels=kernels)
    return TransformersEngine(loaded, options.limits, request, kernels=options.kernels)


def _load(options: EngineOptions, *, kernels: bool) -> LoadedModel:
    return load(
        options.model,
        cache_dir=options.cache_dir,
        device=options.device,
        dtype=options.dtype,
        device_map=options.device_map,
        revision=options.revision,
        quantization=options.quantization,
        kernels=kernels,
        weights=options.weights,
        serving=Serving(options.limits.cache_bytes, options.limits.idle_prefill_tokens),
        report=options.report,
    )


def _is_quantized(loaded: LoadedModel) -> bool:
    return bool(getattr(loaded.model, "is_quantized", False))


def reason_against_kernels(loaded: LoadedModel) -> str | None:
    """Returns why a model would be slow in bfloat16 where torch is: there is no compiler to build our kernels, or less than COVERED
    of its products run in them. None where it would be fast."""
    try:
        get_cpp_compiler()
    except RuntimeError:
        return "there is no C++ compiler to build the kernels that make bfloat16 fast on this CPU"
    if _is_quantized(loaded):
        return "quantized weights do not run in the kernels that make bfloat16 fast on this CPU"
    if loaded.layout.attention == "own":
        return "this model computes attention itself, without the kernels that make bfloat16 fast on this CPU"
    modules = list(loaded.model.modules())
    embedded = {id(module.weight) for module in modules if isinstance(module, nn.Embedding)}
    matrices: dict[int, int] = {
        id(one): one.numel() for one in loaded.model.parameters() if one.dim() > 1 and id(one) not in embedded
    }
    ours = {id(module.weight) for module in modules if is_packable(module)}
    multiplied: int = sum(size for key, size in matrices.items() if key in ours)
    share = multiplied / max(sum(matrices.values()), 1)
    if share >= COVERED:
        return None
    return f"the kernels that make bfloat16 fast on this CPU multiply {share:.0%} of this model's weights, fewer than {COVERED:.0%}"


def _request(
    loaded: LoadedModel, options: EngineOptions, largest: int, *, kernels: bool = True
) -> CompileRequest | None:
    """Returns what is compiled for a model; None where its passes stay eager."""
    device = loaded.model.device
    eager = device.type != "cpu" or loaded.layout.attention == "own" or _is_quantized(loaded)
    weights = chosen_weights(loaded, options.weights, kernels=kernels and not eager)
    if eager:
        return None
    graph = loaded.info.parameter_count <= largest if options.compiled == "auto" else options.compiled
    needed = kernels and (needs_kernels(loaded.model.dtype, device) or weights != "dtype")
    return compile_request(loaded, options, graph=graph, weights=weights) if graph or needed else None


def chosen_weights(loaded: LoadedModel, weights: Weights, *, kernels: bool) -> Weights:
    """Returns how linear layers keep their weights. "auto": where the model has blocks and our kernels multiply by them, these and, if
    they take less than half of the free memory, the weights in bfloat16 too, which are faster for many rows.

    kernels: whether passes of the model may use our kernels. Raises InvalidRequest for blocks without kernels or without a GGUF file.
    """
    packs = kernels and takes_kernels(loaded.model.dtype, loaded.model.device)
    stored = loaded.folder is not None and blocks_path(loaded.folder).is_file()
    if weights == "auto":
        if not (packs and stored):
            return "dtype"
        dense = loaded.info.parameter_count * loaded.model.dtype.itemsize
        return "auto" if 2 * dense < free_memory(loaded.model.device) else "gguf"
    if weights != "dtype" and not packs:
        raise InvalidRequest(
            f"weights {weights!r} needs the engine's own linear layers: bfloat16 on a CPU with AVX2, a model that attends through "
            f"transformers, kernels and compiled switched on; this model is {loaded.info.dtype} on {loaded.info.device}; choose auto",
            param="weights",
        )
    if weights == "gguf" and not stored:
        raise InvalidRequest(
            f"weights 'gguf' needs a GGUF file with blocks of {', '.join(INPUTS)}, and {loaded.info.name} has none: choose auto, "
            "dtype or int8",
            param="weights",
        )
    return weights


def compile_request(
    loaded: LoadedModel, options: EngineOptions, *, graph: bool = True, weights: Weights = "dtype"
) -> CompileRequest:
    """Returns how a model from files is compiled."""
    assert loaded.folder is not None
    content = content_digest(loaded.folder) if graph else ""  # the kernels depend on no weights
    return CompileRequest(
        loaded.info,
        content,
        options.model,
        options.revision,
        options.cache_dir,
        options.kernels,
        graph,
        weights,
        loaded.folder,
    )


def self_tested(loaded: LoadedModel) -> LoadedModel:
    """Returns the model with attention that was shown to be right: as its layout says, or else its own.

    Two short prompts are answered in passes of the engine, with windows shortened so that they act, and the log probabilities are
    compared with those of the unchanged model. It takes about ten passes. Raises UnsupportedModel where even the model's own
    attention differs over the paged cache, or fails.
    """
    reason = _reason_against(loaded)
    if reason is not None and loaded.layout.attention == "interface":
        log.warning("own_attention", architecture=loaded.layout.architecture, reason=reason)
        loaded = replace(loaded, layout=replace(loaded.layout, attention="own"))
        reason = _reason_against(loaded)
    if reason is not None:
        raise UnsupportedModel(f"{loaded.layout.architecture} cannot be steered: {reason}")
    return loaded


def _reason_against(loaded: LoadedModel) -> str | None:
    """Runs the test for one kind of attention. Returns None where it passes, or cannot tell."""
    tokens = LARGE_TOKENS if loaded.info.parameter_count > LARGE_PARAMETERS else TOKENS
    text = loaded.tokenizer.encode(load_neutral()[0])
    longest = min(PROMPTS[0], loaded.info.context_length - tokens)
    text = (text * (longest // len(text) + 1))[:longest]
    prompts = [text, text[: -PROMPTS[1] - 1 : -1] or text]  # the second is the end of the first, backwards
    try:
        with short_windows(loaded.model):
            answers = asyncio.run(_answers(loaded, prompts, tokens))
            pairs = _logprobs(loaded, prompts, answers)
    except (OutOfMemory, UnsupportedModel):
        raise
    except NonfiniteActivations:
        pairs = []
    except SteeringError as error:
        return f"{error.message} in the self-test"
    if not pairs or not all(torch.isfinite(own).all() for own, _ in pairs):
        log.warning("self_test_skipped", reason="the model's logits are not finite")
        return None
    exact = loaded.info.dtype == "float32" and not _is_quantized(loaded)  # LLM.int8 rounds by what else is in the batch
    differences = [(own - ours).abs() for own, ours in pairs]
    difference = max(float(row.max() if exact else row.median()) for row in differences)
    if difference <= (EXACT if exact else ROUNDED):
        return None
    return f"over the engine's cache its log probabilities differ from those of its own forward pass by {difference:.2g} nats"


async def _answers(loaded: LoadedModel, prompts: list[tuple[int, ...]], tokens: int) -> list[list[TokenEvent]]:
    """Answers the prompts together in a small engine, which leaves the model as it was."""
    shapes = probe_shapes(loaded.model, loaded.layout, loaded.layout.device)
    blocks = sum(blocks_for(len(prompt) + tokens) + 1 for prompt in prompts)
    limits = EngineLimits(
        prefill_tokens=PIECE,
        idle_prefill_tokens=PIECE,
        cache_bytes=blocks * BLOCK * sum(shape.position_bytes for shape in shapes),
        pretouch_bytes=0,
        share_prefixes=False,
        adaptive_threads=False,
        cuda_graphs=False,
    )
    engine = TransformersEngine(loaded, limits)
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True, logprobs=min(TOP, loaded.info.vocab_size))

    async def answer(prompt: tuple[int, ...]) -> list[TokenEvent]:
        events = [event async for event in engine.generate(GenerationRequest(prompt, sampling))]
        return [event for event in events if event.finish is None]

    try:
        return list(await asyncio.gather(*map(answer, prompts)))
    finally:
        await engine.close()


def _logprobs(
    loaded: LoadedModel, prompts: list[tuple[int, ...]], answers: list[list[TokenEvent]]
) -> list[tuple[Float[Tensor, "token top"], Float[Tensor, "token top"]]]:
    """Returns, for each answer, the log probabilities of the most probable tokens by one forward pass of the model's own, and as
    the engine gave them."""
    texts = [[*prompt, *(event.token_id for event in answer)] for prompt, answer in zip(prompts, answers, strict=True)]
    longest = max(map(len, texts))
    # padded on the right without a mask: a causal model's earlier positions do not see it
    ids = torch.tensor([text + text[-1:] * (longest - len(text)) for text in texts], device=loaded.layout.device)
    model: Any = loaded.model
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    pairs = []
    for row, prompt, answer in zip(logits, prompts, answers, strict=True):
        own = row[len(prompt) - 1 : len(prompt) - 1 + len(answer)].float().log_softmax(-1).cpu()
        top = torch.tensor([[token for token, _ in event.top_logprobs] for event in answer])
        ours = torch.tensor([[logprob for _, logprob in event.top_logprobs] for event in answer])
        pairs.append((own.gather(1, top), ours))
    return pairs


@contextmanager
def short_windows(model: torch.nn.Module) -> Iterator[None]:
    """Shortens sliding windows, which configurations name and attention modules copy, to WINDOW positions."""
    owners: list[Any] = list(model.modules())
    owners += {id(config): config for part in owners if (config := getattr(part, "config", None))}.values()
    windows = [(owner, owner.__dict__.get("sliding_window")) for owner in owners]
    shortened = [(owner, window) for owner, window in windows if isinstance(window, int) and window > WINDOW]
    try:
        for owner, _ in shortened:
            owner.sliding_window = WINDOW
        yield
    finally:
        for owner, window in shortened:
            owner.sliding_window = window
