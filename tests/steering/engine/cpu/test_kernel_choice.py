"""How kernels compute is chosen by planted times, measured once, and kept."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, count
from pathlib import Path

import pytest
import torch

from steering.engine.cpu.graphs import PanelLayout
from steering.engine.cpu.kernel_choice import (
    BLOCK_ROWS,
    MOST_REPEATS,
    PROCESS,
    REPEATS,
    THREAD_ROWS,
    KernelChoice,
    Timer,
    chosen,
    default_choice,
    kernel_choice,
    timed,
    with_block_rows,
)
from steering.engine.cpu.kernels.operations import pack_weight
from steering.model.device import has_amx_bf16, has_avx512_bf16
from steering.shapes import Tensor


def timer(planted: Mapping[str, Mapping[int, float]]) -> Timer:
    def time(choices: Sequence[KernelChoice], counts: Sequence[int]) -> list[Mapping[int, float]]:
        return [{rows: planted[str(choice)][rows] for rows in counts} for choice in choices]

    return time


AMX, BF16, AVX2 = (True, True), (False, True), (False, False)


@pytest.mark.parametrize(
    ("processor", "planted", "expected"),
    [
        (AMX, {"tiles": {1: 4, 2: 5, 4: 5}, "fma": {1: 3, 2: 4, 4: 9}}, KernelChoice("tiles", 2)),
        (AMX, {"tiles": {1: 4, 2: 5, 4: 5}, "fma": {1: 5, 2: 4, 4: 9}}, KernelChoice("tiles", 0)),
        (BF16, {"pairs": {1: 4, 8: 5}, "fma": {1: 3.9, 8: 3}}, KernelChoice("pairs")),
        (BF16, {"pairs": {1: 4, 8: 8}, "fma": {1: 3, 8: 4}}, KernelChoice("fma")),
        (AVX2, {}, KernelChoice("pairs")),
    ],
)
@pytest.mark.parametrize("team", [True, False])
def test_the_order_changes_only_for_a_clear_gain_and_threads_are_our_own_unless_they_are_slower(
    processor: tuple[bool, bool], planted: Mapping[str, Mapping[int, float]], expected: KernelChoice, team: bool
) -> None:
    seconds: dict[str, Mapping[int, float]] = {str(KernelChoice(name)): times for name, times in planted.items()}
    faster = KernelChoice(expected.linear, expected.fma_rows, team=True)
    seconds[str(expected)] = {**dict.fromkeys(THREAD_ROWS, 10), **seconds.get(str(expected), {})}
    seconds[str(faster)] = {rows: times * (1.02 if team else 1.04) for rows, times in seconds[str(expected)].items()}
    assert chosen(timer(seconds), *processor, threads=2) == (faster if team else expected)


@pytest.mark.parametrize(("slower_from", "expected"), [(1, 0), (2, 1), (4, 2), (8, 4), (16, 8)])
def test_blocks_are_read_by_as_many_rows_as_they_are_faster_for(slower_from: int, expected: int) -> None:
    seconds: dict[str, Mapping[int, float]] = {
        str(KernelChoice("pairs", block_rows=0)): dict.fromkeys(BLOCK_ROWS, 5),
        str(KernelChoice("pairs", block_rows=8)): {rows: 4 if rows < slower_from else 6 for rows in BLOCK_ROWS},
    }
    assert with_block_rows(KernelChoice("pairs"), timer(seconds)) == KernelChoice("pairs", block_rows=expected)


@pytest.fixture
def measured(kernels: None) -> Iterator[None]:
    """Two threads, and kernels that are configured by the features of the processor again. One thread leaves nothing to measure where
    neither AMX nor AVX512_BF16 is there."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
    default_choice().use()


DENSE = [pack_weight(torch.ones(96, 64, dtype=torch.bfloat16))]


