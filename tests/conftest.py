"""Shared fixtures: a tiny random model, a byte tokenizer, and the embedded model for tests marked `embedded`."""

import asyncio
import fcntl
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jaxtyping

import tests.shape_checks

REPOSITORY = Path(__file__).resolve().parent.parent
TYPED = ("cards.py", "conditions", "extraction", "operations", "projection", "rowwise.py", "vectors.py")
SHAPED = (
    *(f"engine/{name}.py" for name in ("api", "capabilities", "captures", "norms", "prompts")),
    *(
        f"engine/transformers/{name}"
        for name in (
            "sampling.py",
            "training.py",
            "block_pool.py",
            "paged_cache.py",
            "attention.py",
            "request.py",
            "loop.py",
            "runner.py",
            "unembedding.py",
            "decode_graphs.py",
        )
    ),
    "injection",
    "lab",
    "model",
    "plan",
    "workflows",
)
GPU_TESTS = REPOSITORY / "tests" / "gpu"
# `make test-vllm` has an environment of its own, and its target `test-triton` another mode of Triton
collect_ignore = [
    *([] if find_spec("vllm") is not None else ["vllm"]),
    *([] if os.environ.get("TRITON_INTERPRET") else ["triton"]),
]
TRACED = ("model/hook_points.py", "model/hooks.py", "model/layout.py", "injection/kernel.py")
EMBEDDED = "tests/embedded/"
LONGEST = (
    "load/test_soak.py",
    "steering/engine/cpu/test_compiled.py",
    "steering/engine/loop/test_loop_under_pressure.py",
    "app/core/test_openapi_cases.py",
    "load",
    "embedded",
)
"""What is run first, so that `make test` does not end with one worker in a long file and another without work."""


def modules_of(*packages: str) -> list[str]:
    """Returns the modules of some packages. Left out: `__init__` files, whose loaders return protocols, and functions of
    hooks, which torch.export traces, and those that Triton compiles."""
    steering = REPOSITORY / "steering"
    missing = [name for name in packages if not (steering / name).exists()]
    assert not missing, f"steering has no {', '.join(missing)}"
    files = [file for name in packages for file in [steering / name, *(steering / name).rglob("*.py")]]
    paths = [file.relative_to(steering) for file in files if file.suffix == ".py" and file.name != "__init__.py"]
    kept = [path for path in paths if not path.as_posix().startswith(TRACED)]
    return [".".join(("steering", *path.with_suffix("").parts)) for path in kept]


# Pure functions of tensors are checked at every call, types included; the rest of the library by its tensors' shapes.
jaxtyping.jaxtyped = tests.shape_checks.jaxtyped  # type: ignore[assignment]
jaxtyping.install_import_hook(modules_of(*TYPED), "beartype.beartype")
jaxtyping.install_import_hook(modules_of(*SHAPED), "tests.shape_checks.check_shapes")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Tests are independent of the developer's shell: settings of a server, a proxy that would be used for loopback
# addresses, colours in output that is compared.
ALLOWED = {"STEERING_CACHE_DIR"}
for variable in [name for name in os.environ if name.startswith("STEERING_") and name not in ALLOWED]:
    del os.environ[variable]
direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, [direct, "127.0.0.1,localhost"]))
os.environ.pop("FORCE_COLOR", None)

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402
from transformers import PreTrainedModel, PreTrainedTokenizerFast  # noqa: E402

from steering.engine.cpu import kernel_choice  # noqa: E402
from steering.engine.cpu.kernels import library  # noqa: E402
from steering.model.loading import LoadedModel, load, opened  # noqa: E402
from steering.model.prompt import ModelTokenizer  # noqa: E402
from tests.byte_tokenizer import build_byte_tokenizer  # noqa: E402
from tests.contracts.engines import ContractEngines  # noqa: E402
from tests.families import EOS, FAMILIES, VOCABULARY  # noqa: E402
from tests.postgresql_server.server import PostgreSQL  # noqa: E402
from tests.vllm.models import save_tiny  # noqa: E402

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


@pytest.hookimpl(optionalhook=True)  # of xdist, which vLLM's environment has not
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distributes the tests by file, but has one worker run all of tests/embedded, whose model, vectors and server are for a worker."""
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]  # noqa: PLC0415 - see above

    if config.getvalue("dist") != "loadfile":
        return None
    scheduling = LoadFileScheduling(config, log)
    by_file = scheduling._split_scope
    scheduling._split_scope = lambda nodeid: EMBEDDED if nodeid.startswith(EMBEDDED) else by_file(nodeid)
    return scheduling


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
def built_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of our own C++, one for all workers of a test run: the first builds it, the others wait for that."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    path = library.library_path(folder / "native")
    with (folder / "native.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            library.build(path, folder)
    return path
