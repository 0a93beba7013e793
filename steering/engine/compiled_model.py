"""Compiled steps as callables that leave Python's global lock to others while they run. Built with the compiler that inductor uses."""

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

from steering.shapes import Tensor

SOURCE = Path(__file__).with_suffix(".cpp")
Compiled = Callable[[list[Tensor]], list[Tensor]]
_loading = threading.Lock()
_loaded: list[Path] = []


def library_path(folder: Path) -> Path:
    """Where the built library is kept, named by what it depends on."""
    key = hashlib.sha256((torch.__version__ + SOURCE.read_text()).encode()).hexdigest()[:24]
    return folder / f"{key}-compiled-model.so"


def build(target: Path) -> None:
    """Writes the library, whole or not at all: about ten seconds. Raises CalledProcessError when the compiler refuses."""
    unfinished = target.with_name(f"{os.getpid()}-{target.name}")
    includes = [part for path in include_paths() for part in ("-isystem", path)]
    libraries = [part for path in library_paths() for part in (f"-L{path}", f"-Wl,-rpath,{path}")]
    options = [
        "-O1",
        "-shared",
        "-fPIC",
        "-std=c++20",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
    ]
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [get_cpp_compiler(), *options, str(SOURCE), "-o", str(unfinished), *includes, *libraries]
    subprocess.run([*command, "-ltorch", "-ltorch_cpu", "-lc10"], check=True)  # noqa: S603 - our own source
    unfinished.rename(target)


def load(library: Path, package: Path) -> Compiled:
    """A compiled package. Raises RuntimeError or OSError when either file is unusable."""
    with _loading:  # a class is registered once a process, whichever cache it came from
        if not _loaded:
            torch.classes.load_library(str(library))
            _loaded.append(library)
    model: Any = torch.classes.steering_compiled.CompiledModel(str(package))
    run: Compiled = model.run
    return run
