"""VllmEngine: the Engine protocol over vLLM.

Captures are texts that are read and not continued. vLLM computes them as requests for one token, which is dropped.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, replace
from time import monotonic
from traceback import format_exception
from typing import Any, TypeVar, cast

import structlog
import torch
from vllm import SamplingParams as VllmSampling
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind

from steering.engine.answers import Answer, AnswerWriter, Ending, Sampled, Stream, finish_event
from steering.engine.api import (
    Capture,
    CapturePrompt,
    CaptureSpec,
    EngineStats,
    GenerationRequest,
    SamplingParams,
    TokenEvent,
)
from steering.engine.capabilities import reading_passes
from steering.engine.captures import begin, result
from steering.engine.options import EngineLimits
from steering.engine.prompts import (
    check_context,
    check_layers,
    check_plan,
    check_sampling,
    encode_steered,
    encode_with_plans,
    tokenizing,
)
from steering.engine.vllm.client import Mailbox, Task, VllmClient, translated_errors
from steering.engine.vllm.description import DescribedModel
from steering.engine.vllm.messages import CaptureWindow, TokenReadings, as_bytes, doses_of, from_bytes
from steering.engine.vllm.turns import Turns
from steering.errors import (
    EngineDead,
    InternalError,
    InvalidRequest,
    Overloaded,
    SteeringError,
    UnsupportedParameter,
)
from steering.injection.readings import MonitoredAnswer
from steering.injection.rows import SteeredRow
from steering.model.hook_points import layer_of
from steering.model.info import ModelInfo
from steering.model.phases import PhaseTracker
from steering.model.prompt import ModelTokenizer
from steering.plan.scope import follows_single_tokens
from steering.plan.types import SteeringPlan
from steering.shapes import Float, Residual, Tensor
from steering.threads import run_in_thread

log = structlog.get_logger()
T = TypeVar("T")
UNEMBED_ROWS = 64
"""Residuals that are unembedded between two steps of live traffic."""


class LoopThread:
    """An event loop in a thread of its own, which runs coroutines of callers from any thread.

    vLLM's client belongs to the loop on which it is first used. Callers may come from other loops, and from several.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Starts a coroutine. Cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine and awaits its result; a caller that is cancelled cancels it."""
        return await asyncio.wrap_future(self.submit(work))

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine and blocks until it has ended."""
        return self.submit(work).result()

    def stop(self) -> None:
        """Cancels what runs, ends the loop and waits for the thread."""
        self.call(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _reported(work: Coroutine[Any, Any, None], stream: Stream) -> None:
    """Sends what work raises to its stream."""
    try:
        await work
    except Exception as error:
        found = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
        if not isinstance(found, SteeringError):
            log.error("request_failed", traceback="".join(format_exception(found)))  # noqa: TRY400 - of the error in a group
            found = InternalError("the engine failed on this request")
        _send(stream, found)


def _send(stream: Stream, item: object) -> None:
    """Hands an item to the loop of the caller."""
    with suppress(RuntimeError):  # the loop is gone, and with it the caller
        stream.loop.call_soon_threadsafe(stream.receive, [item])


@dataclass(slots=True)
class _Counters:
    generated: int = 0
    prompt: int = 0
    cached: int = 0
    live: int = 0
    background: int = 0
    admitted: int = 0
    queue_seconds: float = 0.0

    @contextmanager
    def counted(self, priority: int) -> Iterator[None]:
        """Counts a request while it runs."""
        self.live += priority == 0
        self.background += priority != 0
        try:
            yield
        finally:
            self.live -= priority == 0
            self.background -= priority != 0


class VllmEngine:
    """An Engine whose model runs in vLLM's processes. Its client lives in a thread with an event loop of its own, so that
    callers may come from any loop."""

    name = "vllm"
    reads_monitors = steers_token_scopes = True
    max_temperature = 2.0

    def __init__(
        self, described: DescribedModel, limits: EngineLimits, thread: LoopThread, client: VllmClient, executor: str
    ) -> None:
        """executor: what `stats` says of how passes are run."""
        self.info, self.tokenizer = described.info, described.tokenizer
        self.client = client
        self._limits, self._thread, self._executor = limits, thread, executor
        self._counters = _Counters()
        self._texts = Turns(limits.max_background)
        self._streams: set[Stream] = set()
        self._closed = False

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """See Engine.generate."""
        watched = request.monitors.by_phase
        grammar = request.sampling.grammar
        ids, plan = await encode_steered(self.tokenizer, request.prompt, request.plan, grammar, phases=watched)
        await self._send_texts([plan])
        request = replace(request, plan=plan)
        _check_request(len(ids), request, self.info)
        _check_plan(plan, self.client.stages)
        waiting, allowed = self._counters.live - self._limits.max_running, self._limits.max_waiting
        if request.priority == 0 and waiting >= allowed:
            raise Overloaded(f"{waiting} requests are waiting, and at most {allowed} may; try again shortly")
        async with aclosing(self._items(lambda stream: self._answer(ids, request, stream))) as items:
            async for item in items:
                event = cast(TokenEvent, item)
                yield event
                if event.finish is not None:
                    return

    async def _send_texts(self, plans: Iterable[SteeringPlan]) -> None:
        """Sends the workers the texts of all tokens, once, where a scope of a plan asks for phases."""
        if any(plan.needs_phases for plan in plans):
            await self._thread.run(self.client.send_token_texts(self.tokenizer.token_texts))

    async def _items(self, work: Callable[[Stream], Coroutine[Any, Any, None]]) -> AsyncGenerator[object, None]:
        """Runs work on vLLM's loop and yields what it sends; closing cancels it. What it raises is raised here."""
        if self._closed or not self.client.alive:
            raise EngineDead("the engine has stopped")
        stream = Stream(asyncio.get_running_loop())
        self._streams.add(stream)
        future = self._thread.submit(_reported(work(stream), stream))
        try:
            while True:
                yield await stream.get()
        finally:
            self._streams.discard(stream)
            future.cancel()

    async def _answer(self, ids: tuple[int, ...], request: GenerationRequest, stream: Stream) -> None:
        """Sends the events of an answer."""
        answer = Answer(
            ids=list(ids),
            prompt_length=len(ids),
            plan=request.plan,
            sampling=request.sampling,
            decoder=self.tokenizer.decode_stream(ids),
            monitors=request.monitors,
            monitored=MonitoredAnswer(request.monitors, request.request_id) if request.monitors.ordered else None,
            phases=None
            if request.plan.phases is None or not request.monitors.by_phase
            else PhaseTracker(request.plan.phases, self.tokenizer.token_text),
        )
        with translated_errors():
            sampling = _vllm_sampling(request.sampling, sorted(self.tokenizer.eos_ids))
        begun, ending, counters = False, None, self._counters
        writer = AnswerWriter(self.tokenizer.eos_ids)
        counters.prompt += len(ids)
        with counters.counted(request.priority):
            async with self.client.running(Task(ids, len(ids), request, sampling)) as run:
                async for output in run.outputs:
                    if not begun:
                        begun, answer.cached = True, output.num_cached_tokens or 0
                        counters.cached += answer.cached
                        if (times := output.metrics) is not None:
                            # by vLLM's scheduler, and the monotonic clock, which its processes share
                            answer.scheduled = times.scheduled_ts
                            if request.priority == 0:
                                counters.admitted += 1
                                counters.queue_seconds += max(times.scheduled_ts - times.queued_ts, 0.0)
                    ending = await self._add(answer, writer, output.outputs[0], run.mailbox, stream)
                    if ending is not None:
                        break
                if ending is None:
                    raise InternalError("the engine ended the request without a reason")
                await run.close()
                answer.doses = doses_of(answer.plan, [] if run.mailbox is None else await run.mailbox.reports())
                _send(stream, finish_event(answer, ending))

    async def _add(
        self,
        answer: Answer,
        writer: AnswerWriter,
        completion: CompletionOutput,
        mailbox: Mailbox | None,
        stream: Stream,
    ) -> Ending | None:
        """Sends the events of the tokens of one output, up to the one that ends the answer. Returns how it ends, if it does."""
        for number, token_id in enumerate(completion.token_ids):
            read = TokenReadings() if mailbox is None else await mailbox.token(answer.generated)
            logprobs = None if completion.logprobs is None else completion.logprobs[number]
            chosen = Sampled(token_id, read.finite, *_logprobs(token_id, logprobs, answer.sampling.logprobs))
            monitors = answer.monitors.read_at(first=answer.generated == 0)
            scores = [read.scores[place] for place in range(len(monitors))]
            event, ending = writer.write(answer, chosen, read.readout, scores)
            if event is not None:
                self._counters.generated += 1
                _send(stream, event)
            if ending is not None:
                return ending
        return None

    async def capture(
        self,
        prompts: Sequence[CapturePrompt],
        spec: CaptureSpec,
        *,
        progress: Callable[[int, int], None] | None = None,
        priority: int = 1,
    ) -> tuple[Capture, ...]:
        """See Engine.capture. Texts may be one token shorter than the context, since vLLM adds one."""
        check_layers(spec, self.info.layer_count)
        reading_passes(self, spec.position)
        if not prompts:
            return ()
        for plan in {one.plan for one in prompts}:
            _check_plan(plan, self.client.stages)
        tasks = await tokenizing(
            [(one.prompt, one.plan) for one in prompts],
            lambda: [_capture_task(prompt, spec, self.tokenizer, priority) for prompt in prompts],
        )
        await self._send_texts(row.plan for _, row in tasks)
        check_context(max((len(task.ids) for task, _ in tasks), default=0), 1, self.info, param="prompt")

        call = object()

        async def capture_one(index: int, stream: Stream) -> None:
            async with self._texts.place(spec.client, call):
                with self._counters.counted(1):
                    _send(stream, (index, await self._captured(*tasks[index])))

        async def capture_all(stream: Stream) -> None:
            async with asyncio.TaskGroup() as group:
                for index in range(len(tasks)):
                    group.create_task(capture_one(index, stream))

        found: dict[int, Capture] = {}
        async with aclosing(self._items(capture_all)) as items:
            async for item in items:
                index, found[index] = cast(tuple[int, Capture], item)
                if progress is not None:
                    progress(len(found), len(tasks))
                if len(found) == len(tasks):
                    break
        return tuple(found[index] for index in range(len(tasks)))

    async def _captured(self, task: Task, row: SteeredRow) -> Capture:
        """Reads a text. Raises NonfiniteActivations, and what a request raises."""
        async with self.client.running(task) as run:
            assert run.mailbox is not None
            async for _ in run.outputs:
                pass
            reports = await run.mailbox.reports()
        state = row.capture
        assert state is not None
        for report in reports:  # of the pipeline stages
            state.pieces.update({layer: [values] for layer, values in report.activations.items()})
            state.logits += [] if report.logits is None else [report.logits]
        embedded = torch.empty(0, self.info.d_model)
        if state.wants_embeddings:
            found = await self.client.call("steering_embed", list(task.ids))
            embedded = from_bytes(next(one for one in found if one is not None)).view(len(task.ids), -1)
        return replace(result(row, lambda _ids: embedded)[1], steering=doses_of(row.plan, reports).report())

    async def unembed(self, residual: Residual) -> Float[Tensor, "token vocab"]:
        """See SupportsUnembed. By vLLM's own norm and head, which may round otherwise than those of another engine.

        Raises InvalidRequest for another width, UnsupportedParameter for a model whose final norm is not found.
        """
        if residual.dim() != 2 or residual.shape[1] != self.info.d_model:
            raise InvalidRequest(
                f"residuals are (token, {self.info.d_model}), got {tuple(residual.shape)}", param="residual"
            )
        pieces = [torch.empty(0, self.info.vocab_size)]
        for rows in torch.split(residual, UNEMBED_ROWS):
            found = await self.call_workers("steering_unembed", as_bytes(rows))
            content = next(one for one in found if one is not None)
            if not content:
                raise UnsupportedParameter(f"the engine 'vllm' cannot unembed residuals of {self.info.architecture}")
            pieces.append(from_bytes(content).view(len(rows), -1))
        return torch.cat(pieces)

    async def call_workers(self, name: str, *arguments: object) -> list[Any]:
        """Calls a method of every worker. Raises EngineDead."""
        return await self._thread.run(self.client.call(name, *arguments))

    def stats(self) -> EngineStats:
        """See Engine.stats. vLLM does not tell its client how many blocks it keeps for prompts that begin alike."""
        counters, limits, scheduler = self._counters, self._limits, self.client.scheduler
        busy = self.client.active > 0
        running, background = min(counters.live, limits.max_running), min(counters.background, limits.max_background)
        return EngineStats(
            running=running,
            waiting=counters.live - running,
            steps=scheduler.steps,
            generated_tokens=counters.generated,
            prompt_tokens=counters.prompt,
            cached_tokens=counters.cached,
            alive=not self._closed and self.client.alive,
            background_running=background,
            background_waiting=counters.background - background,
            blocks_total=self.client.blocks,
            blocks_used=round(scheduler.usage * self.client.blocks) if busy else 0,
            preemptions=scheduler.preemptions,
            admitted=counters.admitted,
            queue_seconds=counters.queue_seconds,
            busy=busy,
            last_turn_age=monotonic() - scheduler.progressed if busy else 0.0,
            executor=self._executor,
        )

    async def close(self) -> None:
        """See Engine.close."""
        if self._closed:
            return
        self._closed = True
        for stream in tuple(self._streams):
            _send(stream, EngineDead("the engine has stopped"))
        await self._thread.run(self.client.close())
        await run_in_thread(self._thread.stop)


