"""LinearEngine: an Engine small enough to know the answers by heart. Words have a polarity, polarity is one direction.

Block 0 writes each word's own embedding. Block 1 adds the planted concept: `GAIN` times the mean polarity of the words
read so far. Block 2 changes nothing. Block 3 adds noise of its own along the concept, so the middle reads best. Logits
are linear in the last residual: more concept, more likely the words of its pole; until, beyond `BREAKS` natural scales
either way, the model can only babble.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from steering.engine.api import (
    Capture,
    CapturePrompt,
    CaptureSpec,
    EngineStats,
    Finish,
    GenerationRequest,
    Position,
    Prompt,
    SamplingParams,
    TokenEvent,
)
from steering.errors import SteeringError
from steering.injection.rows import SteeringReport
from steering.model.info import ModelInfo
from steering.plan.scope import positions_of
from steering.plan.types import RELU, ROTATE, SteeringPlan
from steering.schemas.messages import SpanPosition
from tests.scripted_model import first_cut
from tests.steering.workflows.linear_tokenizer import (
    BABBLE,
    IDS,
    MARKERS,
    POLARITY,
    WORDS,
    LinearTokenizer,
)

D_MODEL, LAYERS, GAIN, NOISE, BREAKS = 96, 4, 4.0, 6.0, 1.6
PLANTED_LAYERS = (1, 2)


class LinearEngine:
    """The Protocol over a handful of matrices. `fails(request, index)` may return an error to raise before a token."""

    def __init__(
        self,
        *,
        fails: Callable[[GenerationRequest, int], SteeringError | None] = lambda request, index: None,
        replies: Mapping[str, str] | None = None,
        chat_template: bool = True,
        system_role: bool = True,
    ) -> None:
        """replies: a word of the system message -> the whole answer, for workflows that instruct the model."""
        self.info = ModelInfo(
            name="linear", architecture="Linear", fingerprint="f" * 16, d_model=D_MODEL, layer_count=LAYERS,
            vocab_size=len(WORDS), context_length=512, dtype="float32", device="cpu", parameter_count=0,
            chat_template=chat_template,
        )  # fmt: skip
        self.name, self.tokenizer = "linear", LinearTokenizer(system_role)
        self.running = self.peak = self.captured = self.generated = 0
        self.unembedded: list[int] = []
        self.capture_calls: list[tuple[int, CaptureSpec]] = []
        self._fails, self._replies = fails, dict(replies or {})
        numbers = torch.Generator().manual_seed(11)
        basis = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=numbers))[0]
        self.concept: torch.Tensor = basis[0]
        across = torch.eye(D_MODEL) - torch.outer(self.concept, self.concept)
        self.embedding = torch.randn(len(WORDS), D_MODEL, generator=numbers) @ across / D_MODEL**0.5
        self.late_noise = NOISE * torch.randn(len(WORDS), generator=numbers)
        self._planted, self._late = GAIN * self.concept, torch.outer(self.late_noise, self.concept)
        self.follows = torch.randn(len(WORDS), len(WORDS), generator=numbers)
        self.follows[:, : len(MARKERS)] = -1e4
        self.follows[:, IDS[BABBLE]] = -9.0

    # -- the model ------------------------------------------------------------------------------------------------

    def residuals(
        self, ids: Sequence[int], plan: SteeringPlan, prompt_length: int
    ) -> tuple[list[torch.Tensor], dict[int, float]]:
        """Residuals (token, d_model) after each block, and the measured dose by layer."""
        index = torch.tensor(ids)
        level = torch.cumsum(POLARITY[index], 0) / torch.arange(1, len(ids) + 1)
        written = {1: level[:, None] * self._planted, 3: self._late[index]}
        residual, after, doses = self.embedding[index], [], {}
        for layer in range(LAYERS):
            residual = residual + written[layer] if layer in written else residual
            steered = _steer(residual, plan, layer, prompt_length)
            if steered is not residual:
                doses[layer] = float(((steered - residual).norm(dim=1) / residual.norm(dim=1)).mean())
            residual = steered
            after.append(residual)
        return after, doses

    def logits(self, ids: Sequence[int], last: torch.Tensor) -> torch.Tensor:
        """(token, vocab) from the last residual and the word read; the block-3 noise is not part of what is message."""
        index = torch.tensor(ids)
        strength = last @ self.concept - self.late_noise[index]
        logits = self.follows[index] + strength[:, None] * POLARITY
        logits[:, IDS[BABBLE]] += 40.0 * (strength.abs() / GAIN - BREAKS).clamp(min=0.0)
        return logits

    async def reached(self, tokens: int) -> None:
        """Returns once that many tokens have been generated, or texts captured."""
        for _ in range(5_000_000):  # a busy machine may run the measuring threads slowly
            if self.generated + self.captured >= tokens:
                return
            await asyncio.sleep(0)
        raise AssertionError(f"only {self.generated} tokens and {self.captured} captures came")

    # -- the Protocol ---------------------------------------------------------------------------------------------

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        prompt = self.tokenizer.encode(request.prompt)
        self.running += 1
        self.peak = max(self.peak, self.running)
        scripted = self._scripted(request.prompt)
        ids, stopped = list(prompt), False
        doses: dict[int, float] = {}
        try:
            for index in range(request.sampling.max_tokens):
                await asyncio.sleep(0)
                error = self._fails(request, index)
                if error is not None:
                    raise error
                after, doses = self.residuals(ids, request.plan, len(prompt))
                if scripted is not None and not scripted:
                    stopped = True
                    break
                token = (
                    _sample(self.logits(ids, after[-1])[-1], request.sampling, index)
                    if scripted is None
                    else scripted.popleft()
                )
                readout = {r.name: float(r.scores(after[r.layer][-1:])[0]) for r in request.readings}
                ids.append(token)
                self.generated += 1
                yield TokenEvent(index, token, (" " if index else "") + WORDS[token], readout=readout)
            report = SteeringReport((doses,), (bool(doses),), (None,)) if doses else SteeringReport()
            count = len(ids) - len(prompt)
            finish = Finish("stop" if stopped else "length", len(prompt), count, 0, report)
            yield TokenEvent(count, -1, "", finish=finish)
        finally:
            self.running -= 1

    def _scripted(self, prompt: Prompt) -> deque[int] | None:
        if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int) or prompt[0].role != "system":
            return None
        found = next((text for word, text in self._replies.items() if word in prompt[0].content), None)
        return None if found is None else deque(self.tokenizer._words(found))

    async def capture(
        self,
        prompts: Sequence[CapturePrompt],
        spec: CaptureSpec,
        *,
        progress: Callable[[int, int], None] | None = None,
        priority: int = 1,
    ) -> tuple[Capture, ...]:
        self.capture_calls.append((len(prompts), spec))
        captures = []
        for done, prompt in enumerate(prompts, start=1):
            await asyncio.sleep(0)
            captures.append(self._capture(prompt, spec))
            self.captured += 1
            if progress is not None:
                progress(done, len(prompts))
        return tuple(captures)

    def _capture(self, prompt: CapturePrompt, spec: CaptureSpec) -> Capture:
        ids = self.tokenizer.encode(prompt.prompt)
        length = len(ids) if prompt.prompt_length is None else prompt.prompt_length
        after, _ = self.residuals(ids, prompt.plan, length)
        chosen = [_read(after[layer], spec.position, ids, prompt.prompt_length) for layer in spec.layers]
        shape = (0, len(ids) if spec.position == "all" else 1, D_MODEL)
        whole = Capture(
            token_ids=ids,
            activations=torch.stack(chosen) if chosen else torch.zeros(shape),
            logits=self.logits(ids, after[-1]) if spec.logits else None,
            embeddings=_read(self.embedding[torch.tensor(ids)], spec.position, ids) if spec.embeddings else None,
        )
        return first_cut(whole, prompt, spec)

    async def unembed(self, residual: torch.Tensor) -> torch.Tensor:
        """Only what a residual itself says: the words of its pole. (`logits` adds what follows the word read.)"""
        await asyncio.sleep(0)
        self.unembedded.append(len(residual))
        return (residual @ self.concept)[:, None] * POLARITY

    def stats(self) -> EngineStats:
        return EngineStats(self.running, 0, self.generated, self.generated, 0, 0, True)

    async def close(self) -> None:
        return None


def _steer(residual: torch.Tensor, plan: SteeringPlan, layer: int, prompt_length: int) -> torch.Tensor:
    """Unconditional and unscheduled edits without rotations: what these tests use."""
    if layer not in plan.layers:
        return residual
    change = torch.zeros_like(residual)
    for edits in plan.layers[layer]:
        first, end = positions_of(plan.interventions[edits.owner].spec.scope, prompt_length)
        inside = torch.tensor([first <= position < end for position in range(len(residual))])
        for write, read, numbers, kind in zip(edits.write, edits.read, edits.numbers, edits.kinds, strict=True):
            assert kind != ROTATE
            inner = residual @ read + numbers[0] + numbers[1] * residual.norm(dim=1)
            inner = inner.clamp(min=0.0) if kind == RELU else inner
            change += (numbers[2] * inner * inside)[:, None] * write
    return residual + change


def _read(
    residual: torch.Tensor, position: Position, ids: Sequence[int], prompt_length: int | None = None
) -> torch.Tensor:
    """(1 or token, d_model)."""
    if position == "all":
        return residual
    if position == "mean":
        return residual[1:].mean(0, keepdim=True) if len(ids) > 1 else residual
    if position == "response_mean" and prompt_length is not None:
        return residual[prompt_length:].mean(0, keepdim=True)
    if position == "response_mean":
        start = len(ids) - 1 - list(reversed(ids)).index(IDS["<assistant>"])
        return residual[start + 1 :].mean(0, keepdim=True)
    if isinstance(position, SpanPosition):
        words = [WORDS.index(word) for word in position.span.split()]
        starts = [at for at in range(len(ids)) if [*ids[at : at + len(words)]] == words]
        return residual[starts[-1] : starts[-1] + len(words)].mean(0, keepdim=True)
    offset = -1 if position == "last" else int(position)
    return residual[len(ids) + offset][None]


def _sample(logits: torch.Tensor, sampling: SamplingParams, index: int) -> int:
    """Argmax of logits / T plus Gumbel noise from (seed, index, token)."""
    if sampling.temperature == 0.0:
        return int(logits.argmax())
    return int((logits.numpy() / sampling.temperature + _noise(sampling.seed & ((1 << 64) - 1), index)).argmax())


@lru_cache(maxsize=10_000)
def _noise(seed: int, index: int) -> npt.NDArray[np.float64]:
    key = np.array([seed, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).gumbel(size=len(WORDS))
