"""Shared fixtures: a tiny random model, a byte tokenizer, and the embedded model for tests marked `embedded`."""

import os
from pathlib import Path
from pkgutil import iter_modules

from jaxtyping import install_import_hook

# Shapes and types are checked at every call of these modules. Not in the model and the engine, whose functions are
# traced by torch.compile, which cannot follow the checks.
STEERING = Path(__file__).resolve().parent.parent / "steering"
CHECKED = [
    f"steering.{package}.{module.name}"
    for package in ("extraction", "projection", "operations", "conditions")
    for module in iter_modules([str(STEERING / package)])
]
install_import_hook([*CHECKED, "steering.vectors", "steering.quality"], "beartype.beartype")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Tests are independent of the developer's shell: settings of a server, a proxy that would be used for loopback
# addresses, colours in output that is compared.
ALLOWED = {"STEERING_CACHE_DIR", "STEERING_TEST_POSTGRESQL"}
for variable in [name for name in os.environ if name.startswith("STEERING_") and name not in ALLOWED]:
    del os.environ[variable]
direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, [direct, "127.0.0.1,localhost"]))
os.environ.pop("FORCE_COLOR", None)

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402
from transformers import PreTrainedModel, PreTrainedTokenizerFast  # noqa: E402

from steering.model.loading import LoadedModel, load, opened  # noqa: E402
from steering.model.prompt import ModelTokenizer  # noqa: E402
from tests.byte_tokenizer import build_byte_tokenizer  # noqa: E402
from tests.families import EOS, FAMILIES, VOCABULARY  # noqa: E402

torch.set_num_threads(1)
settings.register_profile("no_deadline", deadline=None)  # tests do not fail on a busy machine
settings.load_profile("no_deadline")
REPOSITORY = Path(__file__).resolve().parent.parent


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
def model_cache() -> Path:
    """The folder of converted models, kept between runs: STEERING_CACHE_DIR, or .cache/models of the repository."""
    return Path(os.environ.get("STEERING_CACHE_DIR", REPOSITORY / ".cache" / "models"))


@pytest.fixture(scope="session")
def embedded_model(model_cache: Path) -> LoadedModel:
    """SmolLM2-135M-Instruct in float32 on the CPU, loaded once. Tests that use it are marked `embedded`."""
    return load(None, cache_dir=model_cache, device="cpu", dtype="float32")
