"""Loads a model from a name, a folder, a GGUF file or a hub id, ready to be steered."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassFieldValidationError,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from steering.errors import ModelLoadFailed, OutOfMemory, SteeringError, UnsupportedModel
from steering.model.blocks import Weights, packed_bytes
from steering.model.conversion import converted
from steering.model.device import DTYPES, choose_device, choose_dtype, free_memory, takes_kernels
from steering.model.embedded import EMBEDDED_MODEL, embedded_gguf
from steering.model.fingerprint import fingerprint_of
from steering.model.info import ModelInfo
from steering.model.layout import Layout, find_layout
from steering.model.memory_plan import MemoryPlan, Serving, check_memory, plan_memory
from steering.model.prompt import ModelTokenizer
from steering.model.quantization import Quantization, check_quantization, method_of, quantizer
from steering.model.verification import verify_layout

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
# Of `from_pretrained`. Kernels of the hub would replace layers of a model, and be downloaded: by default so since transformers 5.25.
WEIGHT_FILES: Mapping[str, Any] = {
    "local_files_only": True,
    "trust_remote_code": False,
    "use_safetensors": True,
    "use_kernels": False,
}
UNLIMITED_CONTEXT = 2048
"""Assumed where an architecture states no bound (ALiBi models): what they were commonly trained on."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model in evaluation mode with its tokenizer, layout and facts. folder: of its files; None: it was in memory."""

    model: PreTrainedModel
    tokenizer: ModelTokenizer
    layout: Layout
    info: ModelInfo
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The folder of the files, the model's name, and the hub's commit if it came from there."""

    folder: Path
    name: str
    revision: str | None = None


def load(  # noqa: PLR0913 - what an operator chooses
    source: str | None,
    *,
    cache_dir: Path,
    device: str = "auto",
    dtype: str = "auto",
    device_map: Literal["auto"] | None = None,
    revision: str | None = None,
    quantization: Quantization | None = None,
    kernels: bool = False,
    weights: Weights = "dtype",
    serving: Serving | None = None,
    report: Callable[[str], None] = lambda _line: None,
) -> LoadedModel:
    """Loads a model: None or "smollm2-135m-instruct" (embedded), a folder, a `.gguf` file, or a hub id.

    cache_dir: where converted GGUF files are kept.
    device_map: "auto" spreads the blocks over all devices of the kind of `device`, by accelerate.
    revision: a commit, tag or branch of a hub id; the commit found is in `info.revision`.
    quantization: quantizes plain weights while they are loaded. Weights that are quantized in the files stay so.
    kernels: whether the engine's own kernels will run it, see `choose_dtype`. weights: how these keep its linear layers.
    serving: what has to fit beside the weights; None: nothing.
    report: receives each step in a line.

    Only safetensors are read and no code of the model's is run. Raises ModelLoadFailed, UnsupportedModel, OutOfMemory before
    weights are read where the plan does not fit, and InvalidRequest for a device, a dtype or a quantization.
    """
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device, kernels=kernels)
    with _quiet_progress_bars(), load_errors(source or EMBEDDED_MODEL):
        found = find_source(source, chosen_dtype, cache_dir, revision, report)
        config = AutoConfig.from_pretrained(found.folder, local_files_only=True, trust_remote_code=False)
        refuse_other_tasks(config)
        check_quantization(config, quantization)
        refuse_by_structure(config)
        free = {place: free_memory(place) for place in devices_of(chosen_device, device_map)}
        plan = plan_memory(config, found.folder, chosen_dtype, chosen_device, serving or Serving(0, 0), quantization)
        plain = quantization is None and method_of(config) is None
        if kernels and plain and takes_kernels(chosen_dtype, chosen_device):
            # at most: embeddings are not packed
            plan = replace(plan, weights=packed_bytes(found.folder, weights, plan.weights))
        more = chosen_device.type == "cuda" and torch.cuda.device_count() > len(free)
        check_memory(found.name, plan, {str(place): size for place, size in free.items()}, more_devices=more)
        report(
            f"Loading {found.name} on {', '.join(map(str, free))} in {str(chosen_dtype).removeprefix('torch.')}: {plan}"
        )
        tokenizer = AutoTokenizer.from_pretrained(found.folder, local_files_only=True, trust_remote_code=False)
        options = placement(free, plan)
        if not plain:
            options |= quantized_by(quantization, chosen_device, chosen_dtype)
        model, fingerprint = _load_weights(found.folder, model_class(config), chosen_dtype, options, cast=plain)
        if len(free) > 1:
            refuse_offloading(found.name, model)
        loaded = opened(model, tokenizer, name=found.name, revision=found.revision, fingerprint=fingerprint)
        return replace(loaded, folder=found.folder)


def opened(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    name: str,
    revision: str | None = None,
    fingerprint: str | None = None,
) -> LoadedModel:
    """Opens a model that is in memory. fingerprint: where it is known already."""
    # No batch of ours is padded. Where a padding token is set, GPT-2 reads it from the device in every pass, only to warn.
    with suppress(StrictDataclassFieldValidationError):  # some configurations allow no None
        model.config.pad_token_id = None
    source, fingerprint = ModelSource(Path(), name, revision), fingerprint or fingerprint_of(model)
    layout = verify_layout(model, find_layout(model))
    devices = ", ".join(dict.fromkeys(map(str, (layout.device, *layout.devices))))
    info = info_of(model, tokenizer, layout, source, fingerprint, model.dtype, devices)
    freeze_rope(model, info.context_length)
    return LoadedModel(model, opened_tokenizer(tokenizer, model.generation_config, info), layout, info)


def find_source(
    source: str | None, dtype: torch.dtype, cache_dir: Path, revision: str | None, report: Callable[[str], None]
) -> ModelSource:
    """Finds a model's folder; converts a GGUF file and downloads from the hub where that is needed."""
    # every dtype but bfloat16 is loaded from the exact values
    kept = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    if source is None or source.lower() == EMBEDDED_MODEL:
        return ModelSource(converted(embedded_gguf(), kept, cache_dir, report), EMBEDDED_MODEL)
    path = Path(source).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return ModelSource(converted(path, kept, cache_dir, report), path.stem.lower())
    if path.is_dir():
        return ModelSource(path, path.resolve().name)
    if not HUB_ID.fullmatch(source) or path.suffix == ".gguf":
        raise ModelLoadFailed(f"{source!r} is no folder, no .gguf file and no Hugging Face id")
    report(f"Looking for {source} in the Hugging Face cache and hub")
    try:
        folder = snapshot_download(source, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=["*/*"])
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ModelLoadFailed(_download_problem(source, revision, error)) from None
    return ModelSource(Path(folder), source, Path(folder).name)


