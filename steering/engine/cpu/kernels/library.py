"""Builds and loads the library of C++ operations."""

import ctypes
import hashlib
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch.utils.cpp_extension import include_paths, library_paths

from steering.engine.cpu.kernels.processor import compiler_flags, has_amx_bf16, has_avx512_bf16
from steering.shapes import Tensor

HERE = Path(__file__).parent
BASE = ("compiled_model", "steer")
"""Sources that every compiled pass needs, on any CPU."""
KERNELS = ("attention", "linear", "norm", "sample")
CompiledGraph = Callable[[list[Tensor]], list[Tensor]]
_loading = threading.Lock()
_loaded: list[Path] = []


def _sources(kernels: bool) -> list[Path]:
    return [HERE / f"{name}.cpp" for name in (*BASE, *(KERNELS if kernels and has_avx512_bf16() else ()))]


def _options(kernels: bool) -> list[str]:
    options = ["-O3", "-shared", "-fPIC", "-fopenmp", "-std=c++20"]
    options.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}")
    return [*options, *(compiler_flags() if kernels and has_avx512_bf16() else ())]


def library_path(folder: Path, *, kernels: bool = True) -> Path:
    """Where the library is kept; its name is a digest of everything it depends on."""
    parts = [torch.__version__, *_options(kernels), *(path.read_text() for path in sorted(HERE.glob("*.[ch]*")))]
    return folder / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:24]}-native.so"


def build(target: Path, scratch: Path, *, kernels: bool = True) -> None:
    """Builds the library in about twenty seconds. It appears at `target` complete or not at all.

    scratch: a folder of the same file system. Raises CalledProcessError when the compiler fails.
    """
    unfinished = scratch / target.name
    includes = [part for path in include_paths() for part in ("-isystem", path)]
    libraries = [part for path in library_paths() for part in (f"-L{path}", f"-Wl,-rpath,{path}")]
    sources = [str(path) for path in _sources(kernels)]
    command = [get_cpp_compiler(), *_options(kernels), *sources, "-o", str(unfinished), *includes, *libraries]
    subprocess.run([*command, "-ltorch", "-ltorch_cpu", "-lc10"], check=True)  # noqa: S603 - our own source
    unfinished.rename(target)


def load(library: Path) -> None:
    """Loads the library once per process, from whichever cache folder came first.

    Raises OSError when the file is unusable.
    """
    with _loading:
        if not _loaded:
            if has_amx_bf16():
                torch.cpu._init_amx()  # the kernel grants the tile registers to a process that asks for them
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)  # compiled graphs look its functions up by name
            _loaded.append(library)


def load_graph(package: Path) -> CompiledGraph:
    """Loads a compiled package as a function that releases Python's global lock while it runs. Needs the library.

    Raises RuntimeError when the package is unusable.
    """
    model: Any = torch.classes.steering_compiled.CompiledModel(str(package))
    run: CompiledGraph = model.run
    return run
