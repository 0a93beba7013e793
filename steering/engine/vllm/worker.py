"""SteeringWorker: the worker class that vLLM is given. Everything it adds is steering.

Behind each decoder layer, and at hook points inside it, one opaque operation steers and reads; its body stays Python. The edits of most
requests behind a layer are tensor operations of fixed shape instead, which become part of vLLM's compiled graphs and of its CUDA graphs
(`StaticEdits`). CUDA graphs do not run Python when they are replayed, so a pass in which the operation acts runs without them. Model runner
V1 is wrapped to tell steering what a pass computes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import zmq
from torch import nn
from vllm.config import CUDAGraphMode
from vllm.distributed.parallel_state import get_pp_group, get_tp_group
from vllm.forward_context import get_forward_context
from vllm.platforms import current_platform

from steering.engine.cpu.kernels.library import load
from steering.engine.vllm.messages import (
    EDITS_IN_GRAPHS,
    EXTRA_ARGS,
    HOOK_POINTS,
    KERNELS,
    MonitorReading,
    RequestSteering,
    as_bytes,
    decode,
    encode,
    from_bytes,
)
from steering.engine.vllm.operation import Attached
from steering.engine.vllm.worker_steering import StaticSize, StepView, WorkerSteering
from steering.errors import UnsupportedModel
from steering.injection.readings import Reading
from steering.model.hook_points import HEADS, kind_of, residual_of
from steering.model.verification import hook_modules
from steering.plan.types import SteeringPlan
from steering.shapes import Tensor

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as Worker
else:
    from vllm.v1.worker.gpu_worker import Worker

LOGIT_ROWS = 256
"""Positions whose logits a capture computes at once."""


class SteeringWorker(Worker):  # type: ignore[misc]
    """vLLM's worker, with steering attached between loading and compiling. `steering_*` are called by the engine."""

    def load_model(self, **options: Any) -> None:
        """Loads the model, then attaches steering to it: hooks registered later are ignored by a compiled model."""
        if self.use_v2_model_runner:  # some features of vLLM ask for it whatever the environment says
            raise UnsupportedModel("the engine 'vllm' steers vLLM's model runner V1, and this configuration needs V2")
        super().load_model(**options)
        config = self.vllm_config.model_config
        count = int(config.hf_text_config.num_hidden_layers)
        model = self.model_runner.get_model()
        layers = _decoder_layers(model, count)
        static = None
        if self.vllm_config.additional_config.get(EDITS_IN_GRAPHS):
            scheduler = self.vllm_config.scheduler_config
            static = StaticSize(scheduler.max_num_seqs, scheduler.max_num_batched_tokens)
        kinds, head_count = self.vllm_config.additional_config[HOOK_POINTS]
        d_model = int(config.get_hidden_size())
        self._steering = WorkerSteering(frozenset(layers), count, d_model, self.device, static, head_count)
        self._socket: zmq.Socket[bytes] | None = None
        Attached.act = self._steering.act
        self._library = self.vllm_config.additional_config.get(KERNELS)
        if self._library:
            load(Path(self._library))
        for index, layer in layers.items():
            if self._steering.static is not None:
                layer.add_module("steering_edits", self._steering.static.edits)
            layer.register_forward_hook(_hook(index, type(model).__name__, d_model))
            for point, module in hook_modules(index, layer).items():
                if kind_of(point) in kinds:
                    _hook_inside(module, point, d_model, head_count)
        _wrap_runner(self.model_runner, model, self._steering)

    @torch.inference_mode()
    def execute_model(self, scheduler_output: Any) -> Any:
        """Runs one step. Requests that have left are reported first: nobody needs to wait for the step."""
        steering = self._steering
        steering.release(sorted(scheduler_output.finished_req_ids))
        self._send()
        for new in scheduler_output.scheduled_new_reqs:
            arguments = (new.sampling_params and new.sampling_params.extra_args) or {}
            if EXTRA_ARGS in arguments:
                request = RequestSteering.unpacked(arguments[EXTRA_ARGS])
                steering.admit(new.req_id, new.prompt_token_ids, request, new.num_computed_tokens)
        output = super().execute_model(scheduler_output)
        steering.end()
        self._send()
        return output

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Samples the tokens of the step."""
        with _without_discarded_draws(self.model_runner):
            return super().sample_tokens(grammar_output)

    def _send(self) -> None:
        """Sends the messages of this stage; all tensor-parallel ranks have the same."""
        messages, self._steering.outbox = self._steering.outbox, []
        if messages and self._socket is not None:
            self._socket.send(encode(messages))

    def steering_connect(self, address: str) -> tuple[int, list[int]]:
        """Connects to the server's process. Returns the pipeline stage of this worker, and its layers, which report."""
        if get_tp_group().rank_in_group == 0:
            self._socket = zmq.Context.instance().socket(zmq.PUSH)
            self._socket.setsockopt(zmq.LINGER, 0)
            self._socket.connect(address)
        return int(get_pp_group().rank_in_group), sorted(self._steering.layers)

    @torch.inference_mode()
    def steering_put(self, kind: str, key: str, content: bytes) -> str:
        """Keeps a plan, readings or monitors under a key. Returns why they cannot be applied, or an empty text."""
        try:
            if kind == "plan":
                self._steering.put_plan(key, decode(content, SteeringPlan))
            elif kind == "readings":
                self._steering.put_readings(key, decode(content, tuple[Reading, ...]))
            elif kind == "texts":
                self._steering.put_token_texts(decode(content, tuple[str, ...]))
            else:
                self._steering.put_monitors(key, decode(content, tuple[MonitorReading, ...]))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def steering_forget(self, keys: list[str]) -> None:
        """Drops plans, readings and monitors."""
        self._steering.forget(keys)

    @torch.inference_mode()
    def steering_embed(self, ids: list[int]) -> bytes | None:
        """Returns the embedding layer's output, (token, d_model); None on other stages than the first."""
        if not get_pp_group().is_first_rank:
            return None
        return as_bytes(self.model_runner.get_model().embed_input_ids(torch.tensor(ids, device=self.device)))

    @torch.inference_mode()
    def steering_unembed(self, content: bytes) -> bytes | None:
        """Returns the logits of residuals (token, d_model); None on other stages than the last, nothing where the
        model's final norm has another place than in most."""
        model = self.model_runner.get_model()
        if not get_pp_group().is_last_rank:
            return None
        norm = getattr(getattr(model, "model", None), "norm", None)
        if norm is None:
            return b""
        residual = from_bytes(content).view(-1, self._steering.d_model)
        logits = model.compute_logits(norm(residual.to(self.device, self.vllm_config.model_config.dtype)))
        return None if logits is None else as_bytes(logits)

    def steering_calls(self) -> dict[str, int]:
        """Returns how often the hook of each point ran. From then on they need not run where nothing acts."""
        self._steering.uses_kernel = bool(self._library)
        return {str(point): calls for point, calls in self._steering.calls.items()}

    def steering_in_graphs(self) -> int:
        """Returns how many requests were steered by the operations of the graphs alone."""
        return self._steering.in_graphs

    def steering_resumed(self) -> int:
        """Returns how often a request was resumed after a preemption, and computed positions again."""
        return self._steering.resumed


