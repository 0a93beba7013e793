"""Each method against its own formula, computed the plain way."""

import numpy as np
import pytest
import torch

from steering.errors import InvalidRequest
from steering.extraction.base import NOISE_FLOOR, MeanDifference, Pca, orient
from steering.extraction.classifiers import PENALTY, Probe, Whitened, _shrinkage


def classes(examples: int, d_model: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated coordinates of unequal spread, and a moderate shift, so that no method agrees with another."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d_model, d_model, generator=generator) / d_model**0.5 + torch.eye(d_model)
    rows = torch.randn(2, examples, d_model, generator=generator) @ mix
    return rows[0] + torch.linspace(0.0, 2.0, d_model), rows[1]


def test_mean_difference_by_hand() -> None:
    found = MeanDifference.fit(torch.tensor([[4.0, 0.0], [4.0, 4.0]]), torch.tensor([[1.0, -2.0], [1.0, -2.0]]), True)
    torch.testing.assert_close(found.direction, torch.tensor([0.6, 0.8]))
    assert found.scale == pytest.approx(5.0)
    assert found.positive_mean == pytest.approx(4.0)
    assert found.negative_mean == pytest.approx(-1.0)
    assert found.weight is None
    assert found.bias is None


@pytest.mark.parametrize("method", [MeanDifference, Pca])
@pytest.mark.parametrize("paired", [True, False])
def test_a_single_pair_gives_the_line_between_its_two_activations(
    method: type[MeanDifference] | type[Pca], paired: bool
) -> None:
    found = method.fit(torch.tensor([[1.0, 5.0, 2.0]]), torch.tensor([[1.0, 1.0, 5.0]]), paired)
    torch.testing.assert_close(found.direction, torch.tensor([0.0, 0.8, -0.6]))
    assert found.scale == pytest.approx(5.0)


def test_paired_pca_is_the_first_right_singular_vector_of_both_poles() -> None:
    positive, negative = classes(examples=30, d_model=12)
    half = (positive - negative) / 2
    expected = torch.linalg.svd(torch.cat([half, -half])).Vh[0]
    found = Pca.fit(positive, negative, True)
    assert abs(float(found.direction @ expected)) == pytest.approx(1.0, abs=1e-6)


def test_unpaired_pca_centres_on_the_middle_of_the_class_means() -> None:
    positive, negative = classes(examples=30, d_model=12)
    negative = negative[:9]
    middle = (positive.mean(0) + negative.mean(0)) / 2
    expected = torch.linalg.svd(torch.cat([positive, negative]) - middle).Vh[0]
    found = Pca.fit(positive, negative, False)
    assert abs(float(found.direction @ expected)) == pytest.approx(1.0, abs=1e-6)


def test_paired_pca_keeps_a_concept_that_all_pairs_share_exactly() -> None:
    """Subtracting the mean difference would leave nothing but the noise across it."""
    generator = torch.Generator().manual_seed(0)
    negative = torch.randn(20, 8, generator=generator)
    shift = torch.tensor([0.0, 3.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0])
    found = Pca.fit(negative + shift, negative, True)
    torch.testing.assert_close(found.direction, shift / 5.0)


def test_the_probe_stands_where_its_loss_is_least() -> None:
    """At the minimum of sum log(1 + exp(-y (w . x~ + b))) + lambda |w|^2 both derivatives vanish."""
    positive, negative = classes(examples=40, d_model=10)
    found = Probe.fit(positive, negative, True)
    assert found.weight is not None
    assert found.bias is not None
    rows = torch.cat([positive, negative]).double().numpy()
    labels = np.repeat([1.0, 0.0], 40)
    spread = np.sqrt((positive.double().numpy().var(0) + negative.double().numpy().var(0)) / 2)
    error = 1.0 / (1.0 + np.exp(-(found.weight * rows @ found.direction.double().numpy() + found.bias))) - labels
    weights = found.weight * found.direction.double().numpy() * spread
    slope = ((rows - rows.mean(0)) / spread).T @ error + 2.0 * PENALTY * 10 * weights
    assert float(np.abs(error.sum())) < 1e-3
    assert float(np.abs(slope).max()) < 1e-3


def test_the_probe_gives_a_probability_on_the_projection() -> None:
    positive, negative = classes(examples=60, d_model=10)
    found = Probe.fit(positive, negative, True)
    assert found.weight is not None
    assert found.bias is not None
    probability = torch.sigmoid(found.weight * (torch.cat([positive, negative]) @ found.direction) + found.bias)
    assert found.weight > 0
    assert float(probability.mean()) == pytest.approx(0.5, abs=1e-3)
    assert float(probability[:60].mean()) > 0.8


@pytest.mark.parametrize(("examples", "d_model"), [(10, 30), (60, 12)])
@pytest.mark.parametrize("paired", [True, False])
def test_whitened_solves_the_shrunk_system_few_examples_or_many(examples: int, d_model: int, paired: bool) -> None:
    positive, negative = classes(examples, d_model)
    upper, lower = positive.double(), negative.double()
    delta = upper.mean(0) - lower.mean(0)
    rows = torch.cat([upper - upper.mean(0), lower - lower.mean(0)])
    scatter = rows.T @ rows / len(rows)
    share = _shrinkage(rows, 2 if paired else 1)
    assert 0.0 < share < 1.0
    shrunk = (1 - share) * scatter + share * scatter.trace() / d_model * torch.eye(d_model)
    expected = torch.linalg.solve(shrunk, delta)
    found = Whitened.fit(positive, negative, paired)
    torch.testing.assert_close(found.direction.double(), expected / expected.norm(), atol=1e-6, rtol=0)


def test_whitened_looks_past_a_coordinate_that_only_makes_noise() -> None:
    positive, negative = classes(examples=200, d_model=12)
    positive[:, 0] *= 30.0
    negative[:, 0] *= 30.0
    positive[:, 0] += 5.0
    plain, whitened = MeanDifference.fit(positive, negative, True), Whitened.fit(positive, negative, True)
    assert abs(float(plain.direction[0])) > 0.5
    assert abs(float(whitened.direction[0])) < 0.05


def test_whitened_refuses_classes_without_any_spread() -> None:
    with pytest.raises(InvalidRequest, match="no covariance"):
        Whitened.fit(torch.ones(5, 3), torch.zeros(5, 3), True)


def test_orient_turns_the_weight_with_the_sign_and_keeps_the_probability() -> None:
    positive, negative = torch.tensor([[2.0, 0.0]]), torch.tensor([[-1.0, 0.0]])
    found = orient(torch.tensor([-3.0, 0.0]), positive, negative, weight=-0.5, bias=0.25)
    torch.testing.assert_close(found.direction, torch.tensor([1.0, 0.0]))
    assert (found.scale, found.weight, found.bias) == (3.0, 0.5, 0.25)


@pytest.mark.parametrize(("share", "refused"), [(0.5, True), (2.0, False)])
def test_the_noise_floor_is_a_share_of_the_typical_length(share: float, refused: bool) -> None:
    length = 200.0
    negative = torch.tensor([[length, 0.0]], dtype=torch.float64)
    positive = negative + torch.tensor([0.0, share * NOISE_FLOOR * length])
    if refused:
        with pytest.raises(InvalidRequest, match="stands out"):
            MeanDifference.fit(positive, negative, True)
    else:
        assert MeanDifference.fit(positive, negative, True).scale == pytest.approx(share * NOISE_FLOOR * length)
