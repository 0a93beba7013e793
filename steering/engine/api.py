"""Engine, the only interface to a model, with its request and response types. How requests are batched is up to it."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from steering.injection.readings import NO_MONITORS, MonitorSet, RaisedMonitor, Reading
from steering.injection.rows import SteeringReport
from steering.model.info import ModelInfo
from steering.pairs import ChatMessage
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.schemas.messages import SpanPosition
from steering.schemas.structured import Grammar
from steering.shapes import Direction, Float, Tensor

Prompt: TypeAlias = str | tuple[ChatMessage, ...] | tuple[int, ...]
"""A text, a conversation that the model's chat template renders, or token ids."""
Position: TypeAlias = Literal["last", "mean", "response_mean", "all"] | int | SpanPosition
"""Which positions of a text are read: one, a mean over all but the first, a mean over the last assistant message,
every one, a negative offset from the end, a mean over a phrase, or the token that attends to a phrase most."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Options for choosing the next token. temperature 0 is greedy. stop: strings that end the text without being part of it.
    grammar: what the answer must match, on engines that have `check_grammar`."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    grammar: Grammar | None = None


@dataclass(frozen=True, slots=True, eq=False)
class GenerationRequest:
    """One prompt to answer, with its own steering.

    priority: 0 is live traffic, 1 background work.
    cache_salt: prompts are shared among requests of one salt only, so that no caller can probe another's prompts.
    monitors: what an operator watches; engines with `reads_monitors` read them.
    request_id: names the request in the raises of monitors.
    observe: wraps the events of each answer where they are read, for traces; engines ignore it.
    """

    prompt: Prompt
    sampling: SamplingParams = SamplingParams()
    plan: SteeringPlan = UNSTEERED
    readings: tuple[Reading, ...] = ()
    priority: int = 0
    cache_salt: str = ""
    monitors: MonitorSet = NO_MONITORS
    request_id: str = ""
    observe: "Callable[[GenerationRequest, AsyncGenerator[TokenEvent, None]], AsyncGenerator[TokenEvent, None]] | None" = None


@dataclass(frozen=True, slots=True)
class Finish:
    """How an answer ended. reason `monitor`: a monitor stopped it. stop: the stop string that was met; None for another end."""

    reason: Literal["stop", "length", "monitor"]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    steering: SteeringReport
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One generated token.

    text: the whole characters that it completes; may be empty.
    top_logprobs: (token id, logprob) of the most probable tokens, best first.
    readout: name -> score in natural scales, centred on the poles.
    finish: on the last event, which has no token (token_id -1) but may have the last characters.
    raised: the monitors that flag or stop here; those of the prompt come with the first event.
    scheduled: on the first event, when the request left the queue, by time.monotonic(); None if the engine does not know.
    """

    index: int
    token_id: int
    text: str
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    readout: Mapping[str, float] = field(default_factory=dict)
    finish: Finish | None = None
    raised: tuple[RaisedMonitor, ...] = ()
    scheduled: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class CapturePrompt:
    """A text to read.

    prompt_length: tokens of its prompt, for plans that depend on the position; None: all of them.
    first: the first position of which logits and, if the position is "all", activations are returned; an engine may
        compute what comes before it once for texts of one call that begin alike.
    """

    prompt: Prompt
    plan: SteeringPlan = UNSTEERED
    prompt_length: int | None = None
    first: int = 0


@dataclass(frozen=True, slots=True)
class CaptureSpec:
    """What to read: residuals after these blocks under the prompt's plan.

    logits: whether logits are read too, at every position from `CapturePrompt.first`.
    embeddings: whether the input embeddings of the positions are read too.
    cache_salt: what is computed for the beginning of a text may be shared with calls and requests of the same salt; None: with the
        texts of the same call. Only with logits: a pass without them may end before the last block. The engine `vllm` ignores it.
    client: who asks. Waiting texts are taken in turns between clients, those of one client in turns between its calls; a call
        without one is a client of its own.
    """

    layers: tuple[int, ...]
    position: Position = "last"
    logits: bool = False
    embeddings: bool = False
    cache_salt: str | None = None
    client: str = ""

    def __post_init__(self) -> None:
        if self.cache_salt is not None and not self.logits:
            raise ValueError("CaptureSpec.cache_salt needs logits: a pass without them may end before the last block")


