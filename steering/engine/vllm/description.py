"""Describes a model without loading it into this process's memory, for engines that load it elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from steering.model.device import choose_device, choose_dtype
from steering.model.embedded import EMBEDDED_MODEL
from steering.model.fingerprint import fingerprint_of, fingerprint_of_files
from steering.model.info import ModelInfo
from steering.model.layout import find_layout
from steering.model.loading import (
    ModelSource,
    find_source,
    info_of,
    load_errors,
    opened_tokenizer,
    refuse_other_tasks,
)
from steering.model.prompt import ModelTokenizer


@dataclass(frozen=True, slots=True, eq=False)
class DescribedModel:
    """A model's folder, its tokenizer and its facts, equal to those of `load`."""

    folder: Path
    tokenizer: ModelTokenizer
    info: ModelInfo


def describe(
    source: str | None,
    *,
    cache_dir: Path,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    report: Callable[[str], None] = lambda _line: None,
) -> DescribedModel:
    """Describes a model that `load` would load; the arguments are the same.

    Raises ModelLoadFailed, UnsupportedModel, OutOfMemory, and InvalidRequest for a device or dtype.
    """
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    with load_errors(source or EMBEDDED_MODEL):
        found = find_source(source, chosen_dtype, cache_dir, revision, report)
        config = AutoConfig.from_pretrained(found.folder, local_files_only=True, trust_remote_code=False)
        refuse_other_tasks(config)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        layout = find_layout(model)
        tokenizer = AutoTokenizer.from_pretrained(found.folder, local_files_only=True, trust_remote_code=False)
        fingerprint = _fingerprint(model, found)
        info = info_of(model, tokenizer, layout, found, fingerprint, chosen_dtype, chosen_device)
    return DescribedModel(
        found.folder, opened_tokenizer(tokenizer, _generation_config(model, found.folder), layout, found), info
    )


def _fingerprint(model: PreTrainedModel, found: ModelSource) -> str:
    fingerprint = fingerprint_of_files(model, found.folder)
    if fingerprint is not None:
        return fingerprint
    loaded = AutoModelForCausalLM.from_pretrained(
        found.folder, dtype="auto", local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    return fingerprint_of(loaded)


def _generation_config(model: PreTrainedModel, folder: Path) -> GenerationConfig:
    """Returns what the folder states, or what the architecture's config implies."""
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.generation_config