def _decoder_layers(model: nn.Module, layer_count: int) -> dict[int, nn.Module]:
    """Returns the decoder layers of this pipeline stage by their index in the whole model.

    vLLM keeps a list of all layers in every stage, with placeholders for those of the others. Raises UnsupportedModel.
    """
    lists = [one for one in model.modules() if isinstance(one, nn.ModuleList) and len(one) == layer_count]
    if len(lists) != 1:
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be steered: {len(lists)} lists of {layer_count} layers were found in it"
        )
    return {index: layer for index, layer in enumerate(lists[0]) if type(layer).__name__ != "PPMissingLayer"}


def _hook(index: int, model: str, d_model: int) -> Any:
    """vLLM's layers return the stream, or a pair whose sum it is (as its own EAGLE-3 interface reads it)."""

    def hook(layer: nn.Module, _arguments: Any, output: Any) -> Any:
        hidden, residual = output if isinstance(output, tuple) and len(output) == 2 else (output, None)
        for stream in (hidden,) if residual is None else (hidden, residual):
            if not isinstance(stream, Tensor) or stream.dim() != 2 or stream.shape[1] != d_model:
                raise UnsupportedModel(
                    f"{model} cannot be steered: a layer returns something else than one residual stream"
                )
        edits = getattr(layer, "steering_edits", None)
        if edits is not None:
            hidden = edits(index, hidden, residual)
        torch.ops.steering.act(hidden, residual, index)
        return None if edits is None else hidden if residual is None else (hidden, residual)

    return hook


def _hook_inside(module: nn.Module, point: int, d_model: int, head_count: int) -> None:
    """Attaches steering to the output of a module, or at concatenated heads to its input. A stream of another form is left alone: the
    engine then does not offer the hook point."""
    heads = kind_of(point) == HEADS

    def act_on(stream: Any) -> None:
        if not isinstance(stream, Tensor) or stream.dim() != 2:
            return
        if stream.shape[1] % head_count == 0 if heads else stream.shape[1] == d_model:
            torch.ops.steering.act(stream, None, point)

    if heads:
        module.register_forward_pre_hook(lambda _module, arguments: act_on(arguments[0] if arguments else None))
    else:
        module.register_forward_hook(lambda _module, _arguments, output: act_on(residual_of(output)))


def _wrap_runner(runner: Any, model: Any, steering: WorkerSteering) -> None:
    """Wraps `_model_forward` of this runner, which vLLM has for subclasses to override, and `compute_logits` of its
    model. Runs that only profile, warm up or record graphs do not go through `_model_forward`, so they are not steered."""
    forward, compute_logits = runner._model_forward, model.compute_logits

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
def _without_discarded_draws(runner: Any) -> Iterator[None]:
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


def _capture_logits(output: Any, compute_logits: Any, steering: WorkerSteering) -> None:
    """Keeps the logits of captures that want them, on the host. output: of the last stage, a tensor."""
    step = steering.step
    if step is None or not isinstance(output, Tensor):
        return
    for segment in step.logit_rows():
        capture = segment.row.capture
        assert capture is not None
        for start in range(segment.logit_tokens.start, segment.end, LOGIT_ROWS):
            logits = compute_logits(output[start : min(start + LOGIT_ROWS, segment.end)])
            if logits is not None:  # only one of the processes that share the head gets them
                capture.logits.append(logits.float().cpu())
