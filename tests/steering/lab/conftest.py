"""An engine with planted answers for work over an engine."""

import pytest

from tests.steering.workflows.linear import LinearEngine


@pytest.fixture
def engine() -> LinearEngine:
    return LinearEngine()
