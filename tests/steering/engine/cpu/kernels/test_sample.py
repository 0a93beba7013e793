"""The sampling kernel returns the first of the highest logits, with noise what torch chooses, and reports rows that are not finite."""

import math
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steering.engine.cpu.kernels.operations import sample
from steering.engine.transformers.sampling import gumbel, states, uniform
from steering.shapes import Tensor
from tests.reference_steps import ZERO

pytestmark = pytest.mark.usefixtures("kernels")
VOCABULARIES = [1, 7, 15, 16, 17, 264, 1003, 49152]
SEEDS, INDICES = list(range(40)), [row % 5 for row in range(40)]


def argmax(logits: Tensor) -> Tensor:
    """The kernel at temperature 0."""
    count = len(logits)
    return sample(logits, settings(torch.zeros(count)), torch.zeros(count, 4, dtype=torch.int64))


def settings(temperatures: Tensor) -> Tensor:
    """Rows without filters."""
    unfiltered = torch.tensor([0.0, math.inf, -math.inf]).expand(len(temperatures), 3)
    return torch.cat([temperatures[:, None], unfiltered], dim=1)


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
@pytest.mark.parametrize("spoiled", [math.nan, -math.nan, math.inf])
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
    highest = numbers.max(axis=1)  # NaN where there is one
    whole = np.isfinite(highest)
    assert finite.tolist() == whole.tolist()
    assert tokens[whole].tolist() == numbers[whole].argmax(axis=1).tolist()


@given(seed=st.integers(0, 2**32), rows=st.integers(1, 5), vocabulary=st.integers(1, 200))
def test_it_agrees_with_numpy_where_many_are_equal(seed: int, rows: int, vocabulary: int) -> None:
    numbers = np.random.default_rng(seed).integers(-3, 4, (rows, vocabulary)).astype(np.float32)
    found = argmax(torch.from_numpy(numbers).to(torch.bfloat16))
    assert found.tolist() == [[token, 1] for token in numbers.argmax(axis=1).tolist()]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_masks_are_never_chosen(vocabulary: int) -> None:
    logits = torch.full((2, vocabulary), -math.inf, dtype=torch.bfloat16)
    place = vocabulary // 3
    logits[0, place] = -5.0
    for temperature in (0.0, 0.7):
        found = sample(logits, settings(torch.full((2,), temperature)), states([1, 2], [0, 0]))
        assert found.tolist() == [[place, 1], [0, 0]]


@pytest.mark.parametrize("top_k", [0.0, 5.0])
def test_a_token_whose_uniform_number_is_0_can_be_chosen(top_k: float) -> None:
    seed, token = ZERO
    logits = torch.zeros(1, 264, dtype=torch.bfloat16)
    logits[0, token] = 50.0
    rows = torch.tensor([[1.0, top_k, math.inf, -math.inf]])
    assert sample(logits, rows, states([seed], [0])).tolist() == [[token, 1]]


@lru_cache(maxsize=1)
def drawn(vocabulary: int) -> tuple[Tensor, Tensor]:
    """Of 40 rows: logits between -1 and 1, and the Gumbel noise that torch computes."""
    return noise(40, vocabulary).float(), gumbel(uniform(SEEDS, INDICES, vocabulary, torch.device("cpu"))).double()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 0.7, 1.0, 30.0, 1e30])
@pytest.mark.parametrize("spread", [0.01, 3.0, 300.0])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_noise_chooses_what_torch_chooses(vocabulary: int, spread: float, temperature: float) -> None:
    """The bound that spares the logarithms excludes no token that wins: not where all are likely, nor where one is."""
    unscaled, gumbels = drawn(vocabulary)
    logits = (unscaled * spread).to(torch.bfloat16)
    tokens, finite = sample(logits, settings(torch.full((40,), temperature)), states(SEEDS, INDICES)).T
    assert finite.tolist() == [1] * 40
    sums = gumbels * temperature + logits.double()
    highest = sums.amax(dim=1)
    behind = highest - sums.gather(1, tokens[:, None])[:, 0]
    assert behind.amax() <= 1e-6 * (highest.abs() + 20 * temperature).amax()


def test_each_row_has_its_own_temperature_and_generator() -> None:
    logits, temperatures = noise(6, 1003), torch.tensor([0.0, 0.5, 1.0, 0.0, 2.0, 5.0])
    generators = states([3, 1, 4, 1, 5, 9], [0, 1, 2, 3, 4, 5])
    rows = settings(temperatures)
    together = sample(logits, rows, generators)
    for row in range(6):
        part = slice(row, row + 1)
        assert torch.equal(sample(logits[part], rows[part], generators[part]), together[part])
    assert together[[0, 3], 0].tolist() == logits[[0, 3]].float().argmax(dim=1).tolist()


@pytest.mark.parametrize(
    "logits",
    [torch.zeros(2, 32), torch.zeros(32, dtype=torch.bfloat16), torch.zeros(32, 2, dtype=torch.bfloat16).T],
    ids=["float32", "one dimension", "columns together"],
)
def test_other_logits_are_refused(logits: Tensor) -> None:
    with pytest.raises(RuntimeError, match="in bfloat16 with contiguous rows"):
        argmax(logits)


@pytest.mark.parametrize(
    ("table", "generators", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(2, 4, dtype=torch.int64), "settings must be"),
        (torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.int64), "settings must be"),
        (torch.zeros(2, 4), torch.zeros(2, 3, dtype=torch.int64), "states must be"),
        (torch.zeros(2, 4), torch.zeros(2, 4), "states must be"),
    ],
)
def test_other_settings_and_states_are_refused(table: Tensor, generators: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        sample(noise(2, 40), table, generators)
