"""Tests on the pretended device: torch.tensor copies to it above Python's dispatch, and shapes are not checked."""

from collections.abc import Iterator

import pytest
import torch
from jaxtyping import config

from tests.steering.engine.device.pretended import device

device()  # before any test: the first backward pass of a process makes one queue for each device that is registered by then


@pytest.fixture(scope="module", autouse=True)
def _copies_are_seen() -> Iterator[None]:
    torch._C._set_only_lift_cpu_tensors(True)
    yield
    torch._C._set_only_lift_cpu_tensors(False)


@pytest.fixture(scope="module", autouse=True)
def _without_checks_of_shapes() -> Iterator[None]:
    """The tests on the CPU make them; here they take half of the time."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", before)
