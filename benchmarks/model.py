"""What is measured: the embedded model on the processor, or on a CUDA device a model of 2 B parameters with random weights."""

import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.contenders.open_engine import cache_dir, model_folder
from steering.model.embedded import EMBEDDED_MODEL

LARGE: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
"""Llama, as models of this size are made; with the embedded model's vocabulary 2.0 B parameters. No hub is needed, and what a
pass costs does not depend on what the weights are."""


@dataclass(frozen=True, slots=True)
class Subject:
    """source: the model as our engine takes it; folder: as every other side reads it; device: where all of them run it."""

    source: str
    folder: str
    device: str = "cpu"

    def options(self) -> dict[str, Any]:
        """For a side's process."""
        return asdict(self)


def subject_for(device: str) -> Subject:
    """Made at the first call, kept in the cache."""
    embedded = model_folder()
    if device == "cpu":
        return Subject(EMBEDDED_MODEL, str(embedded))
    folder = cache_dir() / "benchmark-llama-random"
    if not folder.is_dir():
        write_random_llama(folder, embedded, LARGE)
    return Subject(str(folder), str(folder), device)


def write_random_llama(folder: Path, tokenizer: Path, shape: dict[str, Any]) -> None:
    """A model folder, whole or not at all, in bfloat16, with the tokenizer of another folder."""
    words = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    config = LlamaConfig(vocab_size=len(words), eos_token_id=words.eos_token_id, bos_token_id=None, **shape)
    working = Path(tempfile.mkdtemp(prefix=".random-", dir=folder.parent))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(working)
        words.save_pretrained(working)
        working.rename(folder)
    finally:
        shutil.rmtree(working, ignore_errors=True)
