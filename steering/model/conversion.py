"""Converts a GGUF file to a folder of safetensors and a tokenizer, once, in a child process under limits; later starts
read the folder.

The child runs `python -m steering.model.conversion FILE DTYPE FOLDER SECONDS`.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steering.errors import ModelLoadFailed
from steering.model.blocks import write_blocks
from steering.model.cache_folder import CONVERTING, remove_abandoned, scratch_folder

BIAS_SETTINGS = ("mlp_bias", "attention_bias", "use_bias", "bias")
"""Fields of configurations that give linear layers a bias."""
FORMAT = 3
"""Part of a folder's name: raised when what is written changes, so that old folders are not used."""
GIB = 1 << 30
SECONDS = 900
SECONDS_PER_GIB = 600
"""Processor time that a conversion may take; the largest models are read at more than 10 MB/s."""
ADDRESS_SPACE = 32 << 30
"""Libraries map about 10 GiB of address space before anything is read."""
EXPANSION = 40
"""Bytes in memory per byte of the file: 1.5-bit weights become float32, held twice while they are converted."""


def converted(gguf: Path, dtype: torch.dtype, cache_dir: Path, report: Callable[[str], None]) -> Path:
    """Returns the folder made from this file, converting it if need be. Raises ModelLoadFailed. float32 keeps the exact
    values of the file; any other dtype gets a folder of its own, half the size, with those values rounded once."""
    remove_abandoned(cache_dir)
    name = str(dtype).removeprefix("torch.")
    folder = cache_dir / f"gguf-{_digest(gguf, cache_dir)[:24]}-{name}-{FORMAT}"
    if folder.is_dir():
        return folder
    report(f"Converting {gguf.name} to {name} safetensors, once")
    cache_dir.mkdir(parents=True, exist_ok=True)
    try:
        with scratch_folder(cache_dir, CONVERTING) as scratch:
            working = scratch / folder.name
            working.mkdir(mode=0o755)
            _convert_in_child(gguf, name, working)
            try:
                working.rename(folder)  # atomic
            except OSError:
                if not folder.is_dir():  # otherwise another process has converted the file meanwhile
                    raise
    except OSError as error:
        raise ModelLoadFailed(f"{gguf.name} could not be converted: {error}") from error
    return folder


def _convert_in_child(gguf: Path, dtype: str, folder: Path) -> None:
    """Parses the file in a process with limits: a file from elsewhere may make a parser loop or ask for any memory."""
    seconds = SECONDS + SECONDS_PER_GIB * gguf.stat().st_size // GIB
    command = [sys.executable, "-P", "-m", "steering.model.conversion", str(gguf), dtype, str(folder), str(seconds)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    try:
        child = subprocess.run(  # noqa: S603 - this module
            command, capture_output=True, text=True, env=environment, timeout=2 * seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise ModelLoadFailed(f"{gguf.name} could not be converted within {2 * seconds} seconds") from None
    if child.returncode != 0:
        reason = child.stdout.strip() or f"the converter ended with status {child.returncode}"
        raise ModelLoadFailed(f"{gguf.name} could not be converted: {reason}")


def _digest(path: Path, cache_dir: Path) -> str:
    """Returns the SHA-256 of a file, cached for as long as its path, size and time of change stay the same."""
    status = path.stat()
    identity = json.dumps([str(path.resolve()), status.st_size, status.st_mtime_ns])
    cached = cache_dir / f"digest-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.txt"
    if cached.is_file():
        return cached.read_text()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=cache_dir, prefix=".digest-", delete=False) as written:
        written.write(digest)
    Path(written.name).rename(cached)
    return digest


def main(gguf: Path, dtype: str, folder: Path, seconds: int) -> int:
    """Converts the file in the child; prints the reason and returns 1 where that fails."""
    import resource  # noqa: PLC0415 - not on every system, and needed in the child only

    size = gguf.stat().st_size
    for kind, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, ADDRESS_SPACE + EXPANSION * size),
        (resource.RLIMIT_FSIZE, GIB + EXPANSION * size),
    ):
        hard = resource.getrlimit(kind)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (allowed, allowed))
    try:
        _convert(gguf, getattr(torch, dtype), folder)
    except Exception as error:  # readers of GGUF and of tokenizers raise anything, bare Exception included
        sys.stdout.write(f"{error or type(error).__name__}\n")
        return 1
    return 0


