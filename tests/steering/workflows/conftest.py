"""An engine with planted answers for every workflow."""

import pytest

from .linear import LinearEngine


@pytest.fixture
def engine() -> LinearEngine:
    return LinearEngine()
