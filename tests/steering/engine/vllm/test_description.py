"""A model described from its files has the facts of the loaded one, its fingerprint above all."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from steering.engine.options import EngineOptions
from steering.engine.vllm.description import describe
from steering.errors import InvalidRequest, ModelLoadFailed
from steering.model.loading import load
from tests.families import FAMILIES


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2", "qwen2", "mixtral"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_description_equals_what_loading_finds(
    family: str, dtype: str, hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = tmp_path / family
    FAMILIES[family]().save_pretrained(folder)
    hf_byte_tokenizer.save_pretrained(folder)
    described = describe(EngineOptions(str(folder), tmp_path, device="cpu", dtype=dtype))
    loaded = load(str(folder), cache_dir=tmp_path, device="cpu", dtype=dtype)
    assert described.info == loaded.info
    assert described.tokenizer.eos_ids == loaded.tokenizer.eos_ids
    assert described.folder == folder


@pytest.mark.parametrize("setting", [{"device_map": "auto"}, {"quantization": "torchao-int8"}], ids=str)
def test_settings_of_the_other_engine_are_refused_by_name(setting: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="is of the engine 'transformers'") as refusal:
        describe(EngineOptions(str(tmp_path), tmp_path, **setting))
    assert refusal.value.param in setting


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed):
        describe(EngineOptions(str(tmp_path), tmp_path))
