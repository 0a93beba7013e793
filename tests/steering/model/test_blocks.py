"""The blocks of a GGUF file are kept beside the converted model, for the layers whose weights they mean."""

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from torch import nn
from transformers import PreTrainedModel

from steering.engine.options import EngineOptions
from steering.engine.transformers.factory import chosen_weights, open_engine
from steering.errors import InvalidRequest
from steering.model.blocks import BYTES, INPUTS, packed_bytes, read_blocks
from steering.model.loading import LoadedModel, load
from tests.families import FAMILIES
from tests.narrowing import present
from tests.steering.model.tiny_gguf import PARTS, write_tiny_gguf

FORMATS = {
    "attn_q": "Q4_0",
    "attn_k": "Q5_0",
    "attn_v": "Q4_1",
    "attn_output": "Q5_1",
    "ffn_gate": "Q8_0",
    "ffn_down": "F16",
}


def loaded_from(model: PreTrainedModel, folder: Path, dtype: str = "bfloat16") -> LoadedModel:
    write_tiny_gguf(model, folder / "tiny.gguf", FORMATS)
    return load(str(folder / "tiny.gguf"), cache_dir=folder / "cache", device="cpu", dtype=dtype)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The tiny model in bfloat16, with blocks of FORMATS."""
    return loaded_from(FAMILIES["llama"](), tmp_path_factory.mktemp("blocks"))


def test_blocks_mean_the_weights_of_the_loaded_model(loaded: LoadedModel) -> None:
    """The rows of queries and keys have another order in the file."""
    blocks = read_blocks(present(loaded.folder))
    layers = {name: layer for name, layer in loaded.model.named_modules() if isinstance(layer, nn.Linear)}
    expected = {name: FORMATS.get(PARTS.get(name.split(".", 3)[-1], ""), "F32") for name in layers}
    assert {name: found.format for name, found in blocks.items()} == {
        name: form for name, form in expected.items() if form in INPUTS
    }
    for name, (form, rows) in blocks.items():
        weight = torch.from_numpy(dequantize(rows.numpy(), GGMLQuantizationType[form])).to(torch.bfloat16)
        assert torch.equal(weight, layers[name].weight)


def test_other_dtypes_have_none(tiny_model: PreTrainedModel, tmp_path: Path) -> None:
    assert read_blocks(present(loaded_from(tiny_model, tmp_path, "float32").folder)) == {}


def test_the_plan_counts_blocks_in_place_of_the_weights_that_they_mean(loaded: LoadedModel, tmp_path: Path) -> None:
    folder = present(loaded.folder)
    stored = sum(rows.numel() for _, rows in read_blocks(folder).values())
    dense = sum(rows.numel() // BYTES[form] * INPUTS[form] * 2 for form, rows in read_blocks(folder).values())
    assert packed_bytes(folder, "gguf", dense + 1000) == 1000 + int(1.1 * stored)
    assert packed_bytes(folder, "dtype", dense) == 2 * dense
    assert packed_bytes(tmp_path, "auto", dense) == 2 * dense


def test_weights_that_no_kernel_multiplies_are_refused(
    tiny_loaded: LoadedModel, tiny_folder: Path, tmp_path: Path
) -> None:
    """Float32; and a folder has no blocks."""
    for weights in ("gguf", "int8"):
        with pytest.raises(InvalidRequest, match=f"weights '{weights}' needs .* this model is float32 on cpu"):
            open_engine(EngineOptions(str(tiny_folder), tmp_path, device="cpu", dtype="float32", weights=weights))
    assert chosen_weights(tiny_loaded, "auto", kernels=True) == "dtype"
