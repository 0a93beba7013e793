"""TransformersEngine: the loop thread that owns a transformers model, and the asynchronous face callers see."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as Rows
from functools import partial
from itertools import count
from traceback import format_exc, format_exception
from typing import cast

import structlog
import torch

from steering.engine import captures
from steering.engine.base import (
    Capture,
    CapturePrompt,
    CaptureSpec,
    EngineStats,
    Finish,
    FitTask,
    FittedDirection,
    GenerationRequest,
    Prompt,
    SamplingParams,
    TokenEvent,
)
from steering.engine.compilation import Compilation, Compiled, CompileRequest
from steering.engine.detokenizer import advance, finish
from steering.engine.fitting import PIECE_SHARE, Fitting, FittingQueue, check_task, turns
from steering.engine.limits import EngineLimits
from steering.engine.report import report
from steering.engine.residual_ends import ResidualEnds
from steering.engine.runner import MAX_THRESHOLDS, ModelRunner, PassResult
from steering.engine.sampler import Sampled, sample
from steering.engine.scheduler import Scheduler
from steering.engine.sequence import Sequence, Stream
from steering.errors import (
    ContextLengthExceeded,
    EngineDead,
    InternalError,
    InvalidRequest,
    LimitExceeded,
    NonfiniteActivations,
    OutOfMemory,
    Overloaded,
    SteeringError,
)
from steering.model.loading import LoadedModel
from steering.shapes import Float, Residual, Tensor

log = structlog.get_logger()
LONG_TEXT = 4096
"""Characters above which a prompt is tokenised in a thread, so that the event loop keeps answering."""


class TransformersEngine:
    """An Engine in this process. One thread owns the model; callers meet it through queues alone."""

    def __init__(
        self, loaded: LoadedModel, limits: EngineLimits | None = None, compile_request: CompileRequest | None = None
    ) -> None:
        self.info = loaded.info
        self.tokenizer = loaded.tokenizer
        self._limits = limits or EngineLimits()
        self._device = torch.device(loaded.info.device)
        self._runner = ModelRunner(loaded.model, loaded.layout, self._device)
        self._ends = ResidualEnds(loaded.model, loaded.layout)
        self._scheduler = Scheduler(self._runner, self._limits, _position_bytes(loaded))
        self._numbers = count()
        self._fitting = FittingQueue()
        self._inbox: list[Sequence | Fitting] = []
        self._wake = threading.Condition()
        self._closing = False
        self._alive = True
        self._counts = {"steps": 0, "generated": 0, "prompt": 0, "cached": 0}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._arrived: list[tuple[str, Compiled]] = []
        self._thread.start()
        self._compilation: Compilation | None = None
        if compile_request is not None and loaded.layout.attention == "interface" and self._device.type == "cpu":
            self._compilation = Compilation(compile_request, loaded.info, self._arrive)
            self._compilation.start()

    # ---- the asynchronous face -------------------------------------------------------------------------------------

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenEvent]:
        """See Engine.generate."""
        ids = await self._encode(request.prompt)
        self._check(ids, request)
        stream = Stream(asyncio.get_running_loop())
        sequence = Sequence(
            id=next(self._numbers),
            ids=list(ids),
            prompt_length=len(ids),
            plan=request.plan,
            sampling=request.sampling,
            stream=stream,
            readings=request.readings,
            priority=request.priority,
            cache_salt=request.cache_salt,
            decoder=self.tokenizer.decode_stream(ids),
        )
        try:
            self._submit([sequence], bounded=request.priority == 0)
            while True:
                event = cast(TokenEvent, await stream.get())
                yield event
                if event.finish is not None:
                    return
        finally:
            stream.closed = True

    async def capture(
        self,
        prompts: Rows[CapturePrompt],
        spec: CaptureSpec,
        *,
        progress: Callable[[int, int], None] | None = None,
        priority: int = 1,
    ) -> tuple[Capture, ...]:
        """See Engine.capture."""
        captures.check_layers(spec, self.info.layer_count)
        stream = Stream(asyncio.get_running_loop())
        size = sum(_characters(prompt.prompt) for prompt in prompts)
        begin = partial(self._begin_captures, prompts, spec, stream, priority)
        sequences = await asyncio.to_thread(begin) if size > LONG_TEXT else begin()
        found: dict[int, Capture] = {}
        try:
            self._submit(sequences, bounded=False)
            while len(found) < len(sequences):
                index, result = cast(tuple[int, Capture], await stream.get())
                found[index] = result
                if progress is not None:
                    progress(len(found), len(sequences))
        finally:
            stream.closed = True
        return tuple(found[index] for index in range(len(sequences)))

    def _begin_captures(
        self, prompts: Rows[CapturePrompt], spec: CaptureSpec, stream: Stream, priority: int
    ) -> list[Sequence]:
        """Tokenised and checked; in a thread where that takes long."""
        sequences = []
        for index, prompt in enumerate(prompts):
            ids = self.tokenizer.encode(prompt.prompt)
            if len(ids) > self.info.context_length:
                raise self._too_long(len(ids), 0)
            sequence = Sequence(
                id=next(self._numbers),
                ids=list(ids),
                prompt_length=prompt.prompt_length or len(ids),
                plan=prompt.plan,
                sampling=SamplingParams(),
                stream=stream,
                priority=priority,
                capture=captures.begin(index, prompt, ids, spec, self.tokenizer),
            )
            sequences.append(sequence)
        return sequences

    async def unembed(self, residual: Residual) -> Float[Tensor, "token vocab"]:
        """See Engine.unembed. In pieces between the steps of live traffic, as a fit is."""
        stream = Stream(asyncio.get_running_loop())
        work = Fitting(stream, self._ends.unembedding(residual, self._limits.prefill_tokens), priority=0)
        try:
            self._submit([work], bounded=False)
            return cast(Tensor, await stream.get())
        finally:
            stream.closed = True

    async def fit(self, task: FitTask, *, progress: Callable[[int, int], None] | None = None) -> FittedDirection:
        """See Engine.fit."""
        check_task(task, self.info)
        piece = max(1, self._limits.prefill_tokens // PIECE_SHARE)
        stream = Stream(asyncio.get_running_loop())
        fitting = Fitting(stream, turns(task, self._runner.gradients, self.info.d_model, piece))
        try:
            self._submit([fitting], bounded=False)
            while True:
                item = await stream.get()
                if isinstance(item, FittedDirection):
                    return item
                if progress is not None:
                    progress(cast(int, item), task.steps)
        finally:
            stream.closed = True

    def stats(self) -> EngineStats:
        """See Engine.stats."""
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=self._scheduler.waiting + len(self._inbox),
            steps=self._counts["steps"],
            generated_tokens=self._counts["generated"],
            prompt_tokens=self._counts["prompt"],
            cached_tokens=self._counts["cached"],
            alive=self._alive and self._thread.is_alive(),
            compiled=tuple(sorted(self._runner.compiled)),
        )

    async def close(self) -> None:
        """See Engine.close."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._compilation is not None:
            await asyncio.to_thread(self._compilation.close)
        await asyncio.to_thread(self._thread.join)

    async def _encode(self, prompt: Prompt) -> tuple[int, ...]:
        if _characters(prompt) > LONG_TEXT:
            return await asyncio.to_thread(self.tokenizer.encode, prompt)
        return self.tokenizer.encode(prompt)

    def _check(self, ids: tuple[int, ...], request: GenerationRequest) -> None:
        wanted = request.sampling.max_tokens
        if wanted < 1:
            raise InvalidRequest(f"max_tokens must be at least 1, got {wanted}", param="max_tokens")
        if len(ids) + wanted > self.info.context_length:
            raise self._too_long(len(ids), wanted)
        if len(request.plan.thresholds) > MAX_THRESHOLDS:
            raise LimitExceeded(f"at most {MAX_THRESHOLDS} thresholds per request", param="steering")
        if not self._scheduler.fits_alone(len(ids) + wanted):
            raise OutOfMemory(
                f"{len(ids)} prompt tokens and {wanted} more do not fit the key-value cache of this server"
            )

    def _too_long(self, prompt: int, wanted: int) -> ContextLengthExceeded:
        return ContextLengthExceeded(
            f"{prompt} prompt tokens and max_tokens {wanted} exceed the context of {self.info.context_length} tokens",
            param="max_tokens" if wanted else "prompt",
        )

    def _submit(self, work: Rows[Sequence | Fitting], *, bounded: bool) -> None:
        with self._wake:
            if self._closing or not self._alive:
                raise EngineDead("the engine has stopped")
            waiting = self._scheduler.waiting_live + sum(one.priority == 0 for one in self._inbox)
            if bounded and waiting >= self._limits.max_waiting:
                raise Overloaded(f"{waiting} requests are waiting already, which is the limit; try again shortly")
            self._inbox.extend(work)
            self._wake.notify()

    # ---- the loop thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        error: SteeringError = EngineDead("the engine was closed")
        try:
            while self._collect_inbox():
                self._step()
        except Exception:
            log.error("engine_died", traceback=format_exc())  # noqa: TRY400 - as text, without local variables
            error = EngineDead("the engine has stopped after a defect")
        finally:
            with self._wake:
                self._alive = False
                everyone = [*self._scheduler.everyone(), *self._fitting.waiting, *self._inbox]
            for one in everyone:
                one.outbox.append(error)
            self._deliver(everyone)
            self._runner.close()

    def _arrive(self, kind: str, compiled: Compiled) -> None:
        """A compiled step is ready; the loop takes it between two passes."""
        with self._wake:
            self._arrived.append((kind, compiled))
            self._wake.notify()

    def _collect_inbox(self) -> bool:
        """Waits until there is something to do; False when the engine is to close."""
        with self._wake:
            while not (self._inbox or self._arrived or self._scheduler.busy or self._fitting.waiting or self._closing):
                self._wake.wait()
            for one in self._inbox:
                if isinstance(one, Fitting):
                    self._fitting.enqueue(one)
                else:
                    self._scheduler.enqueue(one)
            self._inbox.clear()
            return not self._closing

    def _step(self) -> None:
        """One turn: drop who left, let in who waits, compute prompts, decode a token for every row, hand out results."""
        while self._arrived:
            kind, compiled = self._arrived.pop()
            self._runner.compiled[kind] = compiled
            log.info("compiled_decode_step_in_use", kind=kind)
        self._scheduler.drop_closed()
        self._scheduler.admit()
        work = self._scheduler.prompts()
        if work:
            self._counts["cached"] += sum(s.cached for s, _ in work if s.computed == s.cached)
            self._counts["prompt"] += sum(amount for _, amount in work)
            self._pass(lambda: self._runner.prefill(work), [sequence for sequence, _ in work])
        rows, idle = self._scheduler.rows()
        present = [sequence for sequence in rows if sequence is not None]
        if present:
            self._pass(lambda: self._runner.decode(rows, idle), present)
        fitting = self._fitting.next(beside=self._scheduler.busy)
        if fitting is not None:
            self._fit_piece(fitting)
        self._counts["steps"] += 1

    def _pass(self, forward: Callable[[], PassResult], sequences: list[Sequence]) -> None:
        """Runs a pass and notes its results. A failure ends the sequences that took part, and nobody else."""
        try:
            result = forward()
            for sequence in sequences:
                if sequence.generated == 0:  # a prompt pass: what it computed may serve others at once
                    self._scheduler.prefix.publish(sequence)
            for sequence, chosen in zip(result.sequences, sample(result.logits, result.sequences), strict=True):
                self._note(sequence, chosen, result.readouts.get(sequence.id, {}))
            for sequence in sequences:
                if sequence.capture is not None and not sequence.prefilling:
                    self._scheduler.release(sequence)
                    sequence.outbox.append(captures.result(sequence, self._ends.embed))
        except Exception as error:
            failure = _as_steering_error(error)
            for sequence in sequences:
                self._end(sequence, failure, wipe=True)
        self._deliver(sequences)

    def _fit_piece(self, fitting: Fitting) -> None:
        """One piece of background fitting. A failure ends that fit, and nobody else."""
        try:
            if fitting.advance():
                self._fitting.end(fitting)
        except Exception as error:
            self._fitting.end(fitting)
            fitting.outbox.append(_as_steering_error(error))
        self._deliver([fitting])

    def _note(self, sequence: Sequence, chosen: Sampled, readout: dict[str, float]) -> None:
        """One row's token: into the sequence, and out as an event."""
        if not chosen.finite:
            message = "steering drove the activations out of range: logits are not finite; lower the strength"
            self._end(sequence, NonfiniteActivations(message), wipe=True)
            return
        if chosen.token_id in self.tokenizer.eos_ids and not sequence.sampling.ignore_eos:
            self._finish(sequence, "stop", finish(sequence))
            return
        index = sequence.generated
        sequence.ids.append(chosen.token_id)
        self._counts["generated"] += 1
        text, stopped = advance(sequence, chosen.token_id)
        sequence.outbox.append(TokenEvent(index, chosen.token_id, text, chosen.logprob, chosen.top_logprobs, readout))
        if stopped:
            self._finish(sequence, "stop", "")
        elif sequence.generated >= sequence.sampling.max_tokens:
            self._finish(sequence, "length", finish(sequence))

    def _finish(self, sequence: Sequence, reason: str, text: str) -> None:
        self._scheduler.release(sequence)
        finish_ = Finish(
            reason="stop" if reason == "stop" else "length",
            prompt_tokens=sequence.prompt_length,
            completion_tokens=sequence.generated,
            cached_tokens=sequence.cached,
            steering=report(sequence),
        )
        sequence.outbox.append(TokenEvent(sequence.generated, -1, text, finish=finish_))

    def _end(self, sequence: Sequence, error: SteeringError, *, wipe: bool) -> None:
        self._scheduler.release(sequence, wipe=wipe)
        sequence.outbox.append(error)

    def _deliver(self, senders: Rows[Sequence | Fitting]) -> None:
        """Hands outboxes to their event loops: one wake-up a loop, however many rows."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Stream, list[object]]]] = {}
        for sender in senders:
            if sender.outbox:
                items, sender.outbox = sender.outbox, []
                by_loop.setdefault(sender.stream.loop, []).append((sender.stream, items))
        for loop, parcels in by_loop.items():
            try:
                loop.call_soon_threadsafe(_receive, parcels)
            except RuntimeError:  # the loop is gone, and with it everyone who waited
                for stream, _ in parcels:
                    stream.closed = True


def _characters(prompt: Prompt) -> int:
    return len(prompt) if isinstance(prompt, str) else sum(len(getattr(part, "content", "")) for part in prompt)


def _receive(parcels: list[tuple[Stream, list[object]]]) -> None:
    for stream, items in parcels:
        stream.receive(items)


def _as_steering_error(error: Exception) -> SteeringError:
    """What a caller may be told of a failed pass. The traceback is dropped, since it keeps tensors alive."""
    if isinstance(error, SteeringError):
        return error
    text = str(error).lower()
    if (
        isinstance(error, torch.cuda.OutOfMemoryError | MemoryError)
        or "out of memory" in text
        or "can't allocate" in text
    ):
        return OutOfMemory("the pass did not fit into memory")
    # as text: renderers that show local variables would print prompts
    log.error("pass_failed", traceback="".join(format_exception(error)))
    return InternalError("the forward pass failed")


def _position_bytes(loaded: LoadedModel) -> int:
    """Bytes of keys and values that one position takes over all layers."""
    config = loaded.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = next(loaded.model.parameters()).element_size()
    return int(2 * heads * width * size * loaded.layout.layer_count)
