"""A compiled package gives what the function gives, and other threads of the process go on while it runs."""

import platform
import threading
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from torch._inductor import aoti_compile_and_package

from steering.engine.cpu.kernels.library import (
    KERNELS,
    CompiledGraph,
    compile_sources,
    instruction_flags,
    library_path,
    load,
    load_graph,
)

# torch's own, while it compiles in this process; the server leaves that to a process of its own
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning")]
ROUNDS, SIZE = 6, 1024


class Products(torch.nn.Module):
    """Many matrix products, one after another: some tenths of a second."""

    def forward(self, matrix: torch.Tensor) -> torch.Tensor:
        """matrix (SIZE, SIZE)."""
        total = matrix
        for _ in range(ROUNDS):
            total = torch.tanh(total @ matrix)
        return total


@pytest.fixture(scope="module")
def products(loaded_library: None, tmp_path_factory: pytest.TempPathFactory) -> CompiledGraph:
    """Products, compiled."""
    folder = tmp_path_factory.mktemp("compiled")
    package = folder / "products.pt2"
    with torch.no_grad():
        program = torch.export.export(Products(), (torch.zeros(SIZE, SIZE),))
        once = {"aot_inductor.precompile_headers": False}  # as compile_worker.py
        aoti_compile_and_package(program, package_path=str(package), inductor_configs=once)
    with ZipFile(package) as packed:
        packed.extractall(folder / "products")
    return load_graph(folder / "products")


def test_it_gives_what_the_function_gives(products: CompiledGraph) -> None:
    matrix = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0)) / SIZE**0.5
    torch.testing.assert_close(products([matrix])[0], Products()(matrix), rtol=1e-4, atol=1e-5)


def test_another_thread_runs_python_meanwhile(products: CompiledGraph) -> None:
    """With the lock held for the whole pass the other thread could count once at its start and once at its end. One call of
    many is enough, since the system may keep the other thread waiting during some."""
    counts: list[int] = []
    running, finished = threading.Event(), threading.Event()

    def count() -> None:
        turns = 0
        while not finished.wait(1e-4):
            turns += 1
            counts.append(turns)
            running.set()

    other = threading.Thread(target=count)
    other.start()
    running.wait()

    def during() -> int:
        before = len(counts)
        products([torch.zeros(SIZE, SIZE)])
        return len(counts) - before

    often = any(during() > 5 for _ in range(20))
    finished.set()
    other.join()
    assert often


def test_a_file_that_is_no_package_is_refused(products: CompiledGraph, tmp_path: Path) -> None:
    (tmp_path / "nothing.pt2").write_bytes(b"nothing")
    with pytest.raises(RuntimeError):
        load_graph(tmp_path / "nothing.pt2")


@pytest.mark.usefixtures("products")
def test_it_is_loaded_once_a_process_whichever_cache_it_came_from(tmp_path: Path) -> None:
    """A second registration of the same operations would end the process."""
    load(tmp_path / "never built.so")


def test_its_name_tells_of_its_sources_and_flags(tmp_path: Path) -> None:
    assert library_path(tmp_path) == library_path(tmp_path)
    assert library_path(tmp_path).name.endswith("-native.so")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the kernels are for x86")
@pytest.mark.parametrize(
    ("avx512", "amx"), [(False, False), (True, False), (True, True)], ids=["AVX2", "AVX512", "AMX"]
)
def test_the_kernels_of_every_kind_of_processor_compile_on_any(avx512: bool, amx: bool, tmp_path: Path) -> None:
    """Assembled too: an unknown register is found by the assembler alone. Without optimizing, which takes most of the time."""
    options = ["-O0", "-fPIC", "-fopenmp", "-std=c++20", "-Wno-psabi", *instruction_flags(avx512=avx512, amx=amx)]
    for names in KERNELS:
        assert compile_sources(names, tmp_path / f"{names[0]}.o", options).stat().st_size
