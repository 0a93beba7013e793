"""PCA's axes: the planted plane, a sign that does not flip, and no dependence on the seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering.projection.scikit_learn import Pca


def plane(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(activations, axes): spread 9 and 3 along two planted axes, 0.1 elsewhere."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(16, 2)))[0].T
    rows = rng.normal(size=(200, 2)) * [9.0, 3.0] @ axes + 0.1 * rng.normal(size=(200, 16)) + 5.0
    return rows.astype(np.float32), axes


def test_finds_the_planted_plane_and_its_shares() -> None:
    activations, axes = plane(0)
    drawn = Pca.fit(activations, 2, 0)
    assert drawn.basis is not None
    assert drawn.explained_variance is not None
    assert np.abs(np.sum(drawn.basis * axes, axis=1)) == pytest.approx(1.0, abs=5e-3)
    assert drawn.explained_variance == pytest.approx((0.9, 0.1), abs=0.02)


@given(st.integers(0, 1000), st.permutations(range(200)))
def test_order_and_seed_change_no_axis(seed: int, order: list[int]) -> None:
    activations, _ = plane(seed)
    one, other = Pca.fit(activations, 2, 0), Pca.fit(activations[order], 2, seed)
    assert one.basis is not None
    assert other.basis is not None
    np.testing.assert_allclose(one.basis, other.basis, atol=1e-4)
    np.testing.assert_allclose(one.points[order], other.points, atol=1e-3)
    assert (one.basis[np.arange(2), np.abs(one.basis).argmax(axis=1)] > 0).all()
