"""The library of our own C++, built and loaded once for the tests that use it."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import steering.engine.cpu.graphs  # noqa: F401 - defines `hook_callback`, which the library calls
from steering.engine.cpu.kernels import library
from steering.model.device import has_avx2


@pytest.fixture(scope="session")
def built_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all workers of a test run: the first builds it, the others wait for that."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    path = library.library_path(folder / "native")
    with (folder / "native.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            library.build(path, folder)
    return path


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
