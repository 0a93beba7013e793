"""SteeringWorker: the worker class that vLLM is given; everything it adds is steering."""

from typing import Any

import torch
import zmq
from vllm.distributed.parallel_state import get_pp_group, get_tp_group
from vllm.platforms import current_platform

from steering.engine.vllm.messages import EXTRA_ARGS, MonitorReading, RequestSteering, decode, encode
from steering.engine.vllm.worker.attachment import attach, decoder_layers, without_discarded_draws, wrap_runner
from steering.engine.vllm.worker.state import WorkerSteering
from steering.injection.readings import Reading
from steering.plan.types import SteeringPlan
from steering.shapes import Tensor

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as Worker
else:
    from vllm.v1.worker.gpu_worker import Worker


class SteeringWorker(Worker):  # type: ignore[misc]
    """vLLM's worker, with steering attached between loading and compiling. `steering_*` are called by the engine."""

    def load_model(self, **options: Any) -> None:
        """Loads the model, then attaches steering to it."""
        super().load_model(**options)
        config = self.vllm_config.model_config
        count = int(config.hf_text_config.num_hidden_layers)
        model = self.model_runner.get_model()
        layers = decoder_layers(model, count)
        self._steering = WorkerSteering(frozenset(layers), count, int(config.get_hidden_size()), self.device)
        self._socket: zmq.Socket[bytes] | None = None
        attach(model, self._steering, layers)
        wrap_runner(self.model_runner, model, self._steering)

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
        with without_discarded_draws(self.model_runner):
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
        """Keeps a plan, readings or monitors under a key. Returns the reason where they cannot be applied, else an empty
        text."""
        try:
            if kind == "plan":
                self._steering.put_plan(key, decode(content, SteeringPlan))
            elif kind == "readings":
                self._steering.put_readings(key, decode(content, tuple[Reading, ...]))
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
        """Returns the embedding layer's output in float32, (token, d_model); None on other stages than the first."""
        if not get_pp_group().is_first_rank:
            return None
        tokens = torch.tensor(ids, device=self.device)
        embedded: Tensor = self.model_runner.get_model().embed_input_ids(tokens)
        return embedded.float().cpu().numpy().tobytes()

    @torch.inference_mode()
    def steering_unembed(self, content: bytes) -> bytes | None:
        """Returns the logits of float32 residuals (token, d_model); None on other stages than the last, nothing where the
        model's final norm has another place than in most."""
        model = self.model_runner.get_model()
        if not get_pp_group().is_last_rank:
            return None
        norm = getattr(getattr(model, "model", None), "norm", None)
        if norm is None:
            return b""
        residual = torch.frombuffer(bytearray(content), dtype=torch.float32).view(-1, self._steering.d_model)
        hidden = norm(residual.to(self.device, self.vllm_config.model_config.dtype))
        logits = model.compute_logits(hidden)
        return None if logits is None else bytes(logits.float().cpu().numpy().tobytes())

    def steering_calls(self) -> dict[str, int]:
        """Returns how often the hook of each layer ran."""
        return {str(layer): calls for layer, calls in self._steering.calls.items()}

    def steering_resumed(self) -> int:
        """Returns how often a request was resumed after a preemption, and computed positions again."""
        return self._steering.resumed
