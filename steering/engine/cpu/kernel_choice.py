"""KernelChoice: how linear layers multiply and which threads compute, chosen by a short measurement at the first start on a machine."""

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
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
REPEATS, MOST_REPEATS = 7, 16
ALIKE, WITHIN = 3, 1.1
"""Passes are timed until the fastest ALIKE of each kind are WITHIN a factor of the fastest: else other work made them slow, and the
next start measures again. A choice that was kept from such times read weights at half the speed for one request."""
MOST_BYTES = 256 << 20  # of the weights that are read: more than caches hold, in some tens of milliseconds
OTHER_ORDER = 0.8
"""The order of sums is that of VDPBF16PS unless FMA takes at most this share of its time: bits depend on it, and the choice must not be one of
noise. With AMX it is always that of tiles."""
TEAM_LIMIT = 1.03
"""The share of OpenMP's time that the team may take at most. Alone, both take the same; next to other work, and in a pass with its small
operations, OpenMP's threads wait for each other."""
PROCESS = "process"
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """The arguments of `operations.configure_kernels`. block_rows: None where no weight was packed both as blocks and in bfloat16."""

    linear: str
    fma_rows: int = 0
    team: bool = False
    block_rows: int | None = None

    def use(self) -> None:
        """Configures the kernels of this process."""
        rows = BLOCK_ROWS[-1] if self.block_rows is None else self.block_rows
        configure_kernels(self.linear, self.fma_rows, team=self.team, block_rows=rows)

    def __str__(self) -> str:
        few = f", fma up to {self.fma_rows} rows" if self.fma_rows else ""
        blocks = "" if self.block_rows is None else f", blocks up to {self.block_rows} rows"
        return f"{self.linear}{few}, {'team' if self.team else 'openmp'}{blocks}"


CHOSEN: dict[str, KernelChoice] = {}
"""The choice of this process, once it is made."""
Timer: TypeAlias = Callable[[Sequence[KernelChoice], Sequence[int]], Sequence[Mapping[int, float]]]
"""Returns the seconds of each choice by number of rows."""
Measure: TypeAlias = Callable[[Sequence[KernelChoice], Sequence[int]], tuple[Sequence[Mapping[int, float]], bool]]
"""Returns them, and whether passes of one kind took the same time."""


def kernel_choice(
    library: Path,
    weights: Sequence[Tensor],
    widths: Sequence[int],
    made: dict[str, KernelChoice] = CHOSEN,
    measure: Measure | None = None,
) -> KernelChoice:
    """Returns the choice of this process: that of an earlier start, kept next to the library, or by timing products with packed weights.

    It is made once, before any pass uses the kernels. The file is that of all models: what the weights of this one add is measured and kept.
    widths: how many inputs each weight has. measure: `timed`, with these weights.
    """
    with _lock:
        if PROCESS not in made:
            used = f"{len(os.sched_getaffinity(0))}-{torch.get_num_threads()}"  # processors and threads, on which the times depend
            path = library.with_name(f"{library.stem}-{used}-choice.json")
            kept, settled = _read(path)
            found = kept if settled else None
            blocks = any(one.dtype == torch.uint8 and one.stride(0) > one[0].numel() for one in weights)
            if weights and (found is None or (blocks and found.block_rows is None)):
                found = _measured(path, measure or partial(timed, weights, widths), found, kept, blocks=blocks)
            made[PROCESS] = found or default_choice()
        made[PROCESS].use()
        return made[PROCESS]


def _read(path: Path) -> tuple[KernelChoice | None, bool]:
    """Returns the choice that is kept, if it can be used, and whether it is settled."""
    try:
        content = json.loads(path.read_text())
        found, settled = KernelChoice(**content["choice"]), bool(content["settled"])
        found.use()
    except (OSError, ValueError, TypeError, KeyError, RuntimeError):
        return None, False
    return found, settled


