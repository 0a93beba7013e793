"""What is summed and bounded per token of a pass, whichever operations changed it: static adds, whole changes, the guard."""

from collections.abc import Sequence
from typing import TypeAlias

import torch

from steering.engine.transformers.batch import Segment
from steering.engine.transformers.steering.dose import CHANGED, CLAMPED, STATIC, WHOLE
from steering.engine.transformers.steering.gather import Spread, index_of
from steering.shapes import Float, Residual, Tensor

PerToken: TypeAlias = Float[Tensor, "token"]
_TINY = 1e-12
"""Keeps 0 / 0 at 1 where nothing changes and nothing is left of a bound."""


class TokenSums:
    """Sums by layer and token over one pass, or over many with the same segments.

    static: 1 / |r| as the static adds found it. whole_layers: where several sources act on one request, so that what
    they changed together is measured.
    """

    def __init__(self, segments: Sequence[Segment], tokens: int, layer_count: int, device: torch.device) -> None:
        self._steered = [segment for segment in segments if not segment.sequence.plan.empty]
        self._device = device
        plans = {id(segment.sequence.plan): segment.sequence.plan for segment in self._steered}.values()
        self.whole_layers = frozenset(
            layer for plan in plans for layer, one in plan.layers.items() if len(one.calls) + bool(one.static_adds) > 1
        )
        self.passes = 0
        self.static = torch.zeros(layer_count, tokens, device=device)
        self._whole = torch.zeros(2, layer_count if self.whole_layers else 0, tokens, device=device)
        bounded = any(plan.dose_bound is not None for plan in plans)
        self._clamped = torch.zeros(layer_count if bounded else 0, tokens, device=device)

    def add(
        self, layer: int, change: tuple[Residual, Residual], inverse: PerToken, factor: PerToken | None, *, static: bool
    ) -> None:
        """Adds |r' - r| / |r| of each token, and counts those that changed. change: residuals as they arrive and as they leave.
        inverse: 1 / |r|. factor: what the guard left of each change, where there is one; it counts the tokens at which that is
        less than the whole. static: whether static adds act."""
        if factor is not None:
            self._clamped[layer] += factor < 1.0
        if layer in self.whole_layers:
            dose = torch.linalg.vector_norm(change[1] - change[0], dim=-1) * inverse
            self._whole[0, layer] += dose
            self._whole[1, layer] += dose > CHANGED
        if static:
            self.static[layer] += inverse if factor is None else inverse * factor

    def collect(self) -> None:
        """Moves the sums to the ledgers, and starts again from zero."""
        if not self._steered:
            return
        runs = [(s, run) for s in self._steered for run in s.sequence.dose.runs(s.first, s.length)]
        spread = Spread([run.length for _, run in runs], self._device)
        tokens = index_of([range(s.start, s.end) for s in self._steered], self._device)

        def by_run(values: Float[Tensor, "layer token"]) -> list[list[float]]:
            sums = values.new_zeros(values.shape[0], len(runs))
            found: list[list[float]] = sums.index_add_(1, spread.members, values[:, tokens]).tolist()
            values.zero_()
            return found

        static, doses, counts = by_run(self.static), by_run(self._whole[0]), by_run(self._whole[1])
        clamped = by_run(self._clamped)
        for number, (segment, run) in enumerate(runs):
            plan, ledger = segment.sequence.plan, segment.sequence.dose
            for layer, steering in plan.layers.items():
                if steering.static_adds:
                    first = int(run.phase) - 1
                    added = run.length * self.passes
                    ledger.note((layer, STATIC), run, static[layer][number], added, added, first)
                if layer in self.whole_layers:
                    changed = counts[layer][number]
                    ledger.note((layer, WHOLE), run, doses[layer][number], changed, changed)
                if plan.dose_bound is not None:
                    scaled = clamped[layer][number]
                    ledger.note((layer, CLAMPED), run, 0.0, scaled, scaled)
        self.passes = 0


class DoseLimit:
    """Bounds the relative dose of each token, summed over the layers, by scaling the change down where it would exceed.

    The change at a layer is that of all interventions together. Earlier layers come first: a later layer has what they
    left of the bound.
    """

    def __init__(self, segments: Sequence[Segment], tokens: int, device: torch.device) -> None:
        """layers: where it acts; none where no request's dose is bounded."""
        bounds = torch.full((tokens,), torch.inf)
        bounded = [(s, s.sequence.plan.dose_bound) for s in segments if s.sequence.plan.dose_bound is not None]
        for segment, bound in bounded:
            bounds[segment.start : segment.end] = bound
        self.layers = frozenset[int]().union(*(segment.sequence.plan.layers for segment, _ in bounded))
        self._bounds = self._left = bounds.to(device) if bounded else bounds

    def begin(self) -> None:
        """Before each pass: no token has used any of its bound."""
        self._left = self._bounds

    def apply(self, arriving: Residual, leaving: Residual, inverse: PerToken) -> tuple[Residual, PerToken]:
        """inverse: 1 / |arriving|. Returns the residual within the bounds, and the share that was left of each token's change."""
        dose = torch.linalg.vector_norm(leaving - arriving, dim=-1) * inverse
        factor = ((self._left + _TINY) / (dose + _TINY)).clamp_max_(1.0)
        dose *= factor
        self._left = (self._left - dose).clamp_min_(0.0)
        # lerp returns exactly `leaving` where the factor is 1
        return torch.lerp(arriving, leaving, factor[:, None]), factor
