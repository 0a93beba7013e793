"""Engines of the tests in vLLM's environment: `make test-vllm`. Starting one takes half a minute, so tests share them."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from steering.engine import open_engine
from steering.engine.api import Engine
from steering.engine.options import EngineLimits, EngineOptions
from steering.engine.transformers.engine import TransformersEngine
from steering.engine.vllm.engine import VllmEngine
from steering.model.loading import LoadedModel
from tests.vllm.models import save_tiny

LIMITS = EngineLimits(max_running=16, max_background=8, cache_bytes=768 << 20)


def opened(model: str, cache: Path, **options: Any) -> VllmEngine:
    """Opens the engine in float32, without compilation and our kernels unless asked for."""
    values: dict[str, Any] = {"device": "cpu", "dtype": "float32", "compiled": False, "kernels": False, **options}
    values.setdefault("limits", LIMITS)
    engine = open_engine("vllm", EngineOptions(model, cache, **values))
    assert isinstance(engine, VllmEngine)
    return engine


@pytest.fixture(scope="session")
def tiny_vllm_folder(tmp_path_factory: pytest.TempPathFactory, hf_byte_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A random Llama of 3 layers whose heads vLLM's CPU attention supports."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny", hf_byte_tokenizer)


@pytest.fixture(scope="session")
def engine(model_cache: Path) -> Iterator[VllmEngine]:
    """The embedded model in vLLM, steered by our kernels."""
    engine = opened("smollm2-135m-instruct", model_cache, kernels=True)
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="session")
def reference(embedded_model: LoadedModel) -> Iterator[Engine]:
    """The embedded model in the transformers engine."""
    engine = TransformersEngine(embedded_model)
    yield engine
    asyncio.run(engine.close())
