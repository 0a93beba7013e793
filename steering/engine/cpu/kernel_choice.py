"""KernelChoice: how linear layers multiply and which threads compute, chosen by a short measurement at the first start on a machine."""

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TypeAlias

import structlog
import torch

from steering.engine.cpu.kernels.operations import PANEL, configure_kernels, packed_linear
from steering.model.device import has_amx_bf16, has_avx512_bf16
from steering.shapes import Tensor
from steering.threads import call_in_thread

log = structlog.get_logger()
FEW_ROWS = (1, 2, 4)
"""Up to which FMA may be faster than tiles, which have the same bits."""
TIMED_ROWS = (1, 8)  # the rows of decode passes, which are the shortest
BLOCK_ROWS = (1, 2, 4, 8)
"""Up to which rows blocks may be read faster than the same weights in bfloat16: from a tile's rows on, widening them takes as long."""
THREAD_ROWS = (1, 8, 32)  # with more rows the threads wait for each other less, and share less out
REPEATS = 7
MOST_BYTES = 256 << 20  # of the weights that are read: more than caches hold, in some tens of milliseconds
OTHER_ORDER = 0.8
"""The order of sums is that of VDPBF16PS unless FMA takes at most this share of its time: bits depend on it, and the choice must not be one of
noise. With AMX it is always that of tiles."""
TEAM_GAIN = 0.97  # the share of OpenMP's time that the team may take at most
_lock = threading.Lock()
_chosen: dict[str, "KernelChoice"] = {}


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """The arguments of `operations.configure_kernels`."""

    linear: str
    fma_rows: int = 0
    team: bool = False
    block_rows: int = BLOCK_ROWS[-1]

    def use(self) -> None:
        """Configures the kernels of this process."""
        configure_kernels(self.linear, self.fma_rows, team=self.team, block_rows=self.block_rows)

    def __str__(self) -> str:
        few = f", fma up to {self.fma_rows} rows" if self.fma_rows else ""
        blocks = f", blocks up to {self.block_rows} rows" if self.block_rows else ""
        return f"{self.linear}{few}, {'team' if self.team else 'openmp'}{blocks}"


Timer: TypeAlias = Callable[[Sequence[KernelChoice], Sequence[int]], Sequence[Mapping[int, float]]]
"""Returns the seconds of each choice by number of rows."""


def kernel_choice(library: Path, weights: Sequence[Tensor], widths: Sequence[int]) -> KernelChoice:
    """Returns the choice of this process: that of an earlier start, kept next to the library, or by timing products with packed weights.

    It is made once, before any pass uses the kernels. widths: how many inputs each weight has.
    """
    with _lock:
        if "own" not in _chosen:
            path = library.with_name(f"{library.stem}-{len(os.sched_getaffinity(0))}-choice.json")
            _chosen["own"] = _read(path) or _measured(path, weights, widths)
        _chosen["own"].use()
        return _chosen["own"]


def _read(path: Path) -> KernelChoice | None:
    try:
        found = KernelChoice(**json.loads(path.read_text())["choice"])
        found.use()
    except (OSError, ValueError, TypeError, KeyError, RuntimeError):
        return None
    return found


def _measured(path: Path, weights: Sequence[Tensor], widths: Sequence[int]) -> KernelChoice:
    if not weights:
        return default_choice()
    seconds: dict[str, Mapping[int, float]] = {}

    def time(choices: Sequence[KernelChoice], counts: Sequence[int]) -> Sequence[Mapping[int, float]]:
        # in a thread that ends, whose OpenMP threads end with it
        found = call_in_thread(lambda: timed(weights, widths, choices, counts))
        seconds.update(zip(map(str, choices), found, strict=True))
        return found

    both = any(weight.dtype == torch.uint8 and weight.stride(0) > weight[0].numel() for weight in weights)
    choice = chosen(time, both=both)
    log.info(
        "kernels_chosen",
        kernels=str(choice),
        milliseconds={
            name: {rows: round(1e3 * one, 2) for rows, one in times.items()} for name, times in seconds.items()
        },
    )
    try:
        path.write_text(json.dumps({"choice": asdict(choice), "seconds": seconds}))
    except OSError as error:  # a folder that may only be read: the next start measures again
        log.warning("kernel_choice_not_kept", path=str(path), reason=str(error))
    return choice


def default_choice() -> KernelChoice:
    """Returns the choice by the features of the processor alone."""
    return KernelChoice("tiles" if has_amx_bf16() else "pairs")


def chosen(time: Timer, *, both: bool = False) -> KernelChoice:
    """Chooses by times: the order of sums, up to how many rows FMA multiplies, the threads, and up to how many rows blocks are read. both:
    whether weights are packed as blocks and in bfloat16."""
    choice = default_choice()
    if choice.linear == "tiles":
        tiles, fma = time([choice, KernelChoice("fma")], FEW_ROWS)
        choice = replace(choice, fma_rows=_rows_faster(fma, tiles))
    elif has_avx512_bf16():
        pairs, fma = time([choice, KernelChoice("fma")], TIMED_ROWS)
        if all(fma[rows] <= OTHER_ORDER * pairs[rows] for rows in TIMED_ROWS):
            choice = KernelChoice("fma")
    if torch.get_num_threads() > 1:
        team = replace(choice, team=True)
        openmp, ours = time([choice, team], THREAD_ROWS)
        choice = team if all(ours[rows] <= TEAM_GAIN * openmp[rows] for rows in THREAD_ROWS) else choice
    if not both:
        return replace(choice, block_rows=0)
    dense, blocks = time([replace(choice, block_rows=0), choice], BLOCK_ROWS)
    return replace(choice, block_rows=_rows_faster(blocks, dense))


def _rows_faster(one: Mapping[int, float], other: Mapping[int, float]) -> int:
    """Up to how many rows one way is faster."""
    found = 0
    for rows in one:
        if one[rows] >= other[rows]:
            break
        found = rows
    return found


def timed(
    weights: Sequence[Tensor], widths: Sequence[int], choices: Sequence[KernelChoice], counts: Sequence[int]
) -> list[Mapping[int, float]]:
    """Returns the seconds of products with all weights, by number of rows, for each choice: the fastest of passes in turns, which other
    work on the machine disturbed least. Each comes after an untimed one, since threads that the other choice left asleep wake in it."""
    most, layers = MOST_BYTES, list[tuple[Tensor, int]]()
    for weight, width in zip(weights, widths, strict=True):
        layers.append((weight, width))
        if (most := most - weight.nbytes) <= 0:
            break
    zeros = torch.zeros(max(len(weight) for weight, _ in layers) * PANEL)
    found: list[dict[int, list[float]]] = [{count: [] for count in counts} for _ in choices]
    for count in counts:
        rows = {width: torch.ones(count, width, dtype=torch.bfloat16) for _, width in layers}
        for _ in range(REPEATS):
            for choice, times in zip(choices, found, strict=True):
                choice.use()
                for _ in range(2):
                    began = perf_counter()
                    for (weight, width), (following, _) in zip(layers, (*layers[1:], layers[0]), strict=True):
                        packed_linear(rows[width], [weight], [zeros], [len(weight) * PANEL], [following])
                times[count].append(perf_counter() - began)
    return [{count: min(own) for count, own in times.items()} for times in found]
