"""VllmClient: AsyncLLM, and the channel over which our workers report. Everything here runs on one event loop."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import count, groupby
from pathlib import Path
from time import monotonic
from typing import Any

import structlog
import zmq
import zmq.asyncio
from vllm import SamplingParams as VllmSampling
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import tokens_input
from vllm.outputs import RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.metrics.loggers import PrometheusStatLogger

from steering.engine.api import GenerationRequest
from steering.engine.vllm.messages import (
    EXTRA_ARGS,
    CaptureWindow,
    FailureMessage,
    Message,
    PlanBook,
    ReportMessage,
    RequestSteering,
    TokenMessage,
    TokenReadings,
    decode,
    encode,
)
from steering.errors import EngineDead, InternalError, InvalidRequest, NonfiniteActivations
from steering.plan.scope import computes_whole
from steering.threads import run_in_thread

log = structlog.get_logger()

REPORT_SECONDS = 300.0
"""A worker sends a token's message before the token, and a report with the next step. One that is missing for so long
will not come: that is longer than the server's watchdog lets a step take."""


class Mailbox:
    """The messages about one request, from every pipeline stage.

    reads: whether every token has one; otherwise there is one only of a token that means nothing. steered: whether anything steers.
    """

    def __init__(self, stages: int, *, reads: bool, steered: bool = True) -> None:
        self._stages, self._reads, self._steered = stages, reads, steered
        self._tokens: dict[int, TokenReadings] = {}
        self._reports: list[ReportMessage] = []
        self._failed = False
        self._taken = 0  # tokens that were waited for, also one that ends the answer and is no part of it
        self._arrived = asyncio.Event()

    def receive(self, message: Message) -> None:
        """Takes a message."""
        if isinstance(message, TokenMessage):
            self._tokens.setdefault(message.index, TokenReadings()).add(message)
        elif isinstance(message, ReportMessage):
            self._reports.append(message)
        else:
            self._failed = True
        self._arrived.set()

    async def token(self, index: int) -> TokenReadings:
        """Waits for what every stage says of a token, where there is anything to say, and returns it.

        Raises NonfiniteActivations, InternalError where steering failed in a worker, EngineDead where nothing comes.
        """
        await self._until(
            lambda: not self._reads or (index in self._tokens and self._tokens[index].stages >= self._stages)
        )
        self._taken = index + 1
        self._check()
        return self._tokens.pop(index, TokenReadings())

    async def reports(self) -> list[ReportMessage]:
        """Waits for the report of every stage. Raises as `token` does, also for the tokens that were waited for before."""
        await self._until(lambda: len(self._reports) >= self._stages)
        self._check()
        return self._reports

    def _check(self) -> None:
        if not all(found.finite for index, found in self._tokens.items() if index < self._taken):
            raise NonfiniteActivations.found_in("logits", steered=self._steered)

    async def _until(self, complete: Callable[[], bool]) -> None:
        """Waits until all messages are there. A failure may have come with them, too."""
        while not self._failed and not complete():
            self._arrived.clear()
            try:
                async with asyncio.timeout(REPORT_SECONDS):
                    await self._arrived.wait()
            except TimeoutError:
                raise EngineDead("a worker of the engine does not report") from None
        if self._failed:
            raise InternalError("steering failed in the engine's worker")


class ReportChannel:
    """A socket that all workers send to. To be used on one event loop. address: what the workers connect to."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="steering-"))  # for this user only
        self.address = f"ipc://{self._folder / 'reports'}"
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.bind(self.address)
        self._task = asyncio.create_task(self._receive())
        self.boxes: dict[str, Mailbox] = {}
        self.stages = 1

    async def _receive(self) -> None:
        while True:
            content = await self._socket.recv()
            try:
                messages = decode(content, list[Message])
            except ValueError:  # its requests end with EngineDead when nothing else comes
                log.exception("worker_message_unreadable")
                continue
            for message in messages:
                if isinstance(message, FailureMessage):
                    log.error("steering_failed_in_worker", key=message.key, traceback=message.reason)
                if message.key in self.boxes:
                    self.boxes[message.key].receive(message)

    def close(self) -> None:
        """Closes the socket."""
        self._task.cancel()
        self._context.destroy(linger=0)
        shutil.rmtree(self._folder, ignore_errors=True)


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One request to vLLM.

    prompt_length: positions of the prompt among the ids.
    request: its steering, readouts, monitors and priority; cached prompts are shared among requests of one salt.
    sampling: as vLLM has it.
    """

    ids: Sequence[int]
    prompt_length: int
    request: GenerationRequest
    sampling: VllmSampling
    capture: CaptureWindow | None = None

    @property
    def reads(self) -> bool:
        """Whether the workers have something to say of every token."""
        return bool(self.request.readings or self.request.monitors.ordered)

    @property
    def reported(self) -> bool:
        """Whether the workers have anything to report about it."""
        return self.reads or not self.request.plan.empty or self.capture is not None


@dataclass(slots=True, eq=False)
class Run:
    """A request that runs: vLLM's outputs, and the messages of the workers where there are any."""

    outputs: AsyncIterator[RequestOutput]
    close: Callable[[], Coroutine[Any, Any, None]]
    mailbox: Mailbox | None


@dataclass(slots=True)
class SchedulerStats:
    """What vLLM's scheduler did so far.

    usage: share of the cache's blocks that requests held after the last step.
    progressed: when the last step ended, or the first request came after none ran, by the monotonic clock.
    """

    steps: int = 0
    preemptions: int = 0
    usage: float = 0.0
    progressed: float = field(default_factory=monotonic)


