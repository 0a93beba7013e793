"""Shared fixtures: a tiny random model, a byte tokenizer, and the embedded model for tests marked `embedded`."""

import asyncio
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from steering.engine.cpu import kernel_choice
from steering.engine.cpu.kernels import library
from steering.model.loading import LoadedModel, load, opened
from steering.model.prompt import ModelTokenizer
from tests.byte_tokenizer import build_byte_tokenizer
from tests.conftest import GPU_TESTS, LONGEST, REPOSITORY
from tests.contracts.engines import ContractEngines
from tests.embedded.server_process import ServerProcess
from tests.engines import compiled_soon, give_library
from tests.families import EOS, FAMILIES, VOCABULARY
from tests.postgresql_server.server import PostgreSQL
from tests.vllm.models import save_tiny

torch.set_num_threads(1)
kernel_choice.CHOSEN[kernel_choice.PROCESS] = kernel_choice.default_choice()  # results of tests do not depend on times
settings.register_profile("no_deadline", deadline=None)  # tests do not fail on a busy machine
settings.load_profile("no_deadline")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begins with the longest tests. Deselects those of a CUDA device where there is none, unless `-m gpu` asks for them."""
    tests = REPOSITORY / "tests"
    items.sort(key=lambda item: [not item.path.is_relative_to(tests / one) for one in LONGEST])
    if torch.cuda.is_available() or "gpu" in (config.option.markexpr or ""):
        return
    gpu = [item for item in items if item.get_closest_marker("gpu") or item.path.is_relative_to(GPU_TESTS)]
    if gpu:
        config.hook.pytest_deselected(items=gpu)
        items[:] = [item for item in items if item not in gpu]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begins each test with one thread. UMAP's numba sets OpenMP's number in the thread that runs it, here that of all tests, to
    that of the processors, and two workers with two threads each wait for one another at every parallel loop."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def hf_byte_tokenizer() -> PreTrainedTokenizerFast:
    """The byte tokenizer as transformers loads it from a model folder."""
    return build_byte_tokenizer()


@pytest.fixture(scope="session")
def byte_tokenizer(hf_byte_tokenizer: PreTrainedTokenizerFast) -> ModelTokenizer:
    """Token id = byte; control tokens 256 to 261; a chat template."""
    return ModelTokenizer(hf_byte_tokenizer, vocab_size=VOCABULARY, eos_ids=(EOS,))


@pytest.fixture
def tiny_model() -> PreTrainedModel:
    """A random Llama of 3 layers, d_model 32, vocabulary 264; fresh for every test, the same weights every time."""
    return FAMILIES["llama"]()


@pytest.fixture
def tiny_loaded(tiny_model: PreTrainedModel) -> LoadedModel:
    """The tiny Llama as `load` returns it, with the byte tokenizer."""
    return opened(tiny_model, build_byte_tokenizer(), name="tiny-llama")


@pytest.fixture
def tiny_folder(tiny_model: PreTrainedModel, hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """The tiny Llama as a model folder that `load` accepts."""
    folder = tmp_path / "tiny-llama"
    tiny_model.save_pretrained(folder)
    hf_byte_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def contract_engines(
    tmp_path_factory: pytest.TempPathFactory, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> Iterator[ContractEngines]:
    """Engines over a tiny model that each can run."""
    engines = ContractEngines(save_tiny(tmp_path_factory.mktemp("model") / "tiny-llama", hf_byte_tokenizer))
    yield engines
    for engine in engines.shared:
        asyncio.run(engine.close())


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server of this worker; it starts with the first test that asks for it."""
    with PostgreSQL() as server:
        yield server


@pytest.fixture
def postgresql_url(postgresql: PostgreSQL) -> Iterator[str]:
    """An empty database of a test."""
    url = postgresql.create()
    yield url
    postgresql.drop(url)


@pytest.fixture(scope="session")
def model_cache() -> Path:
    """The folder of converted models, kept between runs: STEERING_CACHE_DIR, or .cache/models of the repository."""
    return Path(os.environ.get("STEERING_CACHE_DIR", REPOSITORY / ".cache" / "models"))


@pytest.fixture(scope="session")
def embedded_model(model_cache: Path) -> LoadedModel:
    """SmolLM2-135M-Instruct in float32 on the CPU, loaded once. Tests that use it are marked `embedded`."""
    return load(None, cache_dir=model_cache, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test run, shared by its workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def one_at_a_time(run_folder: Path) -> Callable[[str], AbstractContextManager[None]]:
    """Returns the context of a name, within which there is one worker at a time."""

    @contextmanager
    def locked(name: str) -> Iterator[None]:
        with (run_folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    return locked


@pytest.fixture(scope="session")
def built_library(run_folder: Path, one_at_a_time: Callable[[str], AbstractContextManager[None]]) -> Path:
    """The library of our own C++, one for all workers of a test run: the first builds it, the others wait for that."""
    path = library.library_path(run_folder / "native")
    with one_at_a_time("native"):
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            library.build(path, run_folder)
    return path


@pytest.fixture(scope="session")
def compiled_cache(
    model_cache: Path,
    built_library: Path,
    run_folder: Path,
    one_at_a_time: Callable[[str], AbstractContextManager[None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """`model_cache`, in which the embedded model is compiled: by a server of the first worker, while the others wait."""
    give_library(built_library, model_cache)
    compiled = run_folder / "compiled"
    with one_at_a_time("compiling"):
        if not compiled.exists():
            with compiled_soon(), ServerProcess(tmp_path_factory.mktemp("compiling"), model_cache) as server:
                server.until_compiled()
            compiled.touch()
    return model_cache