def _download_problem(source: str, revision: str | None, error: Exception) -> str:
    """Says in one sentence why a model could not be downloaded, and what to do."""
    if isinstance(error, GatedRepoError):
        return f"{source} is gated: accept its licence at https://huggingface.co/{source}, and set HF_TOKEN to a token of that account"
    if isinstance(error, RepositoryNotFoundError):
        return f"{source} is not on the Hugging Face hub, or is private: check the name, or set HF_TOKEN to a token that may read it"
    if isinstance(error, RevisionNotFoundError):
        return f"{source} has no revision {revision!r} on the Hugging Face hub"
    if isinstance(error, HfHubHTTPError):
        return f"{source} could not be downloaded: the Hugging Face hub answered {error.response.status_code}"
    if is_offline_mode():
        return (
            f"{source} is not complete in the Hugging Face cache (HF_HOME), and HF_HUB_OFFLINE forbids to download it"
        )
    return f"{source} could not be downloaded: it is not complete in the Hugging Face cache (HF_HOME), and the hub cannot be reached or fails"


def refuse_other_tasks(config: Any) -> None:
    """Refuses by the configuration, before gigabytes are read."""
    named = ", ".join(config.architectures or ()) or type(config).__name__
    if config.is_encoder_decoder:
        raise UnsupportedModel(f"{named} cannot be steered: it is an encoder-decoder model")
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES | MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise UnsupportedModel(
            f"{named} cannot be steered: {config.model_type!r} is not a language model that generates"
        )


def model_class(config: Any) -> Any:
    """Returns the class that loads a model. Of one that reads images too, the part that reads text is served."""
    return (
        AutoModelForCausalLM if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else AutoModelForImageTextToText
    )


def refuse_by_structure(config: Any) -> None:
    """Raises UnsupportedModel by the structure of the model, built without memory, before gigabytes are read."""
    try:
        with torch.device("meta"):
            model = model_class(config).from_config(config, trust_remote_code=False)
    except Exception:  # some classes compute with numbers while they are built; they are refused after loading
        return
    find_layout(model)


def devices_of(device: torch.device, device_map: Literal["auto"] | None) -> list[torch.device]:
    """Returns the devices that may hold blocks: with a map all CUDA devices, where `device` is one."""
    if device_map is None or device.type != "cuda":
        return [device]
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


def placement(free: Mapping[torch.device, int], plan: MemoryPlan) -> dict[str, Any]:
    """Returns the arguments of `from_pretrained` that place the weights. free: bytes of each device."""
    if len(free) == 1:
        (device,) = free
        return {} if device.type == "cpu" else {"device_map": {"": device}}
    kept = plan.cache // len(free)
    most = {device.index: max(size - kept, 0) for device, size in free.items()}
    return {"device_map": "auto", "max_memory": most}


