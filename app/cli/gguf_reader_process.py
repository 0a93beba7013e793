"""Reads one GGUF control vector and prints its directions as JSON. Runs as a process of its own, under limits it sets."""

import json
import math
import re
import resource
import sys
import warnings
from pathlib import Path

from gguf import GGMLQuantizationType, GGUFReader

LARGEST_FILE = 512 << 20
MEMORY = 4 << 30
"""Bytes of address space: the interpreter, numpy, and a file mapped and copied."""
PROCESSOR_SECONDS = 15
LAYERS = 512
LONGEST = 1 << 20
_NAME = re.compile(r"direction\.([1-9][0-9]{0,3})")


def directions(path: Path) -> dict[str, list[float]]:
    """layer -> values (d_model,). Raises ValueError for what is no control vector."""
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise ValueError(f"the file has {size} bytes; at most {LARGEST_FILE} are read")
    found: dict[str, list[float]] = {}
    for tensor in GGUFReader(path).tensors:
        name = _NAME.fullmatch(tensor.name)
        if name is None:
            raise ValueError(f"tensor {tensor.name[:60]!r} is not named direction.<layer>, layer from 1 on")
        if tensor.tensor_type != GGMLQuantizationType.F32 or tensor.data.ndim != 1 or tensor.data.size > LONGEST:
            raise ValueError(f"tensor {tensor.name} is not a float32 vector")
        values = [float(value) for value in tensor.data]
        if not all(map(math.isfinite, values)):
            raise ValueError(f"tensor {tensor.name} holds NaN or infinity")
        found[name.group(1)] = values
        if len(found) > LAYERS:
            raise ValueError(f"more than {LAYERS} directions")
    if not found:
        raise ValueError("the file holds no direction")
    if len({len(values) for values in found.values()}) > 1:
        raise ValueError("its directions differ in length")
    return found


def main() -> None:
    """Prints JSON and ends with 0, or prints the reason and ends with 1."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS))
    warnings.simplefilter("ignore")
    try:
        print(json.dumps(directions(Path(sys.argv[1])), allow_nan=False))
    except Exception as error:
        print(f"{error or type(error).__name__}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
