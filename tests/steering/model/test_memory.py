"""What a device has, is left with, and holds of a model."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from steering.model.device import container_limit, measure_memory, model_bytes


def test_tied_weights_count_once(tiny_model: PreTrainedModel) -> None:
    numbers = sum(weight.numel() for weight in tiny_model.parameters())
    buffers = sum(buffer.nbytes for buffer in tiny_model.buffers())
    assert model_bytes(tiny_model) == 4 * numbers + buffers
    shared = nn.Linear(8, 8, bias=False)
    tied = nn.Linear(8, 8, bias=False)
    tied.weight = shared.weight
    assert model_bytes(nn.Sequential(shared, tied)) == 4 * 64


def test_the_processors_memory_is_between_the_model_and_the_machine(tiny_model: PreTrainedModel) -> None:
    memory = measure_memory(tiny_model, torch.device("cpu"))
    assert memory.model == model_bytes(tiny_model)
    assert memory.model < memory.free <= memory.total


def test_a_containers_limit_is_less_than_the_machines(tmp_path: Path) -> None:
    assert container_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    assert container_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 250\n")
    assert container_limit(tmp_path) == (1000, 550)
