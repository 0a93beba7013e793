"""Fixtures of the tests on the embedded model: an engine in float32, a plain twin of its model, vectors, and a server."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from steering.engine.transformers.engine import TransformersEngine
from steering.model.conversion import converted
from steering.model.embedded import embedded_gguf
from steering.model.loading import load
from steering.schemas.vectors import VectorAnswer
from steering.vectors import ConceptVector
from tests.embedded.material import small_vectors
from tests.embedded.server_process import ServerProcess


@pytest.fixture(scope="session")
def engine(model_cache: Path) -> Iterator[TransformersEngine]:
    """The embedded model in float32 on the processor, in an engine. Its model is its own: an engine changes one."""
    engine = TransformersEngine(load(None, cache_dir=model_cache, device="cpu", dtype="float32"))
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="session")
def plain_model(model_cache: Path) -> PreTrainedModel:
    """The same weights as transformers alone loads them: no hook and no code of ours."""
    folder = converted(embedded_gguf(), torch.float32, model_cache, lambda _line: None)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def vectors(engine: TransformersEngine) -> Mapping[str, ConceptVector]:
    """Sixteen vectors of the embedded model at three layers, from a few pairs each."""
    return asyncio.run(small_vectors(engine))


@pytest.fixture(scope="session")
def server(compiled_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server as a newcomer starts it, in a process of its own, shared by the tests of a worker."""
    with ServerProcess(tmp_path_factory.mktemp("server"), compiled_cache) as started:
        started.until_compiled()
        yield started


@pytest.fixture(scope="session")
def starter(server: ServerProcess) -> Callable[[str], VectorAnswer]:
    """Returns the vector of a starter concept on the shared server, under the concept's name; it is extracted once."""
    return cache(lambda concept: server.client.extract_vector(concept, concept=concept))
