"""Opens the transformers engine: loads the model, starts the engine's thread, measures the model's norms."""

import asyncio

from steering.engine.norms import complete
from steering.engine.options import EngineOptions
from steering.engine.transformers.engine import TransformersEngine
from steering.engine.transformers.executor import CompileRequest
from steering.engine.transformers.self_test import self_tested
from steering.errors import InvalidRequest
from steering.model.fingerprint import content_digest
from steering.model.loading import LoadedModel, load
from steering.threads import call_in_thread

MAX_COMPILED_PARAMETERS = 1_000_000_000
"""The largest model that is compiled by default: each graph holds weights of its own."""


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
    call_in_thread(lambda: asyncio.run(complete(engine)))
    return engine


def _opened(options: EngineOptions) -> TransformersEngine:
    loaded = load(
        options.model,
        cache_dir=options.cache_dir,
        device=options.device,
        dtype=options.dtype,
        device_map=options.device_map,
        revision=options.revision,
        report=options.report,
    )
    if options.self_test:
        loaded = self_tested(loaded)
    small = loaded.info.parameter_count <= MAX_COMPILED_PARAMETERS
    compiled = small if options.compiled == "auto" else options.compiled
    return TransformersEngine(loaded, options.limits, compile_request(loaded, options) if compiled else None)


def compile_request(loaded: LoadedModel, options: EngineOptions) -> CompileRequest:
    """Returns how a model from files is compiled."""
    assert loaded.folder is not None
    content = content_digest(loaded.folder)
    return CompileRequest(loaded.info, content, options.model, options.revision, options.cache_dir, options.kernels)
