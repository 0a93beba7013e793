"""An engine with planted answers for every workflow."""

import pytest

from tests.steering.workflows.linear import LinearEngine


@pytest.fixture
def engine() -> LinearEngine:
    return LinearEngine()
