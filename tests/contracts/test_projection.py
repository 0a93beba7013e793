"""Every projection gives finite points of the shape asked for, the same ones for the same seed, or refuses."""

import numpy as np
import pytest
from numpy.typing import NDArray

from steering.errors import InvalidRequest, NonfiniteActivations
from steering.projection import PROJECTIONS

every_projection = pytest.mark.parametrize("method", PROJECTIONS)


def clusters(examples: int = 60, d_model: int = 32, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """(activations, label): three clouds far apart, in turn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(examples) % 3
    centres = 20.0 * rng.normal(size=(3, d_model))
    return (centres[labels] + rng.normal(size=(examples, d_model))).astype(np.float32), labels


@every_projection
@pytest.mark.parametrize("dims", [2, 3])
def test_shape_and_type(method: str, dims: int) -> None:
    drawn = PROJECTIONS[method].fit(clusters()[0], dims, 0)
    assert drawn.points.shape == (60, dims)
    assert drawn.points.dtype == np.float32
    assert np.isfinite(drawn.points).all()


@every_projection
def test_same_seed_same_points(method: str) -> None:
    activations, _ = clusters()
    one, other = (PROJECTIONS[method].fit(activations, 2, 7).points for _ in range(2))
    assert np.array_equal(one, other)


@every_projection
def test_clouds_far_apart_stay_apart(method: str) -> None:
    activations, labels = clusters()
    points = PROJECTIONS[method].fit(activations, 2, 1).points
    distance = np.linalg.norm(points[:, None] - points[None, :], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (labels[distance.argmin(axis=1)] == labels).all()


@every_projection
def test_takes_as_few_as_it_says_and_refuses_fewer(method: str) -> None:
    activations, _ = clusters()
    least = PROJECTIONS[method].min_examples
    for dims in (2, 3):
        assert np.isfinite(PROJECTIONS[method].fit(activations[:least], dims, 0).points).all()
        with pytest.raises(InvalidRequest, match=f"'{method}' needs at least {least} texts"):
            PROJECTIONS[method].fit(activations[: least - 1], dims, 0)


@every_projection
def test_more_texts_than_dimensions_and_fewer(method: str) -> None:
    for examples, d_model in ((20, 4), (20, 300)):
        activations, _ = clusters(examples, d_model)
        assert np.isfinite(PROJECTIONS[method].fit(activations, 3, 0).points).all()


@every_projection
def test_what_cannot_be_drawn_is_refused(method: str) -> None:
    activations, _ = clusters()
    for dims in (0, 1, 4):
        with pytest.raises(InvalidRequest, match="dims must be 2 or 3"):
            PROJECTIONS[method].fit(activations, dims, 0)
    with pytest.raises(InvalidRequest, match="all alike"):
        PROJECTIONS[method].fit(np.ones((20, 8), dtype=np.float32), 2, 0)
    with pytest.raises(InvalidRequest, match="d_model at least 3"):
        PROJECTIONS[method].fit(activations[:, :2], 3, 0)
    activations[4, 5] = np.inf
    with pytest.raises(NonfiniteActivations):
        PROJECTIONS[method].fit(activations, 2, 0)


@every_projection
def test_leaves_its_input_alone(method: str) -> None:
    activations, _ = clusters()
    before = activations.copy()
    PROJECTIONS[method].fit(activations, 2, 0)
    assert np.array_equal(activations, before)


@every_projection
def test_a_linear_projection_says_how_to_draw_a_direction(method: str) -> None:
    """Either none of the two is given, or points = (X - mean) basis^T."""
    activations, _ = clusters()
    drawn = PROJECTIONS[method].fit(activations, 3, 0)
    given = [part is not None for part in (drawn.basis, drawn.explained_variance)]
    assert all(given) or not any(given)
    if drawn.basis is not None and drawn.explained_variance is not None:
        np.testing.assert_allclose((activations - activations.mean(axis=0)) @ drawn.basis.T, drawn.points, atol=1e-3)
        np.testing.assert_allclose(drawn.basis @ drawn.basis.T, np.eye(3), atol=1e-5)
        assert sorted(drawn.explained_variance, reverse=True) == list(drawn.explained_variance)
        assert 0.0 < sum(drawn.explained_variance) <= 1.0 + 1e-6


def test_an_unknown_projection_is_refused_naming_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match="pca, tsne, umap"):
        PROJECTIONS["isomap"]
