"""VllmEngine: the Engine protocol over vLLM."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, cast

from vllm.outputs import CompletionOutput
from vllm.v1.metrics.stats import RequestStateStats

from steering.engine.api import Capture, CapturePrompt, CaptureSpec, EngineStats, GenerationRequest, TokenEvent
from steering.engine.checks import check_layers
from steering.engine.options import EngineLimits
from steering.engine.prompts import check_context, encode_prompt
from steering.engine.stream import Stream
from steering.engine.vllm.answers import VllmAnswer
from steering.engine.vllm.channel import Mailbox
from steering.engine.vllm.client import Task, VllmClient, translated_errors
from steering.engine.vllm.description import DescribedModel
from steering.engine.vllm.loop_thread import LoopThread, reported, send
from steering.engine.vllm.messages import TokenReadings
from steering.engine.vllm.requests import CaptureTask, captured, check_request, unembedded, vllm_sampling
from steering.errors import EngineDead, InternalError, Overloaded
from steering.shapes import Float, Residual, Tensor
from steering.threads import run_in_thread


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

    def begin(self, request: GenerationRequest, cached: int, times: RequestStateStats | None) -> None:
        """Counts a request whose first token has come. times: of vLLM's scheduler, on one clock."""
        self.cached += cached
        if request.priority == 0 and times is not None:
            self.admitted += 1
            self.queue_seconds += max(times.scheduled_ts - times.queued_ts, 0.0)


class VllmEngine:
    """An Engine whose model runs in vLLM's processes. Its client lives in a thread with an event loop of its own, so that
    callers may come from any loop."""

    name = "vllm"
    reads_monitors = True
    max_temperature = 2.0

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

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
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
        future = self._thread.submit(reported(work(stream), stream))
        try:
            while True:
                yield await stream.get()
        finally:
            self._streams.discard(stream)
            future.cancel()

    def _check(self, ids: tuple[int, ...], request: GenerationRequest) -> None:
        check_request(len(ids), request, self.info, self.client.stages)
        waiting, allowed = self._counters.live - self._limits.max_running, self._limits.max_waiting
        if request.priority == 0 and waiting >= allowed:
            raise Overloaded(f"{waiting} requests are waiting, and at most {allowed} may; try again shortly")

    async def _answer(self, ids: tuple[int, ...], request: GenerationRequest, stream: Stream) -> None:
        """Sends the events of an answer."""
        answer = VllmAnswer(ids, request, self.tokenizer)
        with translated_errors():
            sampling = vllm_sampling(request.sampling, self.tokenizer.eos_ids)
        cached, begun = 0, False
        self._counters.prompt += len(ids)
        with self._counters.counted(request.priority):
            async with self.client.running(Task(ids, len(ids), request, sampling)) as run:
                async for output in run.outputs:
                    if not begun:
                        begun, cached = True, output.num_cached_tokens or 0
                        self._counters.begin(request, cached, output.metrics)
                        answer.scheduled(None if output.metrics is None else output.metrics.scheduled_ts)
                    await self._add(answer, output.outputs[0], run.mailbox, stream)
                    if answer.ending is not None:
                        break
                if answer.ending is None:
                    raise InternalError("the engine ended the request without a reason")
                await run.close()
                reports = [] if run.mailbox is None else await run.mailbox.reports()
                send(stream, answer.finish_event(cached, reports))

    async def _add(
        self, answer: VllmAnswer, completion: CompletionOutput, mailbox: Mailbox | None, stream: Stream
    ) -> None:
        """Sends the events of the tokens of one output, up to the one that ends the answer."""
        for number, token_id in enumerate(completion.token_ids):
            found = TokenReadings() if mailbox is None else await mailbox.token(answer.tokens)
            logprobs = None if completion.logprobs is None else completion.logprobs[number]
            for event in answer.add(token_id, logprobs, found):
                self._counters.generated += 1
                send(stream, event)
            if answer.ending is not None:
                return

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
            with self._counters.counted(1):
                send(stream, (index, await captured(self.client, task, priority)))

    async def unembed(self, residual: Residual) -> Float[Tensor, "token vocab"]:
        """See SupportsUnembed. By vLLM's own norm and head, which may round otherwise than those of another engine."""
        return await self._thread.run(unembedded(self.client, self.info, residual))

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