def _measured(
    path: Path, measure: Measure, known: KernelChoice | None, earlier: KernelChoice | None, *, blocks: bool
) -> KernelChoice:
    """earlier: the choice of the last start. The same again is settled however much the times differ; until then our threads are used."""
    seconds: dict[str, Mapping[int, float]] = {}
    settled: list[bool] = []

    def time(choices: Sequence[KernelChoice], counts: Sequence[int]) -> Sequence[Mapping[int, float]]:
        # in a thread that ends, whose OpenMP threads end with it
        found, alike = call_in_thread(lambda: measure(choices, counts))
        seconds.update(zip(map(str, choices), found, strict=True))
        settled.append(alike)
        return found

    threads = torch.get_num_threads()
    choice = known or chosen(time, has_amx_bf16(), has_avx512_bf16(), threads)
    if known is None and not all(settled):  # bits must not depend on what else ran
        choice = replace(choice, linear=default_choice().linear)
    if blocks:
        choice = with_block_rows(choice, time)
    is_settled = all(settled) or choice == earlier
    log.info(
        "kernels_chosen",
        kernels=str(choice),
        settled=is_settled,
        milliseconds={
            name: {rows: round(1e3 * one, 2) for rows, one in times.items()} for name, times in seconds.items()
        },
    )
    try:
        path.write_text(json.dumps({"choice": asdict(choice), "settled": is_settled, "seconds": seconds}))
    except OSError as error:  # a folder that may only be read: the next start measures again
        log.warning("kernel_choice_not_kept", path=str(path), reason=str(error))
    return choice if is_settled or known else replace(choice, team=threads > 1)


def default_choice() -> KernelChoice:
    """Returns the choice by the features of the processor alone."""
    return KernelChoice("tiles" if has_amx_bf16() else "pairs")


def chosen(time: Timer, amx: bool, avx512_bf16: bool, threads: int) -> KernelChoice:
    """Chooses by times: the order of sums, up to how many rows FMA multiplies, then the threads. amx, avx512_bf16: what the processor has."""
    choice = KernelChoice("tiles" if amx else "pairs")
    if amx:
        tiles, fma = time([choice, KernelChoice("fma")], FEW_ROWS)
        choice = replace(choice, fma_rows=_rows_faster(fma, tiles))
    elif avx512_bf16:
        pairs, fma = time([choice, KernelChoice("fma")], TIMED_ROWS)
        if all(fma[rows] <= OTHER_ORDER * pairs[rows] for rows in TIMED_ROWS):
            choice = KernelChoice("fma")
    if threads == 1:
        return choice
    team = replace(choice, team=True)
    openmp, ours = time([choice, team], THREAD_ROWS)
    return team if all(ours[rows] <= TEAM_LIMIT * openmp[rows] for rows in THREAD_ROWS) else choice


def with_block_rows(choice: KernelChoice, time: Timer) -> KernelChoice:
    """Chooses up to how many rows blocks are read, where weights are packed in bfloat16 too."""
    dense, blocks = time([replace(choice, block_rows=rows) for rows in (0, BLOCK_ROWS[-1])], BLOCK_ROWS)
    return replace(choice, block_rows=_rows_faster(blocks, dense))


def _rows_faster(one: Mapping[int, float], other: Mapping[int, float]) -> int:
    """Returns up to how many rows one way is faster than the other."""
    found = 0
    for rows in one:
        if one[rows] >= other[rows]:
            break
        found = rows
    return found


def timed(
    weights: Sequence[Tensor],
    widths: Sequence[int],
    choices: Sequence[KernelChoice],
    counts: Sequence[int],
    clock: Callable[[], float] = perf_counter,
) -> tuple[list[Mapping[int, float]], bool]:
    """Returns the seconds of products with all weights, by number of rows, for each choice: the fastest of passes in turns, which other
    work on the machine disturbed least; and whether the fastest took the same time. Each comes after an untimed one, since threads that the
    other choice left asleep wake in it."""
    most, layers = MOST_BYTES, list[tuple[Tensor, int]]()
    for weight, width in zip(weights, widths, strict=True):
        layers.append((weight, width))
        if (most := most - weight.nbytes) <= 0:
            break
    zeros = torch.zeros(max(len(weight) for weight, _ in layers) * PANEL)
    found: list[dict[int, list[float]]] = [{count: [] for count in counts} for _ in choices]
    for count in counts:
        rows = {width: torch.ones(count, width, dtype=torch.bfloat16) for _, width in layers}
        for repeat in range(MOST_REPEATS):
            for choice, times in zip(choices, found, strict=True):
                choice.use()
                for _ in range(2):
                    began = clock()
                    for (weight, width), (following, _) in zip(layers, (*layers[1:], layers[0]), strict=True):
                        packed_linear(rows[width], [weight], [zeros], [len(weight) * PANEL], [following])
                times[count].append(clock() - began)
            if repeat >= REPEATS - 1 and all(_alike(times[count]) for times in found):
                break
    settled = all(_alike(own) for times in found for own in times.values())
    return [{count: min(own) for count, own in times.items()} for times in found], settled


def _alike(times: Sequence[float]) -> bool:
    fastest = sorted(times)[:ALIKE]
    return fastest[-1] <= WITHIN * fastest[0]