def _check_request(prompt_tokens: int, request: GenerationRequest, info: ModelInfo) -> None:
    """Raises InvalidRequest for an answer that cannot be computed."""
    check_sampling(request.sampling, info)
    check_context(prompt_tokens, request.sampling.max_tokens, info)
    if request.sampling.grammar is not None:
        raise UnsupportedParameter(
            "the engine 'vllm' does not hold answers to a grammar", param=request.sampling.grammar.param
        )


def _check_plan(plan: SteeringPlan, stages: Mapping[int, int]) -> None:
    """Raises UnsupportedParameter for a condition that is read on another pipeline stage than it acts on, LimitExceeded as `check_plan`.
    stages: layer -> its pipeline stage."""
    check_plan(plan)
    for layer, edits in plan.layers.items():
        for edit in edits:
            condition = plan.interventions[edit.owner].condition
            read = {plan.thresholds[leaf].layer for leaf in condition.leaves()} if condition is not None else set()
            if other := sorted(one for one in read if stages[one] != stages[layer_of(layer)]):
                raise UnsupportedParameter(
                    f"the engine 'vllm' cannot read a condition at layer {other[0]} that acts at layer {layer_of(layer)}: they are on "
                    "different pipeline stages",
                    param="when",
                )


def _vllm_sampling(params: SamplingParams, eos_ids: Sequence[int]) -> VllmSampling:
    """Returns vLLM's parameters. Text and stop strings are made from the ids by us, so it neither decodes nor looks for them.

    Raises vLLM's VLLMValidationError for values that it does not allow, such as a temperature above 2.
    """
    return VllmSampling(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=dict(params.logit_bias) or None,
        seed=params.seed,
        stop_token_ids=[] if params.ignore_eos else list(eos_ids),
        ignore_eos=True,
        logprobs=params.logprobs,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _logprobs(
    token_id: int, found: Mapping[int, Any] | None, count: int | None
) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    """(logprob of the token, the most probable ones, best first). found: token id -> vLLM's Logprob, the chosen one too."""
    if found is None or count is None:
        return None, ()
    ranked = sorted((one for one in found.items() if one[1].rank <= count), key=lambda one: one[1].rank)
    return found[token_id].logprob, tuple((token, one.logprob) for token, one in ranked)


def _capture_task(
    prompt: CapturePrompt, spec: CaptureSpec, tokenizer: ModelTokenizer, priority: int
) -> tuple[Task, SteeredRow]:
    """Tokenizes a text and finds the positions to read. Raises InvalidRequest where they do not exist or cannot be computed together."""
    ids, (plan,) = encode_with_plans(tokenizer, prompt.prompt, (prompt.plan,), length=prompt.prompt_length)
    length = prompt.prompt_length or len(ids)
    if length < len(ids) and follows_single_tokens(plan):
        raise UnsupportedParameter(
            "the engine 'vllm' cannot read an answer again under steering that follows its tokens one at a time: a held "
            "readout, or a condition that is read behind the layer at which it acts",
            param="steering",
        )
    state = begin(0, prompt, ids, spec, tokenizer)
    row = SteeredRow(ids=list(ids), prompt_length=length, plan=plan, capture=state)
    window = CaptureWindow(state.layers, *state.window, state.reduce, state.wants_logits, state.first)
    sampling = SamplingParams(max_tokens=1, ignore_eos=True)
    # its blocks are shared with nobody
    request = GenerationRequest(ids, sampling, plan, priority=priority, cache_salt="capture")
    return Task(ids, length, request, _vllm_sampling(sampling, ()), window), row
