"""TransformersEngine: the asynchronous face of a transformers model in this process."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import closing
from functools import partial
from itertools import count
from operator import itemgetter
from typing import cast

from steering.engine import captures
from steering.engine.answers import Stream
from steering.engine.api import (
    Capture,
    CapturePrompt,
    CaptureSpec,
    EngineStats,
    FitTask,
    FittedDirection,
    GenerationRequest,
    SamplingParams,
    TokenEvent,
)
from steering.engine.capabilities import reading_passes
from steering.engine.grammars import Grammars
from steering.engine.options import EngineLimits
from steering.engine.prompts import (
    check_context,
    check_layers,
    check_plan,
    check_sampling,
    check_task,
    encode_steered,
    encode_with_plans,
    tokenizing,
)
from steering.engine.transformers.block_pool import BlockPool
from steering.engine.transformers.executor import CompileRequest
from steering.engine.transformers.loop import EngineLoop
from steering.engine.transformers.paged_cache import PrefixIndex
from steering.engine.transformers.request import BackgroundTask, Pieces, Request
from steering.engine.transformers.runner import ModelRunner
from steering.engine.transformers.scheduler import Scheduler
from steering.engine.transformers.training import fit
from steering.errors import OutOfMemory
from steering.injection.fused import has_kernel
from steering.injection.readings import MonitoredAnswer
from steering.model.loading import LoadedModel
from steering.model.phases import PhaseTracker
from steering.plan.types import SteeringPlan
from steering.schemas.structured import Grammar
from steering.shapes import Float, Residual, Tensor
from steering.threads import run_in_thread

LOGIT_BYTES = 256 << 20  # logits of all positions that a pass may return, in float32
UNEMBEDDED_AT_ONCE = 256  # residuals whose logits are computed between two passes
FED = 4
"""Of a call that reads texts, so many times `max_background` are in the queue at most. A pass ends one time that many, and finds the next
ones while those that it has ended reach their caller."""


class TransformersEngine:
    """An Engine in this process. One thread owns the model; callers reach it through queues."""

    name = "transformers"
    reads_monitors = steers_token_scopes = True

    def __init__(
        self,
        loaded: LoadedModel,
        limits: EngineLimits | None = None,
        compile_request: CompileRequest | None = None,
        *,
        kernels: bool = True,
    ) -> None:
        """compile_request: how to compile passes on a CPU; None: passes are eager. kernels: whether edits on a CUDA device
        are one Triton kernel a layer, where it runs."""
        self.info, self.tokenizer = loaded.info, loaded.tokenizer
        self._limits = limits or EngineLimits()
        device = loaded.layout.device
        edit_kernel = has_kernel if kernels else None
        self._runner = runner = ModelRunner(
            loaded.model, loaded.layout, device, self._limits, compile_request, edit_kernel=edit_kernel
        )
        self.reads_attention = runner.executor.attention is not None
        pool = BlockPool(runner.blocks)
        self._index = PrefixIndex(pool, enabled=self._limits.share_prefixes, exact=runner.exact)
        logit_positions = max(LOGIT_BYTES // (4 * loaded.layout.vocab_size), 1)
        self._scheduler = Scheduler(
            self._limits, pool, self._index, runner.release, logit_positions, same_pass=runner.same_pass
        )
        self._numbers, self._grammars = count(), Grammars(self.tokenizer)
        self._loop = EngineLoop(runner, self._scheduler, self.tokenizer.eos_ids, self._limits)
        self._loop.start()
        runner.executor.start(self._install)

    def _install(self, change: Callable[[], None]) -> None:
        """Changes the executor between two passes. Cached prompts were computed with other rounding, so they are dropped."""

        def install() -> None:
            change()
            self._index.clear()
            self._index.exact = self._runner.exact

        self._loop.call(install)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """See Engine.generate."""
        grammar, watched = request.sampling.grammar, request.monitors.by_phase
        ids, plan = await encode_steered(self.tokenizer, request.prompt, request.plan, grammar, phases=watched)
        wanted = request.sampling.max_tokens
        check_sampling(request.sampling, self.info)
        check_context(len(ids), wanted, self.info)
        check_plan(plan)
        if not self._scheduler.fits_alone(len(ids) + wanted):
            too_large = f"{len(ids)} prompt tokens and {wanted} more do not fit the key-value cache of this server"
            raise OutOfMemory(too_large)
        matcher = None if grammar is None else await self._grammars.matcher(grammar)
        with closing(Stream(asyncio.get_running_loop())) as stream:
            running = Request(
                id=next(self._numbers),
                ids=list(ids),
                prompt_length=len(ids),
                plan=plan,
                sampling=request.sampling,
                stream=stream,
                readings=request.readings,
                priority=request.priority,
                cache_salt=request.cache_salt,
                monitors=request.monitors,
                monitored=MonitoredAnswer(request.monitors, request.request_id) if request.monitors.ordered else None,
                decoder=self.tokenizer.decode_stream(ids),
                matcher=matcher,
                phases=self._phases_of(plan, watched=watched),
            )
            self._loop.submit([running])
            while True:
                event = cast(TokenEvent, await stream.get())
                yield event
                if event.finish is not None:
                    return

    def _phases_of(self, plan: SteeringPlan, *, watched: bool = False) -> PhaseTracker | None:
        if plan.phases is None or not (watched or plan.needs_phases):
            return None
        return PhaseTracker(plan.phases, self.tokenizer.token_text)

    def load_vocabulary(self) -> None:
        """Makes what grammars need of the tokenizer, before there are requests that would wait. Raises UnsupportedParameter."""
        _ = self._grammars.vocabulary

    async def check_grammar(self, grammar: Grammar) -> None:
        """See SupportsGrammars.check_grammar."""
        await self._grammars.matcher(grammar)

    async def capture(
        self,
        prompts: Sequence[CapturePrompt],
        spec: CaptureSpec,
        *,
        progress: Callable[[int, int], None] | None = None,
        priority: int = 1,
    ) -> tuple[Capture, ...]:
        """See Engine.capture."""
        check_layers(spec, self.info.layer_count)
        reading_passes(self, spec.position)
        for plan in {one.plan for one in prompts}:
            check_plan(plan)
        read: dict[int, Capture] = {}
        with closing(Stream(asyncio.get_running_loop())) as stream:
            begin = partial(self._begin_captures, prompts, spec, stream, priority)
            left = deque(await tokenizing([(one.prompt, one.plan) for one in prompts], begin))
            self._loop.submit([left.popleft() for _ in range(min(FED * self._limits.max_background, len(left)))])
            while len(read) < len(prompts):
                index, result = cast(tuple[int, Capture], await stream.get())
                read[index] = result
                if left:
                    self._loop.submit([left.popleft()], begun=True)
                if progress is not None:
                    progress(len(read), len(prompts))
        return tuple(read[index] for index in range(len(prompts)))

    def _begin_captures(
        self, prompts: Sequence[CapturePrompt], spec: CaptureSpec, stream: Stream, priority: int
    ) -> list[Request]:
        """Tokenises and checks texts. Sorted, so that texts which begin alike meet in a pass."""
        encoded = [
            encode_with_plans(self.tokenizer, prompt.prompt, (prompt.plan,), length=prompt.prompt_length)
            for prompt in prompts
        ]
        longest = max((len(ids) for ids, _ in encoded), default=0)
        check_context(longest, 0, self.info)
        if not self._scheduler.fits_alone(longest):
            raise OutOfMemory(f"a text of {longest} tokens does not fit the key-value cache of this server")
        salt = f"capture {next(self._numbers)}" if spec.cache_salt is None else spec.cache_salt
        texts = [(ids, index, prompts[index], plan) for index, (ids, (plan,)) in enumerate(encoded)]
        return [
            Request(
                id=next(self._numbers),
                ids=list(ids),
                prompt_length=prompt.prompt_length or len(ids),
                plan=plan,
                sampling=SamplingParams(),
                stream=stream,
                priority=priority,
                capture=captures.begin(index, prompt, ids, spec, self.tokenizer),
                cache_salt=salt,
                client=spec.client,
                phases=self._phases_of(plan),
            )
            for ids, index, prompt, plan in sorted(texts, key=itemgetter(0))
        ]

    async def unembed(self, residual: Residual) -> Float[Tensor, "token vocab"]:
        """See SupportsUnembed.unembed. In pieces between the steps of live traffic, as a fit is."""
        pieces = self._runner.unembedding.unembedding(residual, min(UNEMBEDDED_AT_ONCE, self._limits.prefill_tokens))
        return cast(Tensor, await self._in_background(pieces, Tensor, urgent=True))

    async def fit(self, task: FitTask, *, progress: Callable[[int, int], None] | None = None) -> FittedDirection:
        """See SupportsFitting.fit."""
        check_task(task, self.info)
        pieces = fit(task, self._runner.gradients, self.info.d_model)
        report = progress or (lambda *_: None)
        fitted = self._in_background(pieces, FittedDirection, progress=lambda done: report(cast(int, done), task.steps))
        return cast(FittedDirection, await fitted)

    async def _in_background(
        self, pieces: Pieces, result: type, *, urgent: bool = False, progress: Callable[[object], None] = lambda _: None
    ) -> object:
        """Runs work in pieces on the engine's thread and returns its result. Cancelling stops it after a piece."""
        with closing(Stream(asyncio.get_running_loop())) as stream:
            self._loop.submit([BackgroundTask(stream, pieces, urgent)])
            while not isinstance(item := await stream.get(), result):
                progress(item)
            return item

    def stats(self) -> EngineStats:
        """See Engine.stats."""
        return self._loop.stats()

    async def close(self) -> None:
        """See Engine.close."""
        await run_in_thread(self._loop.close)
