"""What a device has left for a process."""

from pathlib import Path

import psutil
import torch

from steering.model.device import container_memory, free_memory


def test_the_processors_free_memory_is_within_the_machine() -> None:
    assert 0 < free_memory(torch.device("cpu")) <= psutil.virtual_memory().total


def test_a_containers_limit_is_less_than_the_machines(tmp_path: Path) -> None:
    assert container_memory(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    assert container_memory(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 250\n")
    assert container_memory(tmp_path) == 550
