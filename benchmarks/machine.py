"""Describes the machine of a run: processor, memory, versions and load."""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

BUSY = 0.5
"""Load average above which results are too low."""
INTERESTING = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "amx_int8")


def describe(device: str = "cpu") -> dict[str, Any]:
    """Returns a description of the machine. accelerator: name of the CUDA device, if used. load: load average of the last minute."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _field(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine(),
        "accelerator": None if device == "cpu" else torch.cuda.get_device_name(device),
        "processors": len(os.sched_getaffinity(0)),
        "instructions": [
            name for name in INTERESTING if name in (_field(Path("/proc/cpuinfo"), "flags") or "").split()
        ],
        "memory": _field(Path("/proc/meminfo"), "MemTotal") or "unknown",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "commit": _commit(),
        "load": os.getloadavg()[0],
    }


def file_name(machine: dict[str, Any]) -> str:
    """Returns <date>-<processor or accelerator>-<processors>.json."""
    name = machine.get("accelerator") or machine["processor"]
    processor = re.sub(r"[^a-z0-9]+", "-", str(name).lower().replace("(r)", "")).strip("-")
    return f"{machine['date'][:10]}-{processor}-{machine['processors']}.json"


def _field(file: Path, name: str) -> str | None:
    """Returns the first value of a name in a file of `name : value` lines, or None."""
    if not file.exists():
        return None
    found = re.search(rf"^{re.escape(name)}\s*:\s*(.*)$", file.read_text(), re.MULTILINE)
    return found[1].strip() if found else None


def _commit() -> str:
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
