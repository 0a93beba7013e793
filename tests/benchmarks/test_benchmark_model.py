"""A model with random weights that is made for a benchmark loads like one from elsewhere, and our engine results with it."""

from pathlib import Path

import pytest
import torch

from benchmarks.model import LARGE, write_random_llama
from steering.engine.api import GenerationRequest
from steering.engine.transformers.engine import TransformersEngine
from steering.model.loading import load
from tests.engines import run, sampling

TINY = {**LARGE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 2, "head_dim": 16}


async def test_a_random_model_is_made_and_served(tiny_folder: Path, tmp_path: Path) -> None:
    write_random_llama(tmp_path / "random", tiny_folder, TINY)
    loaded = load(str(tmp_path / "random"), cache_dir=tmp_path, device="cpu", dtype="bfloat16")
    assert loaded.info.layer_count == 2
    assert float(loaded.model.get_input_embeddings().weight.float().std()) == pytest.approx(0.02, rel=0.1)
    assert next(loaded.model.parameters()).dtype == torch.bfloat16
    engine = TransformersEngine(loaded)
    assert len((await run(engine, GenerationRequest((1, 2, 3), sampling(5)))).tokens) == 5
    await engine.close()


def test_what_could_not_be_put_in_its_place_leaves_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "random").mkdir()
    (tmp_path / "random" / "something").touch()
    with pytest.raises(OSError, match="random"):
        write_random_llama(tmp_path / "random", tiny_folder, TINY)
    assert [entry.name for entry in tmp_path.iterdir() if "random" in entry.name] == ["random"]
