"""How steering is attached to vLLM's model runners V1 and V2: before the forward of a pass it is told what the pass computes, and which
passes may be replayed from CUDA graphs; after it, it is given the last residuals."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from vllm.config import CUDAGraphMode
from vllm.forward_context import get_forward_context

from steering.engine.vllm.worker_steering import StepView, WorkerSteering
from steering.shapes import Tensor

LOGIT_ROWS = 256
"""Positions whose logits a capture computes at once."""


def attach(runner: Any, steering: WorkerSteering, *, is_v2: bool) -> None:
    """Wraps the methods of a runner that prepare a pass. Runs that only profile, warm up or record graphs do not go through them, so they
    are not steered."""
    (_attach_v2 if is_v2 else _attach_v1)(runner, steering)


def _attach_v1(runner: Any, steering: WorkerSteering) -> None:
    """Wraps `_model_forward`, which vLLM has for subclasses to override, and `sample_tokens`."""
    forward, sample_tokens = runner._model_forward, runner.sample_tokens

    def steered_forward(*arguments: Any, **keywords: Any) -> Any:
        batch, positions = runner.input_batch, keywords["positions"]
        count, token_ids = batch.num_reqs, keywords.get("input_ids")
        if token_ids is None:  # models that read images are given embeddings, made of these
            token_ids = runner.input_ids.gpu
        steering.begin(
            StepView(
                request_ids=batch.req_ids[:count],
                starts=runner.query_start_loc.np[: count + 1].tolist(),
                first=batch.num_computed_tokens_cpu[:count].tolist(),
                positions=positions if positions.dim() == 1 else positions[0],
                token_ids=token_ids,
            )
        )
        if steering.static is not None and steering.step is not None and steering.step.layers:
            get_forward_context().cudagraph_runtime_mode = CUDAGraphMode.NONE  # the operation's Python must run
        return forward(*arguments, **keywords)

    def sampled(*arguments: Any) -> Any:
        with _without_discarded_draws(runner):
            return sample_tokens(*arguments)

    runner._model_forward, runner.sample_tokens = steered_forward, sampled


@contextmanager
def _without_discarded_draws(runner: Any) -> Iterator[None]:
    """Keeps the generators of requests whose prompt is not complete out of sampling, whose result is discarded for them.

    V1 of vLLM 0.32 lets them draw and takes the draw back with `Generator.set_offset`, which does not exist on a CPU: the first seeded
    request with a prompt of several pieces would end the worker. V2 draws from seed and position alone.
    """
    generators = runner.input_batch.generators
    count = runner.input_batch.num_reqs
    discarded = runner.discard_request_mask.np[:count].nonzero()[0].tolist()
    held = {number: generators.pop(number) for number in discarded if number in generators}
    try:
        yield
    finally:
        generators.update(held)


def _attach_v2(runner: Any, steering: WorkerSteering) -> None:
    """Wraps what runs right before a graph is chosen, when the requests of the pass are known, and right after it, when its tokens are."""
    gather, prepare = runner.gather_batch_req_state, runner.prepare_inputs

    def gathered(scheduled: Any, dummy_run: bool) -> Any:
        if runner.cudagraph_manager is not None:
            choose_graph(runner.cudagraph_manager, {} if dummy_run else scheduled.num_scheduled_tokens, steering)
        return gather(scheduled, dummy_run)

    def prepared(scheduled: Any, requests: Any, described: Any, *arguments: Any) -> Any:
        batch = prepare(scheduled, requests, described, *arguments)
        steering.begin(
            StepView(
                request_ids=batch.req_ids,
                starts=batch.query_start_loc_np[: batch.num_reqs + 1].tolist(),
                first=batch.num_computed_tokens_np.tolist(),
                positions=batch.positions,
                token_ids=batch.input_ids,
                in_graph=described.cg_mode != CUDAGraphMode.NONE,
            )
        )
        return batch

    runner.gather_batch_req_state, runner.prepare_inputs = gathered, prepared


def choose_graph(manager: Any, request_ids: Iterable[str], steering: WorkerSteering) -> None:
    """Has V2's CudaGraphManager choose no graph for the next pass where the operation's Python must run for a request in it."""
    vars(manager).pop("dispatch", None)
    if steering.leaves_graphs(request_ids):
        manager.dispatch = _no_graph


def _no_graph(num_reqs: int, num_tokens: int, *_: Any, num_active_loras: int = 0, **__: Any) -> Any:
    """Returns what V2 has for a pass that needs no graph."""
    from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor  # noqa: PLC0415 - imports Triton's kernels

    return BatchExecutionDescriptor(CUDAGraphMode.NONE, num_tokens, num_reqs, num_active_loras=num_active_loras)


def read_last(runner: Any, compute_logits: Callable[[Tensor], Tensor | None], steering: WorkerSteering) -> None:
    """After a pass: notes the residuals that the head reads, and keeps the logits of captures that want them, on the host. Only the last
    pipeline stage has them."""
    state, step = runner.execute_model_state, steering.step
    if state is None or step is None or state.hidden_states is None:
        return
    hidden = state.hidden_states
    last = getattr(state, "sample_hidden_states", None)  # of V1
    step.note_last(hidden[state.input_batch.logits_indices] if last is None else last)
    for segment in step.logit_rows():
        capture = segment.row.capture
        assert capture is not None
        for start in range(segment.logit_tokens.start, segment.end, LOGIT_ROWS):
            logits = compute_logits(hidden[start : min(start + LOGIT_ROWS, segment.end)])
            if logits is not None:  # only one of the processes that share the head gets them
                capture.logits.append(logits.float().cpu())
