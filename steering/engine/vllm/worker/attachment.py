"""Attaches steering to a model of vLLM, by one opaque operation behind each decoder layer, and to its model runner V1, which tells
steering what a pass computes and shows it the last residuals.

The operation is registered with torch, so that a compiled graph calls it and its body stays Python: what acts in a pass
differs from pass to pass. A layer where nothing acts costs the call alone. CUDA graphs do not run Python when they are
replayed; on a GPU the operation is therefore one of those at which vLLM splits its graphs (`SPLITTING_OP`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from steering.engine.vllm.worker.state import StepView, WorkerSteering
from steering.errors import UnsupportedModel
from steering.shapes import Tensor

SPLITTING_OP = "steering::act"
LOGIT_ROWS = 256
"""Positions whose logits a capture computes at once."""


class _Attached:
    """The steering of this worker process; vLLM has one model in each."""

    steering: WorkerSteering | None = None


@torch.library.custom_op(SPLITTING_OP, mutates_args=("hidden",))
def act(hidden: torch.Tensor, residual: torch.Tensor | None, layer: int) -> None:
    """Steers the stream hidden (+ residual) behind a layer by changing `hidden` in place."""
    if _Attached.steering is not None:
        _Attached.steering.act(layer, hidden, residual)


@act.register_fake
def _(hidden: torch.Tensor, residual: torch.Tensor | None, layer: int) -> None:
    """Has no result to describe."""


def decoder_layers(model: nn.Module, layer_count: int) -> dict[int, nn.Module]:
    """Returns the decoder layers of this pipeline stage by their index in the whole model.

    vLLM keeps a list of all layers in every stage, with placeholders for those of the others. Raises UnsupportedModel.
    """
    lists = [one for one in model.modules() if isinstance(one, nn.ModuleList) and len(one) == layer_count]
    if len(lists) != 1:
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be steered: {len(lists)} lists of {layer_count} layers were found in it"
        )
    return {index: layer for index, layer in enumerate(lists[0]) if type(layer).__name__ != "PPMissingLayer"}


def attach(model: nn.Module, steering: WorkerSteering, layers: dict[int, nn.Module]) -> None:
    """Registers the hooks. To be called after the weights are loaded and before the model is compiled: hooks that are
    registered later are ignored by a compiled model."""
    _Attached.steering = steering
    for index, layer in layers.items():
        layer.register_forward_hook(_hook(index, type(model).__name__, steering.d_model))


def _hook(index: int, model: str, d_model: int) -> Any:
    def hook(_layer: nn.Module, _arguments: Any, output: Any) -> None:
        hidden, residual = output if isinstance(output, tuple) and len(output) == 2 else (output, None)
        _check(hidden, model, d_model)
        if residual is not None:
            _check(residual, model, d_model)
        torch.ops.steering.act(hidden, residual, index)

    return hook


def _check(stream: Any, model: str, d_model: int) -> None:
    """vLLM's layers return the stream, or a pair whose sum it is (as its own EAGLE-3 interface reads it)."""
    if not isinstance(stream, Tensor) or stream.dim() != 2 or stream.shape[1] != d_model:
        raise UnsupportedModel(f"{model} cannot be steered: a layer returns something else than one residual stream")


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
        capture = segment.row.capture
        assert capture is not None
        for start in range(segment.logit_tokens.start, segment.end, LOGIT_ROWS):
            rows = output[start : min(start + LOGIT_ROWS, segment.end)]
            logits = compute_logits(rows)
            if logits is not None:  # only one of the processes that share the head gets them
                capture.logits.append(logits.float().cpu())
