"""Argmax returns the first of the highest logits, and reports rows that are not finite."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steering.engine.transformers.execution.kernels.operations import argmax
from steering.shapes import Tensor

pytestmark = pytest.mark.usefixtures("kernels")
VOCABULARIES = [1, 7, 15, 16, 17, 264, 1003, 49152]


def noise(rows: int, vocabulary: int) -> Tensor:
    """Between -1 and 1."""
    drawn = torch.rand(rows, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    return (drawn * 2 - 1).to(torch.bfloat16)


def places(vocabulary: int) -> list[int]:
    """Both ends, the edges of the last register, and one in between."""
    edge = vocabulary // 16 * 16
    return sorted({0, vocabulary // 3, max(edge - 1, 0), min(edge, vocabulary - 1), vocabulary - 1})


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_a_planted_maximum_is_found_wherever_it_is(vocabulary: int) -> None:
    planted = places(vocabulary)
    logits = noise(len(planted), vocabulary)
    for row, place in enumerate(planted):
        logits[row, place] = 2.0
    assert argmax(logits).tolist() == [[place, 1] for place in planted]


@pytest.mark.parametrize(
    "equal", [(3, 40), (40, 41), (5, 21), (21, 6), (0, 1002), (999, 1000), (1001, 1002), (2, 3, 500, 1002)]
)
def test_the_first_of_equal_maxima_is_chosen(equal: tuple[int, ...]) -> None:
    logits = noise(1, 1003)
    logits[0, list(equal)] = 2.0
    assert argmax(logits).tolist() == [[min(equal), 1]]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_among_equals_only_it_is_the_first(vocabulary: int) -> None:
    assert argmax(torch.full((1, vocabulary), -3.0, dtype=torch.bfloat16)).tolist() == [[0, 1]]


@pytest.mark.parametrize("first", [-0.0, 0.0])
@pytest.mark.parametrize("vocabulary", [2, 40])
def test_zeros_of_both_signs_are_equal(vocabulary: int, first: float) -> None:
    logits = torch.full((1, vocabulary), -1.0, dtype=torch.bfloat16)
    logits[0, -2], logits[0, -1] = first, -first
    assert argmax(logits).tolist() == [[vocabulary - 2, 1]]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_logits_may_all_be_negative(vocabulary: int) -> None:
    planted = places(vocabulary)
    logits = noise(len(planted), vocabulary) - 1000.0
    for row, place in enumerate(planted):
        logits[row, place] = -900.0
    assert argmax(logits).tolist() == [[place, 1] for place in planted]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("spoiled", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_a_row_that_is_not_finite_is_reported_and_no_other(vocabulary: int, spoiled: float) -> None:
    for place in places(vocabulary):
        logits = noise(3, vocabulary)
        expected = argmax(logits)
        logits[1, place] = spoiled
        found = argmax(logits)
        assert found[:, 1].tolist() == [1, 0, 1]
        assert torch.equal(found[[0, 2]], expected[[0, 2]])


def test_the_largest_and_the_smallest_numbers_are_finite() -> None:
    range_of = torch.finfo(torch.bfloat16)
    logits = torch.tensor([[range_of.min, range_of.max], [range_of.min, range_of.min], [0.0, range_of.tiny]])
    assert argmax(logits.to(torch.bfloat16)).tolist() == [[1, 1], [0, 1], [1, 1]]


def test_rows_may_lie_apart() -> None:
    logits = noise(5, 200)
    for part in (logits[:, 3:70], logits[::2], logits[1:, 16:]):
        assert torch.equal(argmax(part), argmax(part.contiguous()))


@given(seed=st.integers(0, 2**32), rows=st.integers(1, 5), vocabulary=st.integers(1, 200))
def test_it_agrees_with_numpy_on_any_bits(seed: int, rows: int, vocabulary: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 2**16, (rows, vocabulary), dtype=np.uint16)
    logits = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    numbers = logits.float().numpy()
    tokens, finite = argmax(logits).numpy().T
    whole = np.isfinite(numbers).all(axis=1)
    assert finite.tolist() == whole.tolist()
    assert tokens[whole].tolist() == numbers[whole].argmax(axis=1).tolist()


@given(seed=st.integers(0, 2**32), rows=st.integers(1, 5), vocabulary=st.integers(1, 200))
def test_it_agrees_with_numpy_where_many_are_equal(seed: int, rows: int, vocabulary: int) -> None:
    numbers = np.random.default_rng(seed).integers(-3, 4, (rows, vocabulary)).astype(np.float32)
    found = argmax(torch.from_numpy(numbers).to(torch.bfloat16))
    assert found.tolist() == [[token, 1] for token in numbers.argmax(axis=1).tolist()]


@pytest.mark.parametrize(
    "logits",
    [torch.zeros(2, 32), torch.zeros(32, dtype=torch.bfloat16), torch.zeros(32, 2, dtype=torch.bfloat16).T],
    ids=["float32", "one dimension", "columns together"],
)
def test_other_logits_are_refused(logits: Tensor) -> None:
    with pytest.raises(RuntimeError, match="in bfloat16 with contiguous rows"):
        argmax(logits)
