"""Every extraction method finds a planted direction, with the right sign, length and scale, or refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steering.errors import InvalidRequest, NonfiniteActivations
from steering.extraction import METHODS
from tests.narrowing import present

D_MODEL = 48
every_method = pytest.mark.parametrize("method", METHODS)
paired_or_not = pytest.mark.parametrize("paired", [True, False])


def planted(
    examples: int = 240, signal: float = 8.0, seed: int = 0, d_model: int = D_MODEL, paired: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(direction, positive, negative): rows that differ by signal * direction and carry noise; pairs share a topic."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(d_model, generator=generator)
    direction = direction / direction.norm()
    topics = torch.randn(2, examples, d_model, generator=generator) + 3.0
    noise = 0.5 * torch.randn(2, examples, d_model, generator=generator)
    half = signal / 2 * direction
    return direction, topics[0] + noise[0] + half, topics[0 if paired else 1] + noise[1] - half


@every_method
@paired_or_not
def test_finds_the_planted_direction(method: str, paired: bool) -> None:
    direction, positive, negative = planted(signal=20.0, paired=paired)
    found = METHODS[method].fit(positive, negative, paired)
    assert float(found.direction @ direction) > 0.99


@every_method
@paired_or_not
def test_finds_it_with_fewer_examples_than_dimensions(method: str, paired: bool) -> None:
    direction, positive, negative = planted(examples=60, signal=40.0, d_model=400, paired=paired)
    found = METHODS[method].fit(positive, negative, paired)
    assert float(found.direction @ direction) > 0.97


@every_method
@paired_or_not
def test_unit_length_float32_and_scale(method: str, paired: bool) -> None:
    _, positive, negative = planted(signal=2.0, seed=3)
    found = METHODS[method].fit(positive, negative, paired)
    delta = positive.mean(0) - negative.mean(0)
    assert found.direction.dtype == torch.float32
    assert found.direction.shape == (D_MODEL,)
    assert float(found.direction.norm()) == pytest.approx(1.0, abs=1e-6)
    assert found.scale > 0
    assert found.scale == pytest.approx(float(delta @ found.direction), rel=1e-4)
    assert found.positive_mean is not None
    assert found.negative_mean is not None
    # to the last bit, at any distance from the origin: files whose class means say something else are not imported
    for shift in (0.0, 1e4):
        exact = METHODS[method].fit(positive + shift, negative + shift, paired)
        assert exact.scale == present(exact.positive_mean) - present(exact.negative_mean)
    assert found.positive_mean == pytest.approx(float((positive @ found.direction).mean()), rel=1e-4)


@every_method
@paired_or_not
def test_swapping_the_classes_turns_the_direction_round(method: str, paired: bool) -> None:
    _, positive, negative = planted(signal=3.0, seed=1)
    there, back = METHODS[method].fit(positive, negative, paired), METHODS[method].fit(negative, positive, paired)
    torch.testing.assert_close(there.direction, -back.direction, atol=2e-4, rtol=0)
    assert there.scale == pytest.approx(back.scale, rel=1e-3)


@every_method
@paired_or_not
@given(order=st.permutations(range(24)))
@settings(max_examples=10)
def test_the_order_of_the_pairs_does_not_matter(method: str, paired: bool, order: list[int]) -> None:
    _, positive, negative = planted(examples=24, signal=4.0, seed=2)
    one = METHODS[method].fit(positive, negative, paired)
    other = METHODS[method].fit(positive[order], negative[order], paired)
    torch.testing.assert_close(one.direction, other.direction, atol=2e-4, rtol=0)
    assert one.scale == pytest.approx(other.scale, rel=1e-4)


@every_method
@given(factor=st.floats(1e-3, 1e3), offset=st.floats(-5.0, 5.0))
@settings(max_examples=10)
def test_scales_with_the_activations_and_ignores_their_origin(method: str, factor: float, offset: float) -> None:
    _, positive, negative = planted(examples=40, signal=4.0, seed=4)
    one = METHODS[method].fit(positive, negative, True)
    other = METHODS[method].fit(factor * (positive + offset), factor * (negative + offset), True)
    torch.testing.assert_close(one.direction, other.direction, atol=1e-3, rtol=0)
    assert other.scale == pytest.approx(factor * one.scale, rel=1e-3)


@every_method
def test_the_same_examples_give_the_same_numbers(method: str) -> None:
    _, positive, negative = planted(examples=30)
    one, other = (METHODS[method].fit(positive, negative, True) for _ in range(2))
    assert torch.equal(one.direction, other.direction)
    assert (one.scale, one.weight, one.bias) == (other.scale, other.weight, other.bias)


@every_method
def test_leaves_its_input_alone(method: str) -> None:
    _, positive, negative = planted(examples=12)
    before = positive.clone(), negative.clone()
    METHODS[method].fit(positive, negative, True)
    assert torch.equal(positive, before[0])
    assert torch.equal(negative, before[1])


@every_method
def test_unpaired_classes_may_differ_in_size(method: str) -> None:
    direction, positive, negative = planted(signal=20.0, paired=False)
    found = METHODS[method].fit(positive, negative[:150], False)
    assert float(found.direction @ direction) > 0.98


@every_method
def test_takes_as_few_as_it_says_and_refuses_fewer(method: str) -> None:
    _, positive, negative = planted(signal=20.0)
    least = METHODS[method].min_examples
    found = METHODS[method].fit(positive[:least], negative[:least], True)
    assert found.scale > 0
    with pytest.raises(InvalidRequest) as refusal:
        METHODS[method].fit(positive[: least - 1], negative[: least - 1], True)
    assert method in refusal.value.message
    assert str(least) in refusal.value.message


@every_method
def test_refuses_two_equal_classes(method: str) -> None:
    _, positive, _ = planted(examples=20)
    for negative in (positive, positive.flip(0), positive + 1e-7 * torch.randn(positive.shape)):
        with pytest.raises(InvalidRequest, match="stands out"):
            METHODS[method].fit(positive, negative, False)


@every_method
def test_takes_a_concept_that_is_small_against_the_activations(method: str) -> None:
    """A thousandth of the length of the activations is not rounding, so it is not refused."""
    direction, positive, negative = planted(examples=60, signal=20.0)
    far = 400.0 * torch.ones(D_MODEL)
    found = METHODS[method].fit(positive * 0.1 + far, negative * 0.1 + far, True)
    assert found.scale < 1e-3 * float(far.norm())
    assert float(found.direction @ direction) > 0.9


@every_method
def test_refuses_what_is_not_finite_and_what_does_not_fit_together(method: str) -> None:
    _, positive, negative = planted(examples=20)
    broken = positive.clone()
    broken[3, 4] = float("nan")
    with pytest.raises(NonfiniteActivations):
        METHODS[method].fit(broken, negative, True)
    with pytest.raises(InvalidRequest):
        METHODS[method].fit(positive, negative[:12], True)


@every_method
def test_a_coordinate_that_never_moves_gets_no_weight(method: str) -> None:
    direction, positive, negative = planted(signal=20.0)
    positive[:, 0] = negative[:, 0] = 100.0
    found = METHODS[method].fit(positive, negative, True)
    assert abs(float(found.direction[0])) < 1e-6
    assert float(found.direction[1:] @ direction[1:]) / float(direction[1:].norm()) > 0.99


def test_an_unknown_method_is_refused_naming_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match="mean_difference, pca"):
        METHODS["median"]