def _stat_logger(stats: SchedulerStats) -> type[PrometheusStatLogger]:
    """Returns the class of a stat logger that writes into `stats`.

    It takes the place of vLLM's own logger for Prometheus, which would be added otherwise and would fill the registry of
    this process with metrics that nobody reads.
    """

    class StatLogger(PrometheusStatLogger):  # type: ignore[misc]
        def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
            """Registers no metrics."""

        def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
            if scheduler_stats is not None:  # once a step, also of a prompt's steps, which have no outputs
                stats.steps += 1
                stats.progressed = monotonic()
                stats.usage = float(scheduler_stats.kv_cache_usage)
            if iteration_stats is not None:
                stats.preemptions += int(iteration_stats.num_preempted_reqs)

        def _ignore(self, *_: Any, **__: Any) -> None:
            """Does nothing."""

        log_engine_initialized = record_sleep_state = record_admission_rejection = _ignore

    return StatLogger


class VllmClient:
    """Starts vLLM and sends it requests.

    stages: layer -> the pipeline stage that has it.
    scheduler: what its scheduler tells.
    hashes_know_steering: whether the prefix cache is known to tell apart what was steered differently (hashing.py); the
    self-test finds out.
    """

    def __init__(self, arguments: AsyncEngineArgs) -> None:
        """Starts vLLM; blocks until it has loaded and compiled the model."""
        self.scheduler = SchedulerStats()
        self._llm = AsyncLLM.from_engine_args(arguments, stat_loggers=[_stat_logger(self.scheduler)])
        # one block of vLLM's is never given to a request
        self.blocks = max(int(self._llm.vllm_config.cache_config.num_gpu_blocks or 0) - 1, 0)
        self._channel: ReportChannel
        self._plans = PlanBook(self.call)
        self._numbers = count()
        self._sending_texts, self._texts_sent = asyncio.Lock(), False
        self.block_size = int(self._llm.vllm_config.cache_config.block_size)
        self.hashes_know_steering = False
        self.stages: dict[int, int] = {}
        self.active = 0

    async def connect(self) -> None:
        """Connects the workers to a channel of ours, and learns which layers they steer."""
        self._channel = ReportChannel()
        found = await self.call("steering_connect", self._channel.address)
        self.stages = {layer: stage for stage, layers in found for layer in layers}
        self._channel.stages = len({stage for stage, _ in found})

    @property
    def alive(self) -> bool:
        """Whether vLLM's processes run, as far as their client knows."""
        return not self._llm.errored

    async def call(self, name: str, *arguments: object) -> list[Any]:
        """Calls a method of every worker, between two steps. Returns their results. Raises EngineDead."""
        with translated_errors():
            return list(await self._llm.collective_rpc(name, args=arguments))

    async def send_token_texts(self, texts: Callable[[], tuple[str, ...]]) -> None:
        """Sends the workers the text of every token, once: they decide phases, and have no tokenizer. Raises EngineDead."""
        async with self._sending_texts:
            if not self._texts_sent:
                await self.call("steering_put", "texts", "", encode(await run_in_thread(texts)))
                self._texts_sent = True

    @asynccontextmanager
    async def running(self, task: Task) -> AsyncIterator[Run]:
        """Yields a request that runs; it is aborted where it has not ended by the end of the block."""
        key, request, sampling = str(next(self._numbers)), task.request, task.sampling
        if not self.active:  # requests that come while a step hangs are no progress
            self.scheduler.progressed = monotonic()
        self.active += 1
        steered = not request.plan.empty
        mailbox = Mailbox(self._channel.stages, reads=task.reads, steered=steered) if task.reported else None
        if mailbox is not None:
            self._channel.boxes[key] = mailbox
        try:
            async with self._plans.held(request.plan, request.readings, request.monitors) as keys:
                steering = RequestSteering(
                    key,
                    prompt_length=task.prompt_length,
                    fingerprint=request.plan.fingerprint,
                    prompt_fingerprint=request.plan.prompt_fingerprint,
                    capture=task.capture,
                    roles=tuple((role, len(list(run))) for role, run in groupby(request.plan.prompt_roles or ())),
                    **keys,
                )
                if task.reported:
                    sampling.extra_args = {EXTRA_ARGS: steering.packed()}
                # also when it is resumed after a preemption
                sampling.skip_reading_prefix_cache = task.capture is not None or computes_whole(request.plan)
                prompt = tokens_input(list(task.ids), cache_salt=self._salt(request, key))
                outputs = self._llm.generate(prompt, sampling, key, priority=request.priority)
                async with aclosing(outputs):
                    yield Run(self._outputs(outputs), outputs.aclose, mailbox)
        finally:
            self._channel.boxes.pop(key, None)
            self.active -= 1

    async def _outputs(self, outputs: AsyncIterator[RequestOutput]) -> AsyncIterator[RequestOutput]:
        with translated_errors():
            async for output in outputs:
                yield output

    def _salt(self, request: GenerationRequest, key: str) -> str | None:
        """Returns what separates cached blocks. Keys and values depend on what steered them. Where the hashes of blocks do
        not know that, a steered request has a salt of its own, which shares nothing with plain requests."""
        parts = [request.cache_salt]
        if not request.plan.empty and not self.hashes_know_steering:
            parts.append(request.plan.fingerprint)
        if not request.plan.reusable:
            parts.append(key)
        return "|".join(parts) or None

    async def close(self) -> None:
        """Ends vLLM's processes; requests that run end with EngineDead."""
        self._llm.shutdown(timeout=1)
        self._channel.close()


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turns vLLM's errors into those that a caller may see."""
    try:
        yield
    except EngineDeadError as error:
        raise EngineDead("the engine has stopped") from error
    except VLLMClientError as error:
        raise InvalidRequest(str(error)) from error
    except EngineGenerateError as error:
        raise InternalError("the engine failed on this request") from error
