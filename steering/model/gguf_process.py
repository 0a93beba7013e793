"""Child process that converts one GGUF file, under limits: python -m steering.model.gguf_process FILE DTYPE FOLDER SECONDS."""

import resource
import sys
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

try:
    from transformers import GgufConfig
except ImportError:  # before transformers 5.20 GGUF weights were always dequantized
    GgufConfig = None

ADDRESS_SPACE = 32 << 30
"""Libraries map about 10 GiB of address space before anything is read."""
EXPANSION = 40
"""Bytes in memory per byte of the file: 1.5-bit weights become float32, held twice while they are converted."""


def main(gguf: Path, dtype: str, folder: Path, seconds: int) -> int:
    """Converts the file; prints the reason and returns 1 where that fails."""
    size = gguf.stat().st_size
    _limit(resource.RLIMIT_CPU, seconds)
    _limit(resource.RLIMIT_AS, ADDRESS_SPACE + EXPANSION * size)
    _limit(resource.RLIMIT_FSIZE, (1 << 30) + EXPANSION * size)
    try:
        convert(gguf, getattr(torch, dtype), folder)
    except Exception as error:  # readers of GGUF and of tokenizers raise anything, bare Exception included
        sys.stdout.write(f"{error or type(error).__name__}\n")
        return 1
    return 0


def convert(gguf: Path, dtype: torch.dtype, folder: Path) -> None:
    """Writes the tokenizer and the weights, dequantized to float32 and rounded to dtype, into the folder. Each tensor is rounded as it is read:
    in float32 the whole model would take twice the memory (embedded model: 1,169 instead of 923 MB at most)."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    _repair_pre_tokenizer(tokenizer, gguf)
    tokenizer.save_pretrained(folder)
    options: dict[str, Any] = {} if GgufConfig is None else {"quantization_config": GgufConfig(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=dtype, **options)
    model.save_pretrained(folder)


def _repair_pre_tokenizer(tokenizer: Any, gguf: Path) -> None:
    """SmolLM splits digits off first, so "\\n\\n2" is two tokens; transformers' GGUF reader leaves that step out."""
    field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        backend = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])


def _limit(kind: int, value: int) -> None:
    """Lowers a limit of this process; one that is lower already stays."""
    _, hard = resource.getrlimit(kind)
    allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (allowed, allowed))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])))
