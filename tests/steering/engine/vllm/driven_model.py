"""Drives WorkerSteering as vLLM's model runner does, over a transformers model: pieces of prompts, preemption, resumption."""

from collections.abc import Callable, Sequence

import torch
from transformers import DynamicCache, PreTrainedModel

from steering.engine.vllm.messages import CaptureWindow, FailureMessage, ReportMessage, RequestSteering, TokenMessage
from steering.engine.vllm.operation import Attached
from steering.engine.vllm.worker_steering import StaticSize, StepView, WorkerSteering
from steering.model.hook_points import HEADS, BlockOutput, kind_of, residual_of
from steering.model.layout import find_layout
from steering.model.verification import verify_layout


class DrivenModel:
    """One model with steering behind its layers; one request at a time."""

    def __init__(self, model: PreTrainedModel, static: StaticSize | None = None, *, halves: bool = False) -> None:
        """static: where edits are operations of fixed shape. halves: layers return two tensors whose sum is the stream."""
        self._halves = halves
        self.model = model
        self._argument = find_layout(model).cache_argument
        self._last = DynamicCache()
        layout = verify_layout(model, find_layout(model))
        layers = frozenset(range(layout.layer_count))
        self.steering = WorkerSteering(
            layers, len(layers), layout.d_model, torch.device("cpu"), static, layout.head_count
        )
        for index, module in (*enumerate(layout.blocks), *layout.inner.items()):
            if kind_of(index) == HEADS:
                module.register_forward_pre_hook(lambda _, arguments, at=index: self._act(at, arguments[0]))
            else:
                module.register_forward_hook(self._hook(index))

    def _hook(self, index: int) -> Callable[[object, object, BlockOutput], None]:
        return lambda _module, _arguments, output: self._act(index, residual_of(output))

    def _act(self, index: int, hidden: torch.Tensor) -> None:
        if self.steering.static is not None and kind_of(index) == 0:
            hidden[0].copy_(self.steering.static.edits(index, hidden[0], None))
        if self._halves and kind_of(index) == 0:
            half = hidden[0] / 2
            hidden[0].sub_(half)
            self._steer(hidden[0], half, index)
            hidden[0].add_(half)
        else:
            self._steer(hidden[0], None, index)

    def _steer(self, hidden: torch.Tensor, residual: torch.Tensor | None, point: int) -> None:
        if self.steering.uses_kernel:
            Attached.act = self.steering.act
            torch.ops.steering.act(hidden, residual, point)
        else:
            self.steering.act(point, hidden, residual)

    @torch.inference_mode()
    def run(
        self,
        request: RequestSteering,
        prompt: Sequence[int],
        count: int,
        *,
        piece: int = 1 << 20,
        preempt_after: int | Sequence[int] = (),
        kept: int = 0,
        cached: int = 0,
        forced: Sequence[int] = (),
    ) -> list[int]:
        """Generates greedily, and returns the most probable tokens. forced: the tokens that are chosen in their place. piece: most positions of a step. preempt_after: numbers of generated tokens after which the
        request loses its blocks, but for those of the first `kept` positions. cached: positions that another request computed, the last
        one here."""
        self.steering.admit("request", list(prompt), request, cached)
        preemptions = [preempt_after] if isinstance(preempt_after, int) else list(preempt_after)
        probable = list[int]()
        ids, cache, computed = list(prompt), self._last if cached else DynamicCache(), cached
        self._last = cache
        if cached:
            cache.crop(cached - cache.get_seq_length())
        while True:
            stop = min(computed + piece, len(ids))
            logits = self._step(ids, computed, stop, cache)
            computed = stop
            if computed < len(ids):
                continue
            if count:
                probable = probable[: len(ids) - len(prompt)]
                probable.append(int(logits.argmax()))
                ids.append(forced[len(ids) - len(prompt)] if forced else probable[-1])
            if len(ids) - len(prompt) == count:
                break
            if preemptions and preemptions[0] == len(ids) - len(prompt):
                del preemptions[0]
                if kept:
                    cache.crop(kept - cache.get_seq_length())
                else:
                    self._last = cache = DynamicCache()
                computed = kept
                self.steering.admit("request", list(prompt), request, kept)  # model runner V2 is told of it again
        self.steering.release(["request"])
        return probable

    def _step(self, ids: Sequence[int], first: int, stop: int, cache: DynamicCache) -> torch.Tensor:
        positions = torch.arange(first, stop)
        token_ids = torch.tensor(ids[first:stop])
        in_graph = not self.steering.leaves_graphs(["request"])  # as V2 decides before the pass
        self.steering.begin(StepView(["request"], [0, stop - first], [first], positions, token_ids, in_graph))
        output = self.model(torch.tensor([ids[first:stop]]), use_cache=True, **{self._argument: cache})
        if self.steering.step is not None:
            self.steering.step.note_last(output.logits[0, -1:])
        self.steering.end()
        found: torch.Tensor = output.logits[0, -1]
        return found

    def tokens(self) -> list[TokenMessage]:
        """The messages about tokens so far."""
        return [message for message in self.steering.outbox if isinstance(message, TokenMessage)]

    def failures(self) -> list[FailureMessage]:
        """The messages about failures so far."""
        return [message for message in self.steering.outbox if isinstance(message, FailureMessage)]

    def report(self) -> ReportMessage:
        """The last report."""
        return next(message for message in reversed(self.steering.outbox) if isinstance(message, ReportMessage))


def capture_of(layers: Sequence[int], length: int, *, reduce: bool) -> RequestSteering:
    """A capture of all positions."""
    window = CaptureWindow(tuple(layers), 0, length, reduce=reduce, logits=False)
    return RequestSteering("capture", prompt_length=length, capture=window)
