"""Model folders for vLLM."""

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from tests.families import LLAMA_LIKE, build


def save_tiny(folder: Path, tokenizer: PreTrainedTokenizerFast, **settings: object) -> Path:
    """Saves a tiny Llama with heads of 32, the smallest that vLLM's CPU attention knows."""
    build("LlamaForCausalLM", **{**LLAMA_LIKE, "head_dim": 32, **settings}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
