"""SteeringWorker: the worker class that vLLM is given. Everything it adds is steering.

Behind each decoder layer, and at hook points inside it, one opaque operation steers and reads; its body stays Python. The edits of most
requests behind a layer are tensor operations of fixed shape instead, which become part of vLLM's compiled graphs and of its CUDA graphs
(`StaticEdits`). CUDA graphs do not run Python when they are replayed, so a pass in which the operation acts runs without them.
`worker_runner.py` tells steering what a pass computes.
"""

from pathlib import Path
from typing import Any

import torch
import zmq
from torch import nn
from vllm.distributed.parallel_state import get_pp_group, get_tp_group
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
from steering.engine.vllm.worker_runner import attach, read_last
from steering.engine.vllm.worker_steering import StaticSize, WorkerSteering
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


class SteeringWorker(Worker):  # type: ignore[misc]
    """vLLM's worker, with steering attached between loading and compiling. `steering_*` are called by the engine."""

    def load_model(self, **options: Any) -> None:
        """Loads the model, then attaches steering to it: hooks registered later are ignored by a compiled model."""
        if self.vllm_config.num_speculative_tokens:
            raise UnsupportedModel(
                "the engine 'vllm' does not steer drafted tokens: those of speculative decoding and of diffusion models"
            )
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
        attach(self.model_runner, self._steering, is_v2=self.use_v2_model_runner)

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
        if scheduler_output.new_block_ids_to_zero and not (steering.met_nonfinite or self._must_clear()):
            scheduler_output.new_block_ids_to_zero = None  # to clear every block takes 2 % of the tokens/s
        output = super().execute_model(scheduler_output)
        read_last(self.model_runner, self.model_runner.get_model().compute_logits, steering)
        steering.end()
        self._send()
        return output

    def _must_clear(self) -> bool:
        """Whether the blocks that vLLM names are to be cleared whatever was computed: for the model's sake, or where the last pipeline stage
        alone knows what was not finite. Otherwise they are named for hashing.py, on a CPU."""
        cache = self.model_runner.kv_cache_config
        needed = cache.has_mamba_layers or cache.has_mixed_precision_kv_cache
        return needed or not current_platform.is_cpu() or get_pp_group().world_size > 1

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
