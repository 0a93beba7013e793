"""How kernels compute is chosen by planted times, measured once, and kept."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steering.engine.cpu import kernel_choice as choosing
from steering.engine.cpu.kernel_choice import KernelChoice, chosen, default_choice, kernel_choice
from steering.engine.cpu.kernels.operations import pack_weight


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """(AMX, AVX512_BF16) of a pretended processor of two cores."""
    amx, bf16 = request.param
    monkeypatch.setattr(choosing, "has_amx_bf16", lambda: amx)
    monkeypatch.setattr(choosing, "has_avx512_bf16", lambda: bf16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def timer(planted: Mapping[str, Mapping[int, float]]) -> choosing.Timer:
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
    indirect=["processor"],
)
@pytest.mark.parametrize("team", [True, False])
def test_the_order_changes_only_for_a_clear_gain_and_threads_for_a_small_one(
    processor: None, planted: Mapping[str, Mapping[int, float]], expected: KernelChoice, team: bool
) -> None:
    seconds: dict[str, Mapping[int, float]] = {str(KernelChoice(name)): times for name, times in planted.items()}
    faster = KernelChoice(expected.linear, expected.fma_rows, team=True)
    seconds[str(expected)] = {1: 10, 8: 10, 32: 10, **seconds.get(str(expected), {})}
    seconds[str(faster)] = {rows: times * (0.9 if team else 0.99) for rows, times in seconds[str(expected)].items()}
    assert chosen(timer(seconds)) == replace(faster if team else expected, block_rows=0)


@pytest.mark.parametrize(("slower_from", "expected"), [(1, 0), (2, 1), (4, 2), (8, 4), (16, 8)])
@pytest.mark.parametrize("processor", [AVX2], indirect=True)
def test_blocks_are_read_by_as_many_rows_as_they_are_faster_for(
    processor: None, slower_from: int, expected: int
) -> None:
    seconds: dict[str, Mapping[int, float]] = {
        str(KernelChoice("pairs", team=True)): dict.fromkeys((1, 8, 32), 9),
        str(KernelChoice("pairs", block_rows=0)): dict.fromkeys((1, 2, 4, 8), 5),
        str(KernelChoice("pairs")): {rows: 4 if rows < slower_from else 6 for rows in (1, 2, 4, 8, 32)},
    }
    assert chosen(timer(seconds), both=True) == KernelChoice("pairs", block_rows=expected)
    assert chosen(timer(seconds)) == KernelChoice("pairs", block_rows=0), "there are no blocks to choose"


def test_it_is_measured_once_and_kept(kernels: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, weights = tmp_path / "library.so", [pack_weight(torch.ones(96, 64, dtype=torch.bfloat16))]
    measured = []

    def planted(time: choosing.Timer, *, both: bool) -> KernelChoice:
        assert not both
        times = time([default_choice()], [1])
        measured.append(times[0][1])
        return KernelChoice("fma", team=True)

    monkeypatch.setattr(choosing, "chosen", planted)
    for content in (None, "", '{"choice": {"linear": "quarks"}}'):  # absent, and files that say nothing of use
        monkeypatch.setattr(choosing, "_chosen", {})
        for path in tmp_path.glob("*.json"):
            path.unlink() if content is None else path.write_text(content)
        assert (
            kernel_choice(library, weights, [64])
            == kernel_choice(library, weights, [64])
            == KernelChoice("fma", team=True)
        )
    assert len(measured) == 3
    assert min(measured) > 0
    monkeypatch.setattr(choosing, "_chosen", {})
    assert kernel_choice(library, weights, [64]) == KernelChoice("fma", team=True), "of an earlier start"
    assert len(measured) == 3
    monkeypatch.setattr(choosing, "_chosen", {})
    unwritable = tmp_path / "absent" / "library.so"
    assert kernel_choice(unwritable, weights, [64]) == KernelChoice("fma", team=True), "also where it cannot be kept"
    assert len(measured) == 4
    default_choice().use()
