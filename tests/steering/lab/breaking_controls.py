"""Engines in which random directions, or the texts that are read, make activations non-finite, and the planted vector does not elsewhere."""

from collections.abc import Callable

from steering.engine.api import Capture, CapturePrompt, CaptureSpec, GenerationRequest
from steering.errors import NonfiniteActivations, SteeringError
from tests.plans import change_at
from tests.steering.workflows.linear import GAIN, LinearEngine


def breaking_controls(beyond: float, which: Callable[[float], bool] = lambda _: True) -> LinearEngine:
    """An engine in which random directions break beyond a strength. which: of them, by how far they lie along the embedding of
    the first word."""

    def fails(request: GenerationRequest, index: int) -> SteeringError | None:
        added = change_at(request.plan, 2) if request.plan.layers else None
        if added is None or float(added.norm()) <= beyond * GAIN:
            return None
        random = abs(float(added @ engine.concept)) < 0.9 * float(added.norm())
        return NonfiniteActivations("no") if random and which(float(added @ engine.embedding[0])) else None

    engine = LinearEngine(fails=fails)
    return engine


class BreakingReads(LinearEngine):
    """An engine in which texts that are read with more than `beyond` natural scales added break, and answers do not."""

    def __init__(self, beyond: float) -> None:
        super().__init__()
        self._beyond = beyond

    def _capture(self, prompt: CapturePrompt, spec: CaptureSpec) -> Capture:
        if prompt.plan.layers and float(change_at(prompt.plan, 2).norm()) > self._beyond * GAIN:
            raise NonfiniteActivations("no")
        return super()._capture(prompt, spec)
