"""What is known before vLLM starts: whether its version was tested, and the model, which is described without loading it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from steering.engine.options import EngineOptions
from steering.errors import InvalidRequest, ModelLoadFailed
from steering.model.device import choose_device, choose_dtype
from steering.model.fingerprint import fingerprint_of, fingerprint_of_files
from steering.model.info import ModelInfo
from steering.model.layout import find_layout
from steering.model.loading import (
    WEIGHT_FILES,
    find_source,
    info_of,
    load_errors,
    model_class,
    opened_tokenizer,
    refuse_other_tasks,
)
from steering.model.prompt import ModelTokenizer
from steering.model.verification import with_named_hook_points

PLUGIN_VERSION = "3"
"""Part of the key of vLLM's compiled graphs, which do not know of hooks otherwise: a graph compiled without them, or with
other ones, would be loaded and nothing steered. To be raised with every change of what the hooks call."""

KNOWN: dict[str, str] = {"0.32": "model runners V1 and V2, run on the CPU build, V2 with Triton's interpreter"}
"""Release of vLLM -> what was run with it. This engine reads what vLLM calls internal, which a release may change."""


def check_version(version: str, *, untested: bool) -> None:
    """Raises ModelLoadFailed for a release that is not in the table, unless the operator accepts it."""
    release = ".".join(version.split("+", maxsplit=1)[0].split(".")[:2])
    if release not in KNOWN and not untested:
        raise ModelLoadFailed(
            f"vLLM {version} is not among the versions that this engine was tested with ({', '.join(KNOWN)}); "
            "install one of them, or start with --vllm-untested"
        )


@dataclass(frozen=True, slots=True, eq=False)
class DescribedModel:
    """A model's folder, its tokenizer and its facts, equal to those of `load`; its hook points are those that transformers' modules have by
    their names."""

    folder: Path
    tokenizer: ModelTokenizer
    info: ModelInfo


def describe(options: EngineOptions) -> DescribedModel:
    """Describes a model that `load` would load.

    Raises ModelLoadFailed, UnsupportedModel, OutOfMemory, and InvalidRequest for a device or dtype and for settings of the engine
    'transformers'.
    """
    given = {
        "device_map": options.device_map is not None,
        "quantization": options.quantization is not None,
        "weights": options.weights not in {"auto", "dtype"},
    }
    if param := next((name for name, is_given in given.items() if is_given), None):
        raise InvalidRequest(
            f"{param} is of the engine 'transformers'; vLLM spreads a model by tensor_parallel_size and runs weights that are "
            "quantized in the files",
            param=param,
        )
    device = choose_device(options.device)
    if device.type == "mps" and options.device != "auto":
        raise InvalidRequest(
            "the engine 'vllm' does not run on Apple's GPUs: choose cpu, or the engine 'transformers'", param="device"
        )
    device = torch.device("cpu") if device.type == "mps" else device
    dtype = choose_dtype(options.dtype, device)
    with load_errors(options.model):
        found = find_source(options.model, dtype, options.cache_dir, options.revision, options.report)
        config = AutoConfig.from_pretrained(found.folder, local_files_only=True, trust_remote_code=False)
        refuse_other_tasks(config)
        with torch.device("meta"):
            model = model_class(config).from_config(config, trust_remote_code=False)
        layout = with_named_hook_points(model, find_layout(model))
        tokenizer = AutoTokenizer.from_pretrained(found.folder, local_files_only=True, trust_remote_code=False)
        fingerprint = fingerprint_of_files(model, found.folder)
        if not fingerprint:
            weights = model_class(config).from_pretrained(found.folder, dtype="auto", **WEIGHT_FILES)
            fingerprint = fingerprint_of(weights)
            del weights
        info = info_of(model, tokenizer, layout, found, fingerprint, dtype, str(device))
    generation = model.generation_config  # what the architecture's config implies
    if (found.folder / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(found.folder, local_files_only=True)
    return DescribedModel(found.folder, opened_tokenizer(tokenizer, generation, info), info)
