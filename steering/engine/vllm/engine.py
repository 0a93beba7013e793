"""VllmEngine: the Engine protocol over vLLM."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from time import monotonic
from traceback import format_exception
from typing import Any, cast

import structlog

from steering.engine.api import (
    Capture,
    CapturePrompt,
    CaptureSpec,
    EngineStats,
    GenerationRequest,
    TokenEvent,
)
from steering.engine.options import EngineLimits
from steering.engine.prompts import check_context, encode_prompt
from steering.engine.transformers.captures import check_layers
from steering.engine.transformers.sequence import Stream
from steering.engine.vllm.answers import Answer, report_of
from steering.engine.vllm.captures import CaptureTask, captured, unembedded
from steering.engine.vllm.client import Task, VllmClient, translated_errors
from steering.engine.vllm.description import DescribedModel
from steering.engine.vllm.loop_thread import LoopThread
from steering.engine.vllm.requests import check_request, vllm_sampling
from steering.errors import EngineDead, InternalError, Overloaded, SteeringError
from steering.shapes import Float, Residual, Tensor
from steering.threads import run_in_thread

log = structlog.get_logger()


@dataclass(slots=True)
class _Counters:
    generated: int = 0
    prompt: int = 0
    cached: int = 0
    live: int = 0
    background: int = 0


class VllmEngine:
    """An Engine whose model runs in vLLM's processes. Its client lives in a thread with an event loop of its own, so that
    callers may come from any loop."""

    name = "vllm"

    def __init__(
        self, described: DescribedModel, limits: EngineLimits, thread: LoopThread, client: VllmClient, executor: str
    ) -> None:
        """executor: what `stats` says of how passes are run."""
        self.info, self.tokenizer = described.info, described.tokenizer
        self.client = client
        self._limits, self._thread, self._executor = limits, thread, executor
        self._counters = _Counters()
        self._background = asyncio.Semaphore(limits.max_background)
        self._streams: set[Stream] = set()
        self._closed = False

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenEvent]:
        """See Engine.generate."""
        ids = await encode_prompt(self.tokenizer, request.prompt)
        self._check(ids, request)
        async with aclosing(self._items(lambda stream: self._answer(ids, request, stream))) as items:
            async for item in items:
                event = cast(TokenEvent, item)
                yield event
                if event.finish is not None:
                    return

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

    def _check(self, ids: tuple[int, ...], request: GenerationRequest) -> None:
        check_request(len(ids), request, self.info, self.client.stages)
        limits, counters = self._limits, self._counters
        if request.priority == 0 and counters.live >= limits.max_running + limits.max_waiting:
            waiting = counters.live - limits.max_running
            raise Overloaded(f"{waiting} requests are waiting, and at most {limits.max_waiting} may; try again shortly")

    async def _answer(self, ids: tuple[int, ...], request: GenerationRequest, stream: Stream) -> None:
        """Sends the events of an answer."""
        live = request.priority == 0
        counters = self._counters
        counters.live += live
        counters.background += not live
        try:
            async for event in self._events(ids, request):
                send(stream, event)
        finally:
            counters.live -= live
            counters.background -= not live

    async def _events(self, ids: tuple[int, ...], request: GenerationRequest) -> AsyncIterator[TokenEvent]:
        eos_ids = self.tokenizer.eos_ids
        answer = Answer(request.sampling, self.tokenizer.decode_stream(ids), eos_ids)
        with translated_errors():
            sampling = vllm_sampling(request.sampling, eos_ids)
        task = Task(ids, len(ids), sampling, request.plan, request.readings, None, request.priority, request.cache_salt)
        counters, cached = self._counters, 0
        counters.prompt += len(ids)
        async with self.client.running(task) as run:
            async for output in run.outputs:
                if cached == 0 and output.num_cached_tokens:
                    cached = output.num_cached_tokens
                    counters.cached += cached
                completion = output.outputs[0]
                for number, token_id in enumerate(completion.token_ids):
                    readout = {} if run.mailbox is None else await run.mailbox.token(answer.tokens)
                    logprobs = None if completion.logprobs is None else completion.logprobs[number]
                    event = answer.add(token_id, logprobs, readout)
                    if event is not None:
                        counters.generated += 1
                        yield event
                    if answer.ended is not None:
                        break
                if answer.ended is not None:
                    break
            if answer.ended is None:
                raise InternalError("the engine ended the request without a reason")
            await run.close()
            reports = [] if run.mailbox is None else await run.mailbox.reports()
            yield answer.finish_event(len(ids), cached, report_of(request.plan, len(ids), reports))

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
        tasks = [
            CaptureTask.of(prompt, spec, await encode_prompt(self.tokenizer, prompt.prompt), self.tokenizer)
            for prompt in prompts
        ]
        check_context(max((len(task.ids) for task in tasks), default=0), 1, self.info, param="prompt")
        found: dict[int, Capture] = {}
        async for item in self._items(lambda stream: self._capture_all(tasks, priority, stream)):
            index, found[index] = cast(tuple[int, Capture], item)
            if progress is not None:
                progress(len(found), len(tasks))
            if len(found) == len(tasks):
                break
        return tuple(found[index] for index in range(len(tasks)))

    async def _capture_all(self, tasks: Sequence[CaptureTask], priority: int, stream: Stream) -> None:
        async with asyncio.TaskGroup() as group:
            for index, task in enumerate(tasks):
                group.create_task(self._capture_one(index, task, priority, stream))

    async def _capture_one(self, index: int, task: CaptureTask, priority: int, stream: Stream) -> None:
        async with self._background:
            self._counters.background += 1
            try:
                send(stream, (index, await captured(self.client, task, priority)))
            finally:
                self._counters.background -= 1

    async def unembed(self, residual: Residual) -> Float[Tensor, "token vocab"]:
        """See SupportsUnembed. By vLLM's own norm and head, which may round otherwise than those of another engine."""
        return await self._thread.run(unembedded(self.client, self.info, residual))

    async def call_workers(self, name: str, *arguments: object) -> list[Any]:
        """Calls a method of every worker. Raises EngineDead."""
        return await self._thread.run(self.client.call(name, *arguments))

    def stats(self) -> EngineStats:
        """See Engine.stats. vLLM does not tell its client of steps, used blocks and preemptions."""
        counters, limits = self._counters, self._limits
        busy = self.client.active > 0
        running, background = min(counters.live, limits.max_running), min(counters.background, limits.max_background)
        return EngineStats(
            running=running,
            waiting=counters.live - running,
            steps=0,
            generated_tokens=counters.generated,
            prompt_tokens=counters.prompt,
            cached_tokens=counters.cached,
            alive=not self._closed and self.client.alive,
            background_running=background,
            background_waiting=counters.background - background,
            blocks_total=self.client.blocks,
            busy=busy,
            last_turn_age=monotonic() - self.client.progressed if busy else 0.0,
            executor=self._executor,
        )

    async def close(self) -> None:
        """See Engine.close."""
        if self._closed:
            return
        self._closed = True
        for stream in tuple(self._streams):
            send(stream, EngineDead("the engine has stopped"))
        await self._thread.run(self.client.close())
        await run_in_thread(self._thread.stop)


async def _reported(work: Coroutine[Any, Any, None], stream: Stream) -> None:
    """Sends what work raises to its stream."""
    try:
        await work
    except ExceptionGroup as errors:
        send(stream, _as_steering_error(errors.exceptions[0]))
    except Exception as error:
        send(stream, _as_steering_error(error))


def _as_steering_error(error: Exception) -> SteeringError:
    if isinstance(error, SteeringError):
        return error
    log.error("request_failed", traceback="".join(format_exception(error)))
    return InternalError("the engine failed on this request")


def send(stream: Stream, item: object) -> None:
    """Hands an item to the loop of the caller."""
    with suppress(RuntimeError):  # the loop is gone, and with it the caller
        stream.loop.call_soon_threadsafe(stream.receive, [item])
