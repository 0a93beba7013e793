"""ScriptedEngine, an Engine without a model. Prompt, plan, sampling and seed determine its tokens; it can wait, fail and die."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic

import torch

from steering.engine.api import (
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
from steering.engine.capabilities import reading_passes
from steering.engine.prompts import check_layers, check_task
from steering.errors import ContextLengthExceeded, EngineDead, InvalidRequest, NonfiniteActivations, Overloaded
from steering.injection.readings import MonitoredAnswer, stops
from steering.injection.rows import SteeringReport
from steering.model.info import ModelInfo
from steering.plan.types import SteeringPlan
from tests.scripted_model import (
    SCRIPTED_MODEL,
    VOCABULARY,
    WORDS,
    ScriptedTokenizer,
    first_cut,
    planted_direction,
    scripted_head,
)

NONFINITE_STRENGTH = 1e6
"""A steering of this strength or more makes activations non-finite."""


class ScriptedEngine:
    """An Engine with scripted answers.

    length: tokens after which an answer stops. token_seconds: pause before each token. failure: raised before token
    `fail_at`. gate: an event that every token waits for.
    """

    name = "scripted"
    reads_monitors = reads_attention = steers_token_scopes = True

    def __init__(
        self,
        *,
        length: int = 12,
        token_seconds: float = 0.0,
        failure: Exception | None = None,
        fail_at: int = 0,
        gate: asyncio.Event | None = None,
        max_running: int = 64,
        max_waiting: int = 256,
        info: ModelInfo = SCRIPTED_MODEL,
    ) -> None:
        self.info = info
        self.tokenizer = ScriptedTokenizer()
        self.failure, self.fail_at, self.gate = failure, fail_at, gate
        self.captured, self.requests = list[Prompt](), list[GenerationRequest]()
        self._length, self._token_seconds = length, token_seconds
        self._slots = asyncio.Semaphore(max_running)
        self._max_waiting = max_waiting
        self._running = self._waiting = self._generated = self._prompt_tokens = 0
        self._dead = False

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """See Engine.generate."""
        self.requests.append(request)
        ids = self.tokenizer.encode(request.prompt)
        self._check(ids, request.sampling)
        if self._slots.locked() and self._waiting >= self._max_waiting:
            raise Overloaded("the queue is full")
        with self._counted("_waiting"):
            await self._slots.acquire()
        try:
            with self._counted("_running"):
                self._prompt_tokens += len(ids)
                async for event in self._events(ids, request):
                    yield event
        finally:
            self._slots.release()

    async def capture(
        self,
        prompts: Sequence[CapturePrompt],
        spec: CaptureSpec,
        *,
        progress: Callable[[int, int], None] | None = None,
        priority: int = 1,
    ) -> tuple[Capture, ...]:
        """See Engine.capture. Residuals are noise of the text plus or minus the planted direction."""
        check_layers(spec, self.info.layer_count)
        reading_passes(self, spec.position)
        found = []
        for done, prompt in enumerate(prompts, start=1):
            with self._counted("_running"):
                await self._pause(done - 1)
            ids = self.tokenizer.encode(prompt.prompt)
            self.captured.append(prompt.prompt)
            found.append(self._read(ids, prompt, spec))
            if progress is not None:
                progress(done, len(prompts))
        return tuple(found)

    def stats(self) -> EngineStats:
        """See Engine.stats."""
        return EngineStats(
            running=self._running,
            waiting=self._waiting,
            steps=self._generated,
            generated_tokens=self._generated,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=0,
            alive=not self._dead,
        )

    async def close(self) -> None:
        """See Engine.close. Tests also use it to stop the engine."""
        self._dead = True

    def _check(self, ids: Sequence[int], sampling: SamplingParams) -> None:
        if not ids:
            raise InvalidRequest("the prompt is empty", param="prompt")
        if len(ids) + sampling.max_tokens > self.info.context_length:
            raise ContextLengthExceeded(f"the model holds {self.info.context_length} tokens", param="max_tokens")
        if self._dead:
            raise EngineDead("the engine is closed")

    @contextmanager
    def _counted(self, name: str) -> Iterator[None]:
        setattr(self, name, getattr(self, name) + 1)
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) - 1)

    async def _pause(self, index: int) -> None:
        """Waits, fails or dies before token `index`."""
        await asyncio.sleep(self._token_seconds)
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None and index >= self.fail_at:
            raise self.failure
        if self._dead:
            raise EngineDead("the engine was closed")

    async def _events(self, ids: Sequence[int], request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        sampling, plan = request.sampling, request.plan
        _refuse_nonfinite(plan)
        count, written, scheduled = min(self._length, sampling.max_tokens), "", monotonic()
        stopped = self._length <= sampling.max_tokens
        index, met, monitored = 0, None, MonitoredAnswer(request.monitors, request.request_id)
        scores = [_readout(one.vector.partition("@")[0], plan) for one in request.monitors.ordered]
        raised = monitored.read(scores, None)
        while index < count and not stops(raised):
            await self._pause(index)
            raised += monitored.read(scores, index)
            token = 256 + _draw(ids, plan.fingerprint, sampling, index) % len(WORDS)
            text = self.tokenizer.token_text(token)
            met = _met(written + text, sampling.stop)
            if met is not None:
                text, stopped, count = (written + text)[len(written) : met[0]], True, index + 1
            written += text
            self._generated += 1
            yield TokenEvent(
                index=index,
                token_id=token,
                text=text,
                logprob=None if sampling.logprobs is None else -1.0,
                top_logprobs=tuple((256 + i, -1.0 - i) for i in range(sampling.logprobs or 0)),
                readout={reading.name: _readout(reading.name, plan) for reading in request.readings},
                raised=raised,
                scheduled=None if index else scheduled,
            )
            index += 1
            if stops(raised):
                break
            raised = ()
        stop = None if met is None else met[1]
        finish = Finish("stop" if stopped else "length", len(ids), index, 0, _report(plan), stop)
        finish = replace(finish, reason="monitor", stop=None) if stops(raised) else finish
        last = TokenEvent(index, -1, "", finish=finish)
        yield last if index else replace(last, raised=raised, scheduled=scheduled)

    def _read(self, ids: tuple[int, ...], prompt: CapturePrompt, spec: CaptureSpec) -> Capture:
        tokens = len(ids) if spec.position == "all" else 1
        text = bytes(one for one in ids if one < 256)
        sign = float(b"good" in text) - float(b"bad" in text)
        generator = torch.Generator().manual_seed(_digest(ids, prompt.plan.fingerprint))
        shape = len(spec.layers), tokens, self.info.d_model
        activations = 0.1 * torch.randn(shape, generator=generator) + sign * planted_direction()
        logits = torch.randn((len(ids), VOCABULARY), generator=generator) if spec.logits else None
        embeddings = torch.randn(shape[1:], generator=generator) if spec.embeddings else None
        capture = Capture(tuple(ids), activations, logits, embeddings, _report(prompt.plan))
        return first_cut(capture, prompt, spec)

    async def fit(self, task: FitTask, *, progress: Callable[[int, int], None] | None = None) -> FittedDirection:
        """See Engine.fit. It always comes out at the planted direction, with a loss of one over the number of the step."""
        check_task(task, self.info)
        with self._counted("_running"):
            for step in range(task.steps):
                await self._pause(step)
                if progress is not None:
                    progress(step + 1, task.steps)
        return FittedDirection(planted_direction(), tuple(1 / (step + 1) for step in range(task.steps)))

    async def unembed(self, residual: torch.Tensor) -> torch.Tensor:
        """See Engine.unembed: residuals times a fixed head, in which the planted direction says the word of `PLANTED_WORD`."""
        if residual.shape[-1] != self.info.d_model:
            raise InvalidRequest(f"residuals must be (token, {self.info.d_model})", param="residual")
        await self._pause(0)
        return residual @ scripted_head()


def _digest(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


def _draw(ids: Sequence[int], fingerprint: str, sampling: SamplingParams, index: int) -> int:
    seed = sampling.seed if sampling.temperature > 0 else 0
    return _digest(tuple(ids), fingerprint, sampling.temperature > 0, seed, index)


def _met(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    """Where a text meets a stop string first, and which."""
    return min(((at, stop) for stop in stops if (at := text.find(stop)) >= 0), default=None)


def _refuse_nonfinite(plan: SteeringPlan) -> None:
    if any(abs(one.spec.strength) >= NONFINITE_STRENGTH for one in plan.interventions):
        raise NonfiniteActivations("the steering drove the activations out of range")


def _readout(name: str, plan: SteeringPlan) -> float:
    """0.5, plus what was added of that very vector: enough to see steering in a readout."""
    return 0.5 + sum(one.spec.strength for one in plan.interventions if one.spec.vector.partition("@")[0] == name)


def _report(plan: SteeringPlan) -> SteeringReport:
    doses: tuple[Mapping[int, float], ...] = tuple(
        {layer: one.planned_dose.get(layer, 0.25) for layer in one.layers} for one in plan.interventions
    )
    return SteeringReport(doses, (True,) * len(doses), (0,) * len(doses))
