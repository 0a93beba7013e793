"""The sides by name, and how each is started: ours, plain transformers, the floor, and peers where they are installed."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from app.openmp import SPINS
from benchmarks.contenders.process import Side, SideFailed
from benchmarks.model import Subject
from benchmarks.profile import Effort
from benchmarks.workload import prompts

ENGINE, PLAIN, LINEARS, VLLM, EXTRACTION = (
    "steering engine",
    "transformers",
    "linear layers",
    "vLLM",
    "extraction peers",
)
VLLM_PYTHON = Path(".venv-vllm") / "bin" / "python"
PEERS_PYTHON = Path(".venv-peers") / "bin" / "python"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
SERVED = OFFLINE | {"GOMP_SPINCOUNT": SPINS}
"""As `steer serve` has it."""


def starters(subject: Subject, effort: Effort) -> Mapping[str, Callable[[], Side]]:
    """By name."""
    options, folder = subject.options(), Path(subject.folder)
    plain = "benchmarks.contenders.plain_transformers"
    linear = "benchmarks.contenders.linear_layers"
    return {
        ENGINE: partial(Side, ENGINE, "benchmarks.contenders.engine", options, environment=SERVED),
        PLAIN: partial(Side, PLAIN, plain, options, environment=OFFLINE),
        LINEARS: partial(Side, LINEARS, linear, options, environment=OFFLINE),
        VLLM: partial(start_vllm, folder, effort),
        EXTRACTION: partial(start_extraction_peers, folder),
    }


def start_extraction_peers(folder: Path) -> Side:
    """Raises SideFailed when the environment is missing."""
    if not PEERS_PYTHON.exists():
        raise SideFailed(f"{PEERS_PYTHON} does not exist; `make bench-peers-setup` makes it")
    options = {"folder": str(folder)}
    return Side(
        EXTRACTION, "benchmarks.contenders.peers.extraction", options, python=str(PEERS_PYTHON), environment=OFFLINE
    )


def vllm_settings() -> dict[str, dict[str, str]]:
    """Ways to give vLLM every processor. Its own choice (auto) leaves one idle, of two."""
    processors = sorted(os.sched_getaffinity(0))
    intel = VLLM_PYTHON.parent.parent / "lib" / "libiomp5.so"
    allocators = Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4")
    preload = [str(path.absolute()) for path in (intel, *allocators)]
    ways = {"threads not bound": {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(len(processors))}}
    if intel.exists():
        ways["bound, with Intel's OpenMP"] = {
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, processors)),
            "LD_PRELOAD": ":".join(preload),
        }
    return ways


def start_vllm(folder: Path, effort: Effort) -> Side:
    """The faster of its settings, at 8 requests. Raises SideFailed when the environment is missing or nothing starts."""
    if not VLLM_PYTHON.exists():
        raise SideFailed(f"{VLLM_PYTHON} does not exist; `make bench-vllm-setup` makes it")
    rows = max(*effort.sizes, *effort.long_sizes)
    length = max(effort.short_prompt, effort.long_prompt) + max(effort.new_tokens, 64)
    options = {"folder": str(folder), "rows": rows, "length": length}
    found: list[tuple[float, Side]] = []
    reasons: list[str] = []
    for name, setting in list(vllm_settings().items())[: effort.vllm_settings]:
        environment = {
            **OFFLINE,
            **setting,
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CACHE_ROOT": str((Path(".cache") / "vllm").absolute()),
        }
        try:
            side = Side(
                VLLM, "benchmarks.contenders.peers.vllm", options, python=str(VLLM_PYTHON), environment=environment
            )
            speeds = [_speed(side, effort, seed) for seed in range(3)]
        except SideFailed as error:
            reasons.append(f"{name}: {error}")
            continue
        side.facts |= {"setting": name, "tokens_per_second_at_8": sorted(speeds)[1]}
        found.append((sorted(speeds)[1], side))
    if not found:
        raise SideFailed("\n".join(reasons))
    found.sort(key=lambda pair: -pair[0])
    for _, slower in found[1:]:
        slower.close()
    best = found[0][1]
    best.facts["settings_tried"] = {side.facts["setting"]: speed for speed, side in found}
    return best


def _speed(side: Side, effort: Effort, seed: int) -> float:
    asked = prompts(8, effort.short_prompt, 1000 + seed)
    return float(side.ask("generate", prompts=asked, new_tokens=effort.new_tokens)["tokens_per_second"])
