"""Names the contenders and how each is started: our engine, plain transformers, linear layers, and installed peers."""

import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from app.core.process_settings import HUGE_PAGES, SPIN_COUNT
from benchmarks.contenders.process import Contender, ContenderFailed
from benchmarks.model import BenchmarkModel
from benchmarks.profile import Profile
from benchmarks.workload import TOKENS_PER_WORD

ENGINE, PLAIN, LINEARS, EXTRACTION = "steering engine", "transformers", "linear layers", "extraction peers"
VLLM_DEFAULT, VLLM_BOUND = "vLLM, default threads", "vLLM, all cores bound"
VLLM = (VLLM_DEFAULT, VLLM_BOUND)
VLLM_PYTHON = Path(".venv-vllm") / "bin" / "python"
PEERS_PYTHON = Path(".venv-peers") / "bin" / "python"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
SERVED = OFFLINE | {"GOMP_SPINCOUNT": SPIN_COUNT, HUGE_PAGES: "1"}
"""The environment that `steer serve` sets."""


def run_as_served(module: str) -> None:
    """Starts a program of ours again with the environment of `steer serve`, unless it has it: libgomp reads it when torch is loaded."""
    if not SERVED.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], {**SERVED, **os.environ})


def starters(model: BenchmarkModel, profile: Profile) -> Mapping[str, Callable[[], Contender]]:
    """Returns a function per contender that starts its process."""
    options, folder = model.options(), Path(model.folder)
    plain = "benchmarks.contenders.plain_transformers"
    linear = "benchmarks.contenders.linear_layers"
    return {
        ENGINE: partial(Contender, ENGINE, "benchmarks.contenders.engine", options, environment=SERVED),
        PLAIN: partial(Contender, PLAIN, plain, options, environment=OFFLINE),
        LINEARS: partial(Contender, LINEARS, linear, options, environment=OFFLINE),
        **{name: partial(start_vllm, name, folder, profile) for name in VLLM},
        EXTRACTION: partial(start_extraction_peers, folder),
    }


def start_extraction_peers(folder: Path, data: Path | None = None) -> Contender:
    """Starts steering-vectors, repeng, and the peers of which `data` has a clone. Raises ContenderFailed when their environment is missing."""
    if not PEERS_PYTHON.exists():
        raise ContenderFailed(f"{PEERS_PYTHON} does not exist; `make bench-peers-setup` creates it")
    options = {"folder": str(folder), "data": None if data is None else str(data)}
    return Contender(
        EXTRACTION, "benchmarks.contenders.peers.extraction", options, python=str(PEERS_PYTHON), environment=OFFLINE
    )


def start_vllm(name: str, folder: Path, profile: Profile) -> Contender:
    """Starts vLLM with one of its settings of threads. Raises ContenderFailed when its environment is missing."""
    if not VLLM_PYTHON.exists():
        raise ContenderFailed(f"{VLLM_PYTHON} does not exist; `make bench-vllm-setup` creates it")
    rows = max(*profile.sizes, *profile.long_sizes)
    words = max(profile.mixed_words[1], profile.very_long_words)
    longest = max(profile.short_prompt, profile.long_prompt, int(words * TOKENS_PER_WORD))
    new_tokens = max(profile.new_tokens, profile.mixed_answers[1], 64)
    environment = {
        **OFFLINE,
        **(vllm_bound() if name == VLLM_BOUND else {}),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str((Path(".cache") / "vllm").absolute()),
    }
    options = {"folder": str(folder), "rows": rows, "length": longest + new_tokens}
    vllm = Contender(
        name, "benchmarks.contenders.peers.vllm", options, python=str(VLLM_PYTHON), environment=environment
    )
    here = f"{Path.cwd()}/"  # no folder of this machine is in the results
    vllm.facts["environment"] = {key: environment[key].replace(here, "") for key in vllm_bound() if key in environment}
    return vllm


def vllm_bound() -> dict[str, str]:
    """Returns the settings that vLLM's manual recommends: all cores bound, Intel's OpenMP and tcmalloc preloaded.

    By default vLLM binds its threads itself and leaves one core idle.
    """
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    libraries = [VLLM_PYTHON.parent.parent / "lib" / "libiomp5.so"]
    libraries += sorted(Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4"))
    preload = ":".join(str(path.absolute()) for path in libraries if path.exists())
    return {"VLLM_CPU_OMP_THREADS_BIND": cores} | ({"LD_PRELOAD": preload} if preload else {})
