"""Describes a model without loading it into this process's memory, for engines that load it elsewhere."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from steering.engine.options import EngineOptions
from steering.model.device import choose_device, choose_dtype
from steering.model.fingerprint import fingerprint_of, fingerprint_of_files
from steering.model.info import ModelInfo
from steering.model.layout import find_layout
from steering.model.loading import find_source, info_of, load_errors, opened_tokenizer, refuse_other_tasks
from steering.model.prompt import ModelTokenizer


@dataclass(frozen=True, slots=True, eq=False)
class DescribedModel:
    """A model's folder, its tokenizer and its facts, equal to those of `load`."""

    folder: Path
    tokenizer: ModelTokenizer
    info: ModelInfo


def describe(options: EngineOptions) -> DescribedModel:
    """Describes a model that `load` would load.

    Raises ModelLoadFailed, UnsupportedModel, OutOfMemory, and InvalidRequest for a device or dtype.
    """
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    with load_errors(options.model):
        found = find_source(options.model, dtype, options.cache_dir, options.revision, options.report)
        config = AutoConfig.from_pretrained(found.folder, local_files_only=True, trust_remote_code=False)
        refuse_other_tasks(config)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        layout = find_layout(model)
        tokenizer = AutoTokenizer.from_pretrained(found.folder, local_files_only=True, trust_remote_code=False)
        fingerprint = fingerprint_of_files(model, found.folder) or _fingerprint_of_weights(found.folder)
        info = info_of(model, tokenizer, layout, found, fingerprint, dtype, device)
    generation = _generation_config(model, found.folder)
    return DescribedModel(found.folder, opened_tokenizer(tokenizer, generation, info), info)


def _fingerprint_of_weights(folder: Path) -> str:
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    return fingerprint_of(loaded)


def _generation_config(model: PreTrainedModel, folder: Path) -> GenerationConfig:
    """Returns what the folder states, or what the architecture's config implies."""
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.generation_config
