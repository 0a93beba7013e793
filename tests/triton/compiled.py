"""Compiles the kernel of edits for GPUs, which needs none, and prints a line of JSON for each: what it takes of the device."""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from steering.injection.kernel import _edit, warps_of

POINTERS = {
    **dict.fromkeys(("residual", "after"), "*bf16"),
    **dict.fromkeys(("codes", "rows", "slots"), "*i64"),
    **dict.fromkeys(("vectors", "numbers", "weights", "left", "edits", "changes", "scaled"), "*fp32"),
}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def compiled(architecture: int, width: int, wide: int) -> dict[str, int]:
    """Returns the registers of a thread, and the bytes of its stack, which holds what registers do not."""
    constants = {"width": width, "block": triton.next_power_of_2(width), "wide": wide}
    kinds = {name: POINTERS.get(name, "constexpr" if name in constants else "i32") for name in _edit.arg_names}
    aligned = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(kinds) if name in POINTERS}
    warps = warps_of(constants["block"])
    kernel = triton.compile(
        ASTSource(_edit, kinds, constants, aligned),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": warps},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert usage is not None, said
    return {"width": width, "warps": warps, "registers": int(usage[1]), "stack": int(usage[2])}


if __name__ == "__main__":
    for architecture, width, wide in ((80, 576, 2), (80, 4096, 4), (90, 4096, 64), (90, 8192, 4)):
        print(json.dumps({"architecture": architecture, **compiled(architecture, width, wide)}))