@dataclass(frozen=True, slots=True, eq=False)
class Capture:
    """The result of reading one text, in float32 on the host.

    activations: in the order of CaptureSpec.layers; one token unless position was "all".
    logits: over the positions of the text from `CapturePrompt.first`.
    embeddings: before positions are added.
    steering: what the plan did at the positions and layers that were computed for this text.
    """

    token_ids: tuple[int, ...]
    activations: Float[Tensor, "layer token d_model"]
    logits: Float[Tensor, "position vocab"] | None = None
    embeddings: Float[Tensor, "token d_model"] | None = None
    steering: SteeringReport = field(default_factory=SteeringReport)


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A ContrastivePair in tokens. Tokens from `start` on are scored, in both texts; those before are given."""

    positive: tuple[int, ...]
    negative: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True)
class NeutralText:
    """A text that has nothing to do with the concept. The predictions for its tokens from `start` on should not change."""

    ids: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """How a direction is fitted.

    steps: how often it is changed, each time by `batch` pairs.
    learning_rate: how far a step may turn it, in radians.
    strengths: |s| is drawn evenly from this range, which lies above 0.
    kl_coefficient: weight in the loss of a nat of divergence per token of neutral text, under strengths of both signs; 0 uses none.
    """

    steps: int = 100
    batch: int = 4
    learning_rate: float = 0.1
    strengths: tuple[float, float] = (0.25, 1.0)
    kl_coefficient: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class FitTask(TrainingSettings):
    """A direction d to be fitted by gradient against the frozen model: s * amount * d, added after block `layer` at every
    position, should make the positive texts more likely than the negative ones for s > 0, and less likely for s < 0.

    amount: residual units at strength 1.
    initial: where to start, of any length; a random direction if None.
    """

    pairs: tuple[TokenPair, ...]
    layer: int
    amount: float
    neutral: tuple[NeutralText, ...] = ()
    initial: Direction | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class FittedDirection:
    """direction: unit, float32, on the host. losses: mean loss of each step, before it."""

    direction: Direction
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What the engine is doing now, for metrics and readiness.

    running, waiting: live requests. background_*: captures and other background work.
    blocks_*: of the key-value cache: all, held by requests, and kept for prompts that begin alike.
    longest: positions that one request may have in it, None where that is the context.
    preemptions: requests that gave up their blocks and were computed again.
    admitted, queue_seconds: live requests that got a row, and how long they waited for it together.
    busy: whether there is work.
    last_turn_age: seconds since the loop last began a turn; 0 while it waits for work.
    executor: what runs its passes (`eager`, `eager+kernels`, `eager+graphs`, `compiled`, `compiled+kernels`); results of two may differ by
    rounding.
    kernels: how the kernels of a CPU multiply, and whose threads compute (`pairs, openmp`), as measured at the first start.
    weight_bytes: of the weights of linear layers by their format, where the engine packed them.
    """

    running: int
    waiting: int
    steps: int
    generated_tokens: int
    prompt_tokens: int
    cached_tokens: int
    alive: bool
    background_running: int = 0
    background_waiting: int = 0
    blocks_total: int = 0
    blocks_used: int = 0
    blocks_cached: int = 0
    longest: int | None = None
    preemptions: int = 0
    admitted: int = 0
    queue_seconds: float = 0.0
    busy: bool = False
    last_turn_age: float = 0.0
    executor: str = "eager"
    kernels: str = ""
    weight_bytes: Mapping[str, int] = field(default_factory=dict)


class Tokenizer(Protocol):
    """Converts text to token ids and back."""

    def encode(self, prompt: Prompt, most: int | None = None) -> tuple[int, ...]:
        """Returns token ids. Raises ContextLengthExceeded for more than `most` tokens (by default those of the model's context),
        InvalidRequest for messages without a chat template, or ids out of the vocabulary."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the text of ids, without control tokens."""

    def encode_with_roles(self, messages: tuple[ChatMessage, ...]) -> tuple[tuple[int, ...], tuple[str | None, ...]]:
        """Returns encode(messages) and the role of each token: of the message whose content it is part of, None in between."""

    def token_text(self, token_id: int) -> str:
        """Returns one token's own text, for tables; such texts cannot be joined."""

    def token_bytes(self, token_id: int) -> bytes:
        """Returns the bytes that one token adds to a text; joined, they are the text. None for a control token."""

    def control_strings(self, text: str) -> tuple[str, ...]:
        """Returns the strings of control tokens in a text, which `encode` reads as plain characters."""


class Engine(Protocol):
    """What every engine offers; checked by tests/contracts/test_engines.py.

    A request's tokens depend on its prompt, plan, sampling and seed, never on the other requests of a batch.
    """

    @property
    def name(self) -> str:
        """The engine's name in ENGINES."""

    @property
    def info(self) -> ModelInfo:
        """The loaded model, its typical norms included."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """Yields token events, the last with `finish`. Closing the generator cancels the request within one step.

        Raises (on first iteration) ContextLengthExceeded, Overloaded, EngineDead; later NonfiniteActivations, OutOfMemory.
        """

    async def capture(
        self,
        prompts: Sequence[CapturePrompt],
        spec: CaptureSpec,
        *,
        progress: Callable[[int, int], None] | None = None,
        priority: int = 1,
    ) -> tuple[Capture, ...]:
        """Returns one Capture per prompt, in order. `progress(done, total)` is called after each. Raises InvalidRequest for
        layers and positions that do not exist, ContextLengthExceeded, LimitExceeded, Overloaded, OutOfMemory, NonfiniteActivations."""

    def stats(self) -> EngineStats:
        """Returns counters for metrics and readiness."""

    async def close(self) -> None:
        """Stops the engine; running streams end with EngineDead. May be called again."""