def quantized_by(quantization: Quantization | None, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Returns the arguments of `from_pretrained` for weights that a method quantizes, or that are quantized in the files (None)."""
    # LLM.int8 logs in every product that it computes in float16
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    options = {} if quantization is None else {"quantization_config": quantizer(quantization, dtype)}
    # some methods take a GPU otherwise where there is one
    return options | {"device_map": {"": "cpu"}} if device.type == "cpu" else options


def refuse_offloading(name: str, model: PreTrainedModel) -> None:
    """Raises OutOfMemory where accelerate left blocks of a spread model on the CPU or the disk, from which each pass would read them."""
    left = [part for part, place in model.hf_device_map.items() if str(place) in ("cpu", "disk")]
    if left:
        raise OutOfMemory(f"{name} does not fit the devices: {len(left)} of its parts are left, {left[0]} first")


def _load_weights(
    folder: Path, auto_class: Any, dtype: torch.dtype, options: Mapping[str, Any], *, cast: bool
) -> tuple[PreTrainedModel, str]:
    """Returns the model, ready to run, and its fingerprint. options: of `from_pretrained`. cast: whether it may be cast to float16."""
    # The fingerprint of a float16 model is taken of the weights as persisted, since rounding twice differs.
    cast = cast and dtype == torch.float16
    model = auto_class.from_pretrained(folder, dtype="auto" if cast else dtype, **WEIGHT_FILES, **options)
    model.eval().requires_grad_(False)
    fingerprint = fingerprint_of(model)
    if cast:
        cast_parameters(model, dtype)
    return model, fingerprint


def cast_parameters(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Casts the parameters of ordinary floating types; packed and 8-bit weights and all buffers keep their dtype."""
    for parameter in model.parameters():
        if parameter.dtype in DTYPES.values():
            parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype


def info_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    layout: Layout,
    source: ModelSource,
    fingerprint: str,
    dtype: torch.dtype,
    device: str,
) -> ModelInfo:
    """Returns the facts of a model, which may have no weights yet. dtype, device: of its weights."""
    stated = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    shared = ("architecture", "d_model", "layer_count", "vocab_size", "hooks", "head_count")
    return ModelInfo(
        **{name: getattr(layout, name) for name in shared},
        name=source.name,
        fingerprint=fingerprint,
        context_length=int(stated or UNLIMITED_CONTEXT),
        dtype=str(dtype).removeprefix("torch."),
        device=device,
        parameter_count=model.num_parameters(),
        chat_template=bool(tokenizer.chat_template),
        revision=source.revision,
    )


def opened_tokenizer(tokenizer: PreTrainedTokenizerFast, generation: Any, info: ModelInfo) -> ModelTokenizer:
    """Opens a tokenizer for a model's vocabulary. Raises ModelLoadFailed where it is not a fast one."""
    if not getattr(tokenizer, "is_fast", False):
        raise ModelLoadFailed(f"{info.name} has no fast tokenizer (tokenizer.json), which streaming needs")
    # every token that ends an answer: those of the generation config (chat models have several) and the tokenizer's
    stated = getattr(generation, "eos_token_id", None)
    eos_ids = {*(stated if isinstance(stated, list | tuple) else (stated,)), tokenizer.eos_token_id} - {None}
    return ModelTokenizer(tokenizer, vocab_size=info.vocab_size, eos_ids=eos_ids, context_length=info.context_length)


def freeze_rope(model: torch.nn.Module, context_length: int) -> None:
    """Makes the frequencies of `longrope` and `dynamic` RoPE constant, which transformers chooses by the longest
    position of a pass. As in vLLM, longrope takes its long set if the served context exceeds the original one;
    dynamic RoPE keeps its first set, which is right up to max_position_embeddings."""
    modules: Iterator[Any] = model.modules()
    for module in modules:
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, str) and _freeze(module, kinds, None, context_length):
            module.rope_type = "default"
        elif isinstance(kinds, dict):  # Gemma 3 and others: one set for each type of layer
            for layer_type, kind in list(kinds.items()):
                if _freeze(module, kind, layer_type, context_length):
                    kinds[layer_type] = "default"


def _freeze(module: Any, kind: str, layer_type: str | None, context_length: int) -> bool:
    """Installs the frequencies of one set. Returns False for a kind whose frequencies never change."""
    if kind != "longrope":
        return "dynamic" in kind
    parameters = module.config.rope_parameters
    original = int((parameters if layer_type is None else parameters[layer_type])["original_max_position_embeddings"])
    if context_length > original:
        name = "inv_freq" if layer_type is None else f"{layer_type}_inv_freq"
        buffer = getattr(module, name)
        options = {} if layer_type is None else {"layer_type": layer_type}
        frequencies, _ = ROPE_INIT_FUNCTIONS[kind](module.config, buffer.device, seq_len=original + 1, **options)
        with torch.no_grad():
            buffer.copy_(frequencies)
    return True


@contextmanager
def _quiet_progress_bars() -> Iterator[None]:
    """Turns off transformers' progress bars: progress goes to `report`."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@contextmanager
def load_errors(name: str) -> Iterator[None]:
    """Translates errors of the libraries."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"{name} does not fit: {error}") from error
    except SteeringError:
        raise
    except Exception as error:  # tokenizers and safetensors raise bare ones
        raise ModelLoadFailed(f"{name} could not be loaded: {error}") from error
