"""Adapts vLLM's model runner V1: tells steering what a pass computes, and shows it the last residuals."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from steering.engine.vllm.worker.state import StepView, WorkerSteering
from steering.shapes import Tensor

LOGIT_ROWS = 256
"""Positions whose logits a capture computes at once."""


def wrap_runner(runner: Any, model: Any, steering: WorkerSteering) -> None:
    """Wraps `_model_forward` of this runner, which vLLM has for subclasses to override, and `compute_logits` of its
    model. Runs that only profile, warm up or record graphs do not go through `_model_forward`, so they are not steered."""
    forward, compute_logits = runner._model_forward, model.compute_logits

    def steered_forward(*arguments: Any, **keywords: Any) -> Any:
        steering.begin(_view(runner, keywords["positions"]))
        output = forward(*arguments, **keywords)
        _capture_logits(output, compute_logits, steering)
        return output

    def observed_logits(hidden: Tensor, *arguments: Any, **keywords: Any) -> Any:
        if steering.step is not None:
            steering.step.note_last(hidden)
        return compute_logits(hidden, *arguments, **keywords)

    runner._model_forward = steered_forward
    model.compute_logits = observed_logits


@contextmanager
def without_discarded_draws(runner: Any) -> Iterator[None]:
    """Keeps the generators of requests whose prompt is not complete out of sampling, whose result is discarded for them.

    vLLM 0.32 lets them draw and takes the draw back with `Generator.set_offset`, which does not exist on a CPU: the
    first seeded request with a prompt of several pieces would end the worker.
    """
    generators = runner.input_batch.generators
    count = runner.input_batch.num_reqs
    discarded = runner.discard_request_mask.np[:count].nonzero()[0].tolist()
    held = {number: generators.pop(number) for number in discarded if number in generators}
    try:
        yield
    finally:
        generators.update(held)


def _view(runner: Any, positions: Tensor) -> StepView:
    batch = runner.input_batch
    count = batch.num_reqs
    return StepView(
        request_ids=batch.req_ids[:count],
        starts=runner.query_start_loc.np[: count + 1],
        first=batch.num_computed_tokens_cpu[:count],
        positions=positions if positions.dim() == 1 else positions[0],
    )


def _capture_logits(output: Any, compute_logits: Any, steering: WorkerSteering) -> None:
    """Keeps the logits of captures that want them, on the host. output: of the last stage, a tensor."""
    step = steering.step
    if step is None or not isinstance(output, Tensor):
        return
    for segment in step.logit_rows():
        capture = segment.sequence.capture
        assert capture is not None
        for start in range(segment.logit_tokens.start, segment.end, LOGIT_ROWS):
            rows = output[start : min(start + LOGIT_ROWS, segment.end)]
            logits = compute_logits(rows)
            if logits is not None:  # only one of the processes that share the head gets them
                capture.logits.append(logits.float().cpu())