@pytest.mark.usefixtures("measured")
def test_it_is_measured_once_and_kept_and_blocks_when_a_model_has_them(tmp_path: Path) -> None:
    both = PanelLayout("Q8_0", 96, 64, dense=True)
    blocks = [both.views(torch.zeros(both.size, dtype=torch.uint8))[0]]

    def choice(weights: Sequence[Tensor], made: dict[str, KernelChoice], *, settled: bool = True) -> KernelChoice:
        def measure(choices: Sequence[KernelChoice], counts: Sequence[int]) -> tuple[list[Mapping[int, float]], bool]:
            found, _ = timed(weights, [64] * len(weights), choices, counts)
            return found if settled else [dict.fromkeys(counts, 1.0) for _ in choices], settled

        return kernel_choice(tmp_path / "library.so", weights, [64] * len(weights), made, measure)

    assert choice([], {}) == default_choice()
    assert list(tmp_path.iterdir()) == [], "nothing was measured"
    own: dict[str, KernelChoice] = {}
    first = choice(DENSE, own)
    assert first.block_rows is None
    (path,) = tmp_path.iterdir()
    assert min(one for times in json.loads(path.read_text())["seconds"].values() for one in times.values()) > 0
    for content in ("", '{"choice": {"linear": "quarks"}}'):  # files that say nothing of use
        path.write_text(content)
        assert choice(DENSE, own) == first
        assert path.read_text() == content, "a process chooses once"
        choice(DENSE, {})
        assert "seconds" in json.loads(path.read_text())
    choice(DENSE, {}, settled=False)  # reads what the last start has kept
    assert json.loads(path.read_text())["settled"]
    path.unlink()
    choice(DENSE, {}, settled=False)
    assert not json.loads(path.read_text())["settled"]
    choice(DENSE, {}, settled=False)
    assert json.loads(path.read_text())["settled"], "the same choice twice"
    path.write_text('{"choice": {"linear": "fma"}, "settled": false}')
    choice(DENSE, {}, settled=False)
    assert not json.loads(path.read_text())["settled"], "another choice"
    choice(DENSE, {})
    assert json.loads(path.read_text())["settled"], "a start after one that was disturbed measures again"
    path.write_text('{"choice": {"linear": "fma", "team": true}, "settled": true}')
    assert choice(DENSE, {}) == KernelChoice("fma", team=True), "of an earlier start"
    found = choice(blocks, {})
    assert replace(found, block_rows=None) == KernelChoice("fma", team=True), "bits stay"
    assert found.block_rows in (0, *BLOCK_ROWS)
    written = path.read_text()
    assert choice(DENSE, {}) == choice(blocks, {}) == found
    assert path.read_text() == written


@pytest.mark.usefixtures("measured")
def test_a_choice_that_one_thread_made_is_not_that_of_two(tmp_path: Path) -> None:
    def measure(choices: Sequence[KernelChoice], counts: Sequence[int]) -> tuple[list[Mapping[int, float]], bool]:
        return [dict.fromkeys(counts, 1.0) for _ in choices], True

    found = []
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        found.append(kernel_choice(tmp_path / "library.so", DENSE, [64], {}, measure).team)
    assert found == [False, True, False]


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("settled", [True, False])
def test_neither_the_order_of_sums_nor_the_threads_are_those_of_a_disturbed_measurement(
    tmp_path: Path, settled: bool
) -> None:
    def measure(choices: Sequence[KernelChoice], counts: Sequence[int]) -> tuple[list[Mapping[int, float]], bool]:
        return [
            dict.fromkeys(counts, (0.1 if one.linear == "fma" else 1.0) * (1.5 if one.team else 1.0)) for one in choices
        ], settled

    found = kernel_choice(tmp_path / "library.so", DENSE, [64], {}, measure)
    assert found.team == (not settled)
    assert not kernel_choice(tmp_path / "library.so", DENSE, [64], {}, measure).team, "the same choice twice"
    by_time = settled and has_avx512_bf16() and not has_amx_bf16()
    assert found.linear == ("fma" if by_time else default_choice().linear)


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (lambda _turn: 2, (2, True, REPEATS)),
        (lambda turn: 2 if turn in (0, 10, 11) else 3 + turn, (2, True, 12)),
        (lambda turn: 2 + turn, (2, False, MOST_REPEATS)),
    ],
)
def test_times_are_taken_until_the_fastest_agree(
    seconds: Callable[[int], int], expected: tuple[int, bool, int]
) -> None:
    """seconds: of a pass in each turn. expected: the time that is found, whether it is settled, and the turns."""
    turns = count()
    # a turn reads the clock where the untimed pass begins, where the timed one does, and where it ends
    clock = accumulate(step for turn in turns for step in (0, 0, seconds(turn)))
    found, settled = timed(DENSE, [64], [default_choice()], [1], lambda: float(next(clock)))
    assert (found[0][1], settled, next(turns)) == expected


@pytest.mark.usefixtures("measured")
def test_a_choice_that_cannot_be_kept_is_used(tmp_path: Path) -> None:
    made: dict[str, KernelChoice] = {}
    assert kernel_choice(tmp_path / "absent" / "library.so", DENSE, [64], made) is made[PROCESS]
