"""Reads llama.cpp control vectors (GGUF). app/services/gguf_export.py describes the format.

The file is untrusted input and the gguf package hangs on some damaged files, so it is parsed in a child process, which
runs this module as a program under limits of memory and time.
"""

import json
import math
import re
import resource
import subprocess
import sys
import warnings
from pathlib import Path

from steering.errors import InvalidRequest

TIMEOUT_SECONDS = 20.0
CPU_SECONDS = 15
ADDRESS_SPACE = 4 << 30
"""Bytes: the interpreter, numpy, and a file that is mapped and copied."""
MAX_FILE_BYTES = 512 << 20
MAX_LAYERS = 512
MAX_D_MODEL = 1 << 20
_TENSOR_NAME = re.compile(r"direction\.([1-9][0-9]{0,3})")


def read_control_vector(path: Path, timeout: float = TIMEOUT_SECONDS) -> dict[str, list[float]]:
    """Returns the directions by layer. The length of a direction is its natural scale. Raises InvalidRequest."""
    try:
        child = subprocess.run(  # noqa: S603 - this module, and a path that is only opened
            [sys.executable, "-P", "-m", "app.cli.formats.gguf_import", str(path)],
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InvalidRequest(f"{path.name}: reading it took longer than {timeout:g} s", param="file") from None
    if child.returncode != 0:
        reason = child.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["the parser printed no reason"]
        raise InvalidRequest(f"{path.name} is not a readable control vector: {reason[0][:300]}", param="file")
    directions: dict[str, list[float]] = json.loads(child.stdout)
    return directions


def parse_control_vector(path: Path) -> dict[str, list[float]]:
    """Parses a file in this process: layer -> values (d_model,). Raises ValueError for any other content."""
    from gguf import GGMLQuantizationType, GGUFReader  # noqa: PLC0415 - 0.1 s, only needed in the child process

    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(f"the file has {size} bytes, at most {MAX_FILE_BYTES} are allowed")
    directions: dict[str, list[float]] = {}
    for tensor in GGUFReader(path).tensors:
        name = _TENSOR_NAME.fullmatch(tensor.name)
        if name is None:
            raise ValueError(f"tensor {tensor.name[:60]!r} is not named direction.<layer>, layer from 1 on")
        if tensor.tensor_type != GGMLQuantizationType.F32 or tensor.data.ndim != 1 or tensor.data.size > MAX_D_MODEL:
            raise ValueError(f"tensor {tensor.name} is not a float32 vector")
        values = [float(value) for value in tensor.data]
        if not all(map(math.isfinite, values)):
            raise ValueError(f"tensor {tensor.name} contains NaN or infinity")
        directions[name.group(1)] = values
        if len(directions) > MAX_LAYERS:
            raise ValueError(f"more than {MAX_LAYERS} directions")
    if not directions:
        raise ValueError("the file contains no direction")
    if len({len(values) for values in directions.values()}) > 1:
        raise ValueError("the directions differ in length")
    return directions


def main() -> None:
    """Prints the directions as JSON and exits with 0, or prints the reason and exits with 1."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    warnings.simplefilter("ignore")
    try:
        sys.stdout.write(json.dumps(parse_control_vector(Path(sys.argv[1])), allow_nan=False))
    except Exception as error:  # untrusted input: numpy and gguf raise many types
        sys.stderr.write(f"{error or type(error).__name__}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
