"""Typical norms: the median length of planted residuals, the first position left out."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from steering.engine.api import Capture, CapturePrompt, CaptureSpec
from steering.engine.norms import measure_typical_norms
from tests.fakes import ScriptedEngine
from tests.scripted_model import SCRIPTED_MODEL


class Planted(ScriptedEngine):
    """Residuals of length (layer + 1) * position, and a huge one at position 0."""

    async def capture(self, prompts: Sequence[CapturePrompt], spec: CaptureSpec, **_: Any) -> tuple[Capture, ...]:
        lengths = torch.tensor([1e6, 1.0, 2.0, 3.0])
        layers = torch.tensor([layer + 1.0 for layer in spec.layers])
        residuals = torch.zeros(len(spec.layers), 4, self.info.d_model)
        residuals[:, :, 0] = layers[:, None] * lengths
        return tuple(Capture((1, 2, 3, 4), residuals) for _ in prompts)


async def test_the_median_by_layer_without_the_first_position() -> None:
    engine = Planted(info=replace(SCRIPTED_MODEL, layer_count=3, typical_norms=()))
    assert await measure_typical_norms(engine, ("a", "b", "c", "d", "e")) == pytest.approx((2.0, 4.0, 6.0))


async def test_neutral_text_of_the_package_is_read_at_every_layer() -> None:
    norms = await measure_typical_norms(ScriptedEngine())
    assert len(norms) == SCRIPTED_MODEL.layer_count
    assert all(norm > 0 for norm in norms)
