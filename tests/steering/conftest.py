"""The library of our own C++, loaded once for the tests that use it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import steering.engine.cpu.graphs  # noqa: F401 - defines `hook_callback`, which the library calls
from steering.engine.cpu.kernels import library
from steering.model.device import has_avx2


@pytest.fixture(scope="session")
def loaded_library(built_library: Path) -> None:
    """On any processor. A process registers one library: where another test brought one, it is that."""
    library.load(built_library)


@pytest.fixture(scope="session")
def kernels(loaded_library: None) -> None:
    """Those that need a processor with AVX2."""
    if not has_avx2():
        pytest.skip("this processor has no AVX2: the library is built without these kernels")


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Work is shared out among so many."""
    before, count = torch.get_num_threads(), int(request.param)
    torch.set_num_threads(count)
    yield count
    torch.set_num_threads(before)