def _convert(gguf: Path, dtype: torch.dtype, folder: Path) -> None:
    """Writes the tokenizer and the weights, dequantized and rounded as read; in bfloat16 also blocks for our kernels."""
    import transformers  # noqa: PLC0415 - in the child only
    from gguf import GGUFReader  # noqa: PLC0415
    from tokenizers import pre_tokenizers  # noqa: PLC0415

    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    reader = GGUFReader(gguf)
    field = reader.get_field("tokenizer.ggml.pre")
    # SmolLM splits digits off first, so "\n\n2" is two tokens; transformers' GGUF reader leaves that step out.
    if field is not None and field.contents() == "smollm":
        backend = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    tokenizer.save_pretrained(folder)
    # before transformers 5.20 there is no GgufConfig, and GGUF weights are always dequantized
    config = getattr(transformers, "GgufConfig", None)
    options: dict[str, Any] = {} if config is None else {"quantization_config": config(dequantize=True)}
    options |= {"gguf_file": gguf.name, "dtype": dtype, "use_kernels": False}
    model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, **options)
    _add_biases(reader, model)
    model.save_pretrained(folder)
    if dtype == torch.bfloat16:
        write_blocks(reader, model, folder)


def gguf_names(reader: Any, model: Any) -> dict[str, str]:
    """Returns the names that the weights of modules have in a GGUF file, by those that they have in a model."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map  # noqa: PLC0415 - in the child, and where such a file is written

    architecture = reader.fields["general.architecture"].contents()
    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(kind, model.config.get_text_config().num_hidden_layers)
    return {ours: theirs for ours, _ in model.named_modules() if (theirs := names.get_name(ours)) is not None}


def _add_biases(reader: Any, model: Any) -> None:
    """Gives a model the biases of attention's and the MLP's output that llama.cpp reads in files of Llama, and
    transformers does not. Raises ModelLoadFailed for others that no module of the model has."""
    stored = {tensor.name: tensor.data for tensor in reader.tensors if tensor.name.endswith(".bias")}
    missing = {
        ours: f"{theirs}.bias"
        for ours, theirs in gguf_names(reader, model).items()
        if f"{theirs}.bias" in stored and getattr(model.get_submodule(ours), "bias", None) is None
    }
    unread = [name for name in missing.values() if not name.endswith(("attn_output.bias", "ffn_down.bias"))]
    if unread or (missing and not give_biases(model, list(missing))):
        raise ModelLoadFailed(f"{type(model).__name__} of transformers does not read {[*unread, *missing.values()][0]}")
    for ours, name in missing.items():
        model.get_submodule(ours).bias.copy_(torch.tensor(stored[name]))


def give_biases(model: Any, names: Sequence[str]) -> bool:
    """Sets fields of the configuration until the layers have biases, zeros at first. Returns False where none does."""
    config = model.config.get_text_config()
    for setting in BIAS_SETTINGS:
        if getattr(config, setting, None) is not False:
            continue
        setattr(config, setting, True)
        with torch.device("meta"):
            other = dict(type(model)._from_config(model.config).named_parameters())
        if any(f"{name}.bias" in other for name in names):
            own = dict(model.named_parameters())
            for name in other.keys() - own.keys():
                module = model.get_submodule(name.rpartition(".")[0])
                weight = next(module.parameters())
                bias = torch.zeros(other[name].shape, dtype=weight.dtype, device=weight.device)
                module.register_parameter("bias", nn.Parameter(bias, requires_grad=False))
            if all(model.get_submodule(name).bias is not None for name in names):
                return True
        else:
            setattr(config, setting, False)
    return False


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])))
