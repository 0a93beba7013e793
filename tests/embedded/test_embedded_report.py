"""The questions of a deployment report tell the embedded model from guessing."""

from statistics import fmean

import pytest

from steering.engine.transformers.engine import TransformersEngine
from steering.lab.report import answered_rightly, load_questions
from steering.plan.types import UNSTEERED

pytestmark = pytest.mark.embedded
CHANCE = 0.25  # four options


async def test_the_model_answers_far_above_chance(engine: TransformersEngine) -> None:
    assert fmean(await answered_rightly(engine, load_questions(), UNSTEERED)) > 2 * CHANCE
