"""What this CPU supports, and the library of C++ operations: built on the machine that runs them, loaded once per process."""

import ctypes
import hashlib
import os
import platform
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch.utils.cpp_extension import include_paths, library_paths

from steering.model.cache_folder import artifact_folder, check_trusted, private_folder, scratch_folder
from steering.model.device import has_amx_bf16, has_avx2, has_avx512_bf16
from steering.shapes import Tensor

HERE = Path(__file__).parent
BASE = (("act", "compiled_model", "steer"),)  # sources that every compiled pass needs, on any CPU
KERNELS = (("linear",), ("attention",), ("norm", "sample"))
"""Small sources are compiled as one: torch's headers take most of the time of each."""
MOST_COMPILERS = 2
"""Compilers at once. Each takes 0.7 GB, next to the model."""
CompiledGraph = Callable[[list[Tensor]], list[Tensor]]
_loading = threading.Lock()
_loaded: list[Path] = []


@cache
def cpu_features() -> str:
    """Describes the CPU by model and sorted feature flags: AOTInductor compiles with -march=native, so its artefacts run
    only on a CPU of the same description."""
    facts = {platform.machine(), torch.backends.cpu.get_cpu_capability()}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        first = cpuinfo.read_text().split("\n\n", maxsplit=1)[0]
        fields = dict(line.split(":", maxsplit=1) for line in first.splitlines() if ":" in line)
        named = {key.strip(): value.strip() for key, value in fields.items()}
        facts.update(
            f"{key}={named[key]}" for key in ("vendor_id", "cpu family", "model", "model name") if key in named
        )
        facts.update(named.get("flags", named.get("Features", "")).split())
    return " ".join(sorted(facts))


def instruction_flags(*, avx512: bool, amx: bool) -> list[str]:
    """Flags of the compiler for a processor with AVX2, for one that has AVX-512 with bfloat16 too, or AMX besides."""
    extensions, capability = ["avx2", "fma", "f16c"], "AVX2"
    if avx512:
        extensions, capability = [*extensions, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512bf16"], "AVX512"
        if amx:
            extensions += ["amx-tile", "amx-bf16"]
    return [f"-DCPU_CAPABILITY={capability}", f"-DCPU_CAPABILITY_{capability}", *(f"-m{each}" for each in extensions)]


def _options(kernels: bool) -> list[str]:
    options = ["-O3", "-shared", "-fPIC", "-fopenmp", "-std=c++20", "-Wno-psabi"]
    options.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}")
    if kernels and has_avx2():
        options += instruction_flags(avx512=has_avx512_bf16(), amx=has_amx_bf16())
    return options


def compile_sources(names: tuple[str, ...], target: Path, options: list[str]) -> Path:
    """Compiles sources as one. Raises CalledProcessError when the compiler fails."""
    includes = [part for path in include_paths() for part in ("-isystem", path)]
    command = [get_cpp_compiler(), *options, "-x", "c++", "-c", "-", "-o", str(target), "-iquote", str(HERE), *includes]
    source = "".join(f'#include "{name}.cpp"\n' for name in names)
    subprocess.run(command, input=source, text=True, check=True)  # noqa: S603 - our own source
    return target


def library_path(folder: Path, *, kernels: bool = True) -> Path:
    """Where the library is kept; its name is a digest of everything it depends on."""
    parts = [torch.__version__, *_options(kernels), *(path.read_text() for path in sorted(HERE.glob("*.[ch]*")))]
    return folder / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:24]}-native.so"


def build(target: Path, scratch: Path, *, kernels: bool = True) -> None:
    """Builds the library in about a minute. It appears at `target` complete or not at all.

    scratch: a folder of the same file system. Raises CalledProcessError when the compiler fails.
    """
    unfinished, options = scratch / target.name, _options(kernels)
    libraries = [part for path in library_paths() for part in (f"-L{path}", f"-Wl,-rpath,{path}")]

    def compiled(names: tuple[str, ...]) -> str:
        return str(compile_sources(names, scratch / f"{target.name}-{names[0]}.o", options))

    with ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), MOST_COMPILERS)) as pool:
        parts = list(pool.map(compiled, (*BASE, *(KERNELS if kernels and has_avx2() else ()))))
    link = [get_cpp_compiler(), *options, *parts, "-o", str(unfinished), *libraries, "-ltorch", "-ltorch_cpu", "-lc10"]
    subprocess.run(link, check=True)  # noqa: S603 - our own source
    unfinished.rename(target)


def built(cache_dir: Path) -> Path:
    """Returns the library of a cache folder, which is built where it is not there yet. Raises OSError, or CalledProcessError."""
    private_folder(cache_dir)
    private_folder(artifact_folder(cache_dir))
    library = library_path(artifact_folder(cache_dir))
    if not library.exists():
        with scratch_folder(cache_dir) as scratch:
            build(library, scratch)
    check_trusted(library)
    return library


def load(library: Path) -> None:
    """Loads the library once per process, from whichever cache folder came first. Raises OSError when the file is unusable."""
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
