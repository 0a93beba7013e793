"""The library of our own C++: built with the compiler that inductor uses, for the processor at hand, kept on disk, loaded once."""

import ctypes
import hashlib
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch.utils.cpp_extension import include_paths, library_paths

from steering.engine.transformers.execution.kernels.processor import FLAGS, computes_here, has_avx512_bf16
from steering.shapes import Tensor

HERE = Path(__file__).parent
ALWAYS = ("compiled_model", "steer")
KERNELS = ("attention", "linear", "sampling")
Compiled = Callable[[list[Tensor]], list[Tensor]]
_loading = threading.Lock()
_loaded: list[Path] = []


def _sources() -> list[Path]:
    return [HERE / f"{name}.cpp" for name in (*ALWAYS, *(KERNELS if has_avx512_bf16() else ()))]


def _options() -> list[str]:
    options = ["-O3", "-shared", "-fPIC", "-fopenmp", "-std=c++20"]
    options.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}")
    return [*options, *(FLAGS if has_avx512_bf16() else ())]


def library_path(folder: Path) -> Path:
    """Where the built library is kept, named by what it depends on."""
    parts = [torch.__version__, *_options(), *(path.read_text() for path in sorted(HERE.glob("*.[ch]*")))]
    return folder / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:24]}-native.so"


def build(target: Path) -> None:
    """Writes the library, whole or not at all: about twenty seconds. Raises CalledProcessError when the compiler refuses."""
    unfinished = target.with_name(f"{os.getpid()}-{target.name}")
    includes = [part for path in include_paths() for part in ("-isystem", path)]
    libraries = [part for path in library_paths() for part in (f"-L{path}", f"-Wl,-rpath,{path}")]
    sources = [str(path) for path in _sources()]
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [get_cpp_compiler(), *_options(), *sources, "-o", str(unfinished), *includes, *libraries]
    subprocess.run([*command, "-ltorch", "-ltorch_cpu", "-lc10"], check=True)  # noqa: S603 - our own source
    unfinished.rename(target)


def load(library: Path) -> None:
    """Registers the library's operations and classes, once a process, whichever cache it came from. Raises OSError when
    the file is unusable."""
    with _loading:
        if not _loaded:
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)  # compiled graphs look its functions up by name
            _loaded.append(library)


def chooses_likeliest(logits: Tensor) -> bool:
    """Whether `likeliest` takes these logits here and now."""
    return bool(_loaded) and computes_here(logits.dtype, logits.device)


def compiled(package: Path) -> Compiled:
    """A compiled package as a callable that leaves Python's global lock to others while it runs. The library is loaded.

    Raises RuntimeError when the package is unusable.
    """
    model: Any = torch.classes.steering_compiled.CompiledModel(str(package))
    run: Compiled = model.run
    return run
