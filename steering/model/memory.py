"""Measures the memory of a model's device, from which an engine derives the size of its key-value cache."""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import psutil
import torch
from torch import nn

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes of a device. total: what a process may use of it. free: what can still be allocated. model: the weights
    and buffers that are loaded already."""

    total: int
    free: int
    model: int


def measure_memory(model: nn.Module, device: torch.device) -> DeviceMemory:
    """Returns the memory of the device as it is now, with the model loaded."""
    size = model_bytes(model)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        return DeviceMemory(total, free, size)
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    limit = container_limit(CGROUP)
    if limit is not None:  # a container may be allowed less than the machine has
        total, free = min(total, limit[0]), min(free, limit[1])
    return DeviceMemory(total, free, size)


def model_bytes(model: nn.Module) -> int:
    """Returns the bytes of all parameters and buffers; tensors that share storage count once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in chain(model.parameters(), model.buffers())
    }
    return sum(storages.values())


def container_limit(folder: Path) -> tuple[int, int] | None:
    """Returns (limit, free) of the control group of this process (version 2); None where there is no limit.

    Pages of files that the kernel can drop count as free.
    """
    try:
        limit = (folder / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((folder / "memory.current").read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        reclaimable = int(statistics.get("inactive_file", 0))
    except (OSError, ValueError):
        return None
    return int(limit), max(0, int(limit) - used + reclaimable)
