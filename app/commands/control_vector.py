"""GGUF control vectors as llama.cpp reads them: written here, read only in a process of its own under limits.

Tensor `direction.L` (float32, 1-D) is added to the residual after llama.cpp's zero-based block L at every position, so L
is our layer L. llama.cpp has no place for block 0. A direction is written at its natural scale: llama.cpp's scale 1 is our
strength 1, and an imported direction's length becomes its natural scale.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

from steering.errors import InvalidRequest

ARCHITECTURE = "controlvector"
SECONDS = 20.0
"""Longest time a file may take to read. The gguf package does not return from some damaged files."""


def write(
    path: Path, directions: Mapping[int, Sequence[float]], scales: Mapping[int, float], model_hint: str
) -> tuple[int, ...]:
    """The layers written, ascending. directions: unit, (d_model,) each. Raises InvalidRequest when only layer 0 is left."""
    layers = tuple(sorted(layer for layer in directions if layer > 0))
    if not layers:
        raise InvalidRequest(
            "llama.cpp applies control vectors from its second block on, so layer 0 alone cannot be written; "
            "choose other layers",
            param="layers",
        )
    writer = GGUFWriter(path, ARCHITECTURE)
    writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint)
    writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(layers))
    for layer in layers:
        values = np.asarray(directions[layer], dtype=np.float32) * np.float32(scales[layer])
        writer.add_tensor(f"direction.{layer}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return layers


def read(path: Path, seconds: float = SECONDS) -> dict[str, list[float]]:
    """The directions in a file that may come from a stranger, by layer. Raises InvalidRequest for anything else.

    The parser runs in a child process that has so many seconds and limits itself in memory.
    """
    try:
        child = subprocess.run(  # noqa: S603 - our own module, and a path that is only opened
            [sys.executable, "-m", "app.commands.control_vector_reader", str(path)],
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InvalidRequest(f"{path.name}: reading it took longer than {seconds:g} s", param="file") from None
    if child.returncode != 0:
        reason = child.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["the reader ended without a word"]
        raise InvalidRequest(f"{path.name} is no control vector that can be read: {reason[0][:300]}", param="file")
    found: dict[str, Any] = json.loads(child.stdout)
    return found
