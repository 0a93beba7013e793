"""Writes GGUF control vectors as llama.cpp reads them.

Tensor `direction.L` (float32, 1-D) is added to the residual after llama.cpp's zero-based block L at every position, so L
is our layer L. llama.cpp has no place for block 0. A direction is written at its natural scale: llama.cpp's scale 1 is our
strength 1.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from gguf import GGUFWriter

from steering.errors import InvalidRequest

ARCHITECTURE = "controlvector"


def control_vector(directions: Mapping[int, Sequence[float]], scales: Mapping[int, float], model_hint: str) -> bytes:
    """The file. directions: unit, (d_model,) each, by layer; scales: natural scale of each.

    Raises InvalidRequest for layer 0 and for no layer at all.
    """
    if 0 in directions:
        raise InvalidRequest(
            "llama.cpp applies control vectors from its second block on, so layer 0 cannot be written; name other layers",
            param="layers",
        )
    if not directions:
        raise InvalidRequest("a control vector needs at least one layer above 0", param="layers")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "vector.gguf"
        writer = GGUFWriter(path, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(directions))
        for layer in sorted(directions):
            values = np.asarray(directions[layer], dtype=np.float32) * np.float32(scales[layer])
            writer.add_tensor(f"direction.{layer}", values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()
