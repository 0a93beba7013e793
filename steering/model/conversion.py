"""A GGUF file to a folder of safetensors and a tokenizer, once: what the next start reads in a second."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from steering.errors import ModelLoadFailed

try:
    from transformers import GgufConfig
except ImportError:  # before transformers 5.20 GGUF weights were always dequantized
    GgufConfig = None

FORMAT = 1
"""Part of a folder's name: raised when what is written changes, so that old folders are left alone."""


def converted(gguf: Path, dtype: torch.dtype, cache_dir: Path, report: Callable[[str], None]) -> Path:
    """The folder made from this file, made now if it is not there. Raises ModelLoadFailed.

    dtype float32 keeps exactly what the file says: its 4-bit blocks are scale times integer plus offset in float32,
    which neither bfloat16 nor float16 can hold. Any other dtype gets a folder of its own, half the size, whose values
    are those float32 ones rounded once.
    """
    name = str(dtype).removeprefix("torch.")
    folder = cache_dir / f"gguf-{_digest(gguf, cache_dir)[:24]}-{name}-{FORMAT}"
    if folder.is_dir():
        return folder
    report(f"Converting {gguf.name} to {name} safetensors, once")
    cache_dir.mkdir(parents=True, exist_ok=True)
    working = Path(tempfile.mkdtemp(prefix=".converting-", dir=cache_dir))
    try:
        _convert(gguf, dtype, working)
        _publish(working, folder)
    except Exception as error:  # readers of GGUF and of tokenizers raise whatever they like, bare Exception included
        raise ModelLoadFailed(f"{gguf.name} could not be converted: {error}") from error
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return folder


def _convert(gguf: Path, dtype: torch.dtype, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    _repair_pre_tokenizer(tokenizer, gguf)
    tokenizer.save_pretrained(folder)
    options: dict[str, Any] = {} if GgufConfig is None else {"quantization_config": GgufConfig(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **options)
    model.to(dtype).save_pretrained(folder)


def _repair_pre_tokenizer(tokenizer: Any, gguf: Path) -> None:
    """SmolLM splits off each digit before anything else, so "\\n\\n2" is two tokens; the reader of GGUF forgets that."""
    field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        backend = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])


def _publish(working: Path, folder: Path) -> None:
    """Rename is atomic: a folder is whole or absent. Of two processes that convert at once, the second finds it there."""
    working.chmod(0o755)
    try:
        working.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _digest(path: Path, cache_dir: Path) -> str:
    """SHA-256 of a file, remembered beside the folders for as long as its size and time of change stay the same."""
    status = path.stat()
    identity = json.dumps([str(path.resolve()), status.st_size, status.st_mtime_ns])
    memory = cache_dir / f"digest-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.txt"
    if memory.is_file():
        return memory.read_text()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=cache_dir, prefix=".digest-", delete=False) as written:
        written.write(digest)
    Path(written.name).rename(memory)
    return digest
