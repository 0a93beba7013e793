"""Reads what a request's steering did from its row, once the request has left the worker."""

from math import isnan

import torch

from steering.engine.vllm.messages import PhaseSums, ReportMessage
from steering.engine.vllm.worker.rows import WorkerRow
from steering.shapes import Tensor


def report_of(row: WorkerRow, layers: frozenset[int]) -> ReportMessage:
    """Returns the report of one pipeline stage. layers: those of the stage."""
    sequence = row.sequence
    sums: tuple[PhaseSums, ...] = tuple(
        (layer, source, phase, one.dose, one.tokens, one.fired_at)
        for (layer, source, phase), one in sequence.dose.sums.items()
    )
    scores = tuple(
        None if threshold.layer not in layers or number >= len(sequence.dose.scores) else _known(score)
        for number, (threshold, score) in enumerate(
            zip(sequence.plan.thresholds, sequence.dose.scores or [0.0] * len(sequence.plan.thresholds), strict=True)
        )
    )
    activations, logits = _captured(row)
    return ReportMessage(row.key, sums, scores, sequence.dose.held, activations, logits)


def _known(score: float) -> float | None:
    return None if isnan(score) else score


def _captured(row: WorkerRow) -> tuple[dict[int, Tensor], Tensor | None]:
    capture = row.sequence.capture
    if capture is None:
        return {}, None
    activations = {
        layer: (torch.stack(pieces).sum(0) if capture.reduce else torch.cat(pieces)).cpu()
        for layer, pieces in capture.pieces.items()
    }
    return activations, torch.cat(capture.logits).cpu() if capture.logits else None
