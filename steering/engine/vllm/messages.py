"""What the server's process and vLLM's worker processes send each other about a request, and how it is encoded.

A request names its plan by a key; the plan was sent before, once (`PlanBook`). The worker answers over a socket of its own,
since vLLM's outputs have no field for it: a TokenMessage per generated token, and a ReportMessage when the request has left.
Everything is encoded in MessagePack and decoded strictly as a declared type: nothing that is decoded runs code.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from math import prod
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec
import torch

from steering.errors import InternalError
from steering.injection.readings import NO_MONITORS, MonitorSet, Reading
from steering.injection.rows import Doses
from steering.plan.types import HeldReadout, SteeringPlan
from steering.shapes import Tensor
from steering.spec import InterventionSpec

T = TypeVar("T")
FLOAT32_BYTES = 4
EXTRA_ARGS = "steering"
"""The key of a request's steering in `SamplingParams.extra_args` of vLLM."""
SPLITTING_OP = "steering::act"
"""The operation that acts behind each decoder layer (worker.py)."""
EDITS_IN_GRAPHS = "steering_edits_in_graphs"
"""The key of vLLM's additional configuration that says whether edits are operations of its graphs."""
HOOK_POINTS = "steering_hook_points"
"""The key of vLLM's additional configuration with the kinds of points inside layers that are hooked, and the number of heads."""
KERNELS = "steering_kernels"
"""The key of vLLM's additional configuration with the path of our library for CPUs, if there is one."""
KEPT = 64
"""Plans, readouts and monitors that stay with the workers without a request that uses them; the same are often sent again."""


@dataclass(frozen=True, slots=True)
class CaptureWindow:
    """What a capture reads. Positions [start, end) at these layers; reduce: their mean. logits: at every position from `first`."""

    layers: tuple[int, ...]
    start: int
    end: int
    reduce: bool
    logits: bool
    first: int = 0


@dataclass(frozen=True, slots=True)
class RequestSteering:
    """The steering of one request as it travels in extra_args, which carry plain JSON types only.

    plan, readings, monitors: keys of what was sent before, empty for none.
    prompt_length: positions of the prompt; a capture may state fewer than it has tokens.
    roles: of the prompt's tokens where a scope asks for them, each with the number of neighbouring tokens that have it.
    fingerprint, prompt_fingerprint: for the hashes of the prefix cache.
    """

    key: str
    plan: str = ""
    readings: str = ""
    prompt_length: int = 0
    fingerprint: str = ""
    prompt_fingerprint: str = ""
    capture: CaptureWindow | None = None
    monitors: str = ""
    roles: tuple[tuple[str | None, int], ...] = ()

    def packed(self) -> dict[str, Any]:
        """Returns plain types. A tensor in extra_args would end vLLM's engine for everybody."""
        packed: dict[str, Any] = msgspec.to_builtins(self)
        return packed

    @classmethod
    def unpacked(cls, values: Mapping[str, Any]) -> "RequestSteering":
        """Reads what `packed` returned."""
        return msgspec.convert(values, cls)


class MonitorReading(msgspec.Struct, frozen=True, eq=False):
    """What a worker needs to know of a monitor: what it reads, and whether at the prompt's end or at each generated token."""

    reading: Reading
    at: Literal["prompt", "generated"]


class TokenMessage(msgspec.Struct, frozen=True, eq=False, tag="token", forbid_unknown_fields=True):
    """What one pipeline stage knows of one generated token.

    index: of the token.
    finite: False where the last residual was not finite, so that the token means nothing.
    scores: of the monitors that read a layer of this stage, by their place in `MonitorSet.read_at`.
    """

    key: str
    index: int
    finite: bool
    readout: Mapping[str, float]
    scores: Mapping[int, float]


@dataclass(slots=True)
class TokenReadings:
    """What the stages have sent about one token. scores: of the monitors, by their place in `MonitorSet.read_at`."""

    stages: int = 0
    finite: bool = True
    readout: dict[str, float] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)

    def add(self, message: TokenMessage) -> None:
        """Adds what one stage sent."""
        self.stages += 1
        self.finite &= message.finite
        self.readout.update(message.readout)
        self.scores.update(message.scores)


class MeasuredDoses(msgspec.Struct, frozen=True, eq=False, forbid_unknown_fields=True):
    """The sums of one request at the layers of one stage, in float32; see `Doses`."""

    layers: tuple[int, ...]
    doses: Tensor
    totals: Tensor
    fired: tuple[int, ...]


class ReportMessage(msgspec.Struct, frozen=True, eq=False, tag="report", forbid_unknown_fields=True):
    """The last message about a request.

    scores: the last score of each threshold, None where this stage has not decided it.
    held: of each intervention, what its controllers did, by layer.
    activations: layer -> (token, d_model) of a capture.
    logits: (position, vocab) where they were asked for.
    incomplete: as in SteeringReport.
    """

    key: str
    doses: MeasuredDoses | None = None
    scores: tuple[float | None, ...] = ()
    held: tuple[Mapping[int, HeldReadout], ...] = ()
    activations: Mapping[int, Tensor] = {}
    logits: Tensor | None = None
    incomplete: bool = False


class FailureMessage(msgspec.Struct, frozen=True, eq=False, tag="failure", forbid_unknown_fields=True):
    """Steering of this request failed in the worker; the server ends the request. reason: for the log."""

    key: str
    reason: str


Message: TypeAlias = TokenMessage | ReportMessage | FailureMessage


def doses_of(plan: SteeringPlan, reports: Sequence[ReportMessage]) -> Doses:
    """Merges what the pipeline stages measured, each at its own layers."""
    doses = Doses(plan)
    scores = [float("nan")] * len(plan.thresholds)
    held: list[dict[int, HeldReadout]] = [{} for _ in plan.interventions]
    for report in reports:
        if report.doses is not None:
            rows = torch.tensor([doses.layers.index(layer) for layer in report.doses.layers], dtype=torch.int64)
            sums, totals = torch.zeros_like(doses.doses), report.doses.totals.double()
            sums[rows] = report.doses.doses.double()
            changed = torch.maximum(doses.totals[1], totals[1])  # a stage knows what it changed itself
            doses.add(sums, totals, report.doses.fired)
            doses.totals[1] = changed
        for number, score in enumerate(report.scores):
            scores[number] = scores[number] if score is None else score
        for all_layers, here in zip(held, report.held, strict=bool(report.held)):
            all_layers.update(here)
    doses.incomplete = any(report.incomplete for report in reports)
    doses.scores = tuple(scores)
    doses.held = tuple(held) if any(one.holds for one in plan.interventions) else ()
    return doses


@dataclass(slots=True, eq=False)
class _Sent:
    done: "asyncio.Task[None]"
    users: int = 0


class PlanBook:
    """Sends plans, readouts and monitors to the workers once, and has them dropped when no request needs them.

    To be used on one event loop. call: (name, *arguments) -> the results of that method of every worker.
    """

    def __init__(self, call: Callable[..., Awaitable[list[object]]]) -> None:
        self._call = call
        self._sent: OrderedDict[str, _Sent] = OrderedDict()

    @asynccontextmanager
    async def held(
        self, plan: SteeringPlan, readings: tuple[Reading, ...], monitors: MonitorSet = NO_MONITORS
    ) -> AsyncIterator[dict[str, str]]:
        """Yields the keys of a plan, of readouts and of monitors while a request uses them, by kind; none for what is empty.

        Raises InternalError where a worker cannot apply them.
        """
        keys: dict[str, str] = {}
        used: list[_Sent] = []
        read = tuple(MonitorReading(one.reading, one.at) for one in monitors.ordered)
        values: dict[str, tuple[object, ...]] = {"readings": readings, "monitors": read}
        contents = {kind: encode(value) for kind, value in values.items() if value}
        try:
            if not plan.empty:
                keys["plan"] = plan_key(plan)
                used.append(
                    self._use(
                        "plan", keys["plan"], partial(encode, replace(plan, vectors={}, warnings=(), prompt_roles=None))
                    )
                )
            for kind, content in contents.items():  # named by the digest of what is sent
                keys[kind] = f"{kind}-{hashlib.sha256(content).hexdigest()}"
                used.append(self._use(kind, keys[kind], lambda content=content: content))  # type: ignore[misc]
            for entry in used:
                await asyncio.shield(entry.done)
            yield keys
        finally:
            for entry in used:
                entry.users -= 1
            unused = [key for key, entry in self._sent.items() if entry.users == 0 and entry.done.done()]
            if dropped := unused[: max(len(unused) - KEPT, 0)]:
                for key in dropped:
                    del self._sent[key]
                await self._call("steering_forget", dropped)

    def _use(self, kind: str, key: str, content: Callable[[], bytes]) -> _Sent:
        entry = self._sent.get(key)
        if entry is None or (entry.done.done() and entry.done.exception() is not None):
            entry = self._sent[key] = _Sent(asyncio.create_task(self._send(kind, key, content())))
        self._sent.move_to_end(key)
        entry.users += 1
        return entry

    async def _send(self, kind: str, key: str, content: bytes) -> None:
        reasons = [reason for reason in await self._call("steering_put", kind, key, content) if reason]
        if reasons:
            raise InternalError(f"the engine cannot apply this steering: {reasons[0]}")


def plan_key(plan: SteeringPlan) -> str:
    """Returns the fingerprint with the scopes of the interventions, and their order and that of thresholds: a report refers to
    them by number, a worker asks each scope for its tokens, and the fingerprint does not know those that change nothing."""
    order = [
        [one.spec.scope.model_dump_json() for one in plan.interventions],
        [[layer, [one.interventions for one in edits]] for layer, edits in plan.layers.items()],
        [[one.vector, one.score, one.layer, one.parameters, one.above, one.bound, one.until, one.at] for one in plan.thresholds],
        plan.reusable,
        plan.phases if plan.needs_phases else None,
    ]  # fmt: skip
    return f"{plan.fingerprint}-{hashlib.sha256(repr(order).encode()).hexdigest()[:16]}"


class TensorContent(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A float32 tensor. values: in row-major order, as this machine stores them."""

    shape: tuple[int, ...]
    values: bytes


def as_bytes(values: Tensor) -> bytes:
    """Returns the float32 values of a tensor."""
    content: bytes = values.detach().float().cpu().contiguous().numpy().tobytes()
    return content


def from_bytes(content: bytes) -> Tensor:
    """Returns float32 values, of which there is at least one, as a vector."""
    return torch.frombuffer(bytearray(content), dtype=torch.float32)


def encode(value: object) -> bytes:
    """Encodes plain types, dataclasses and structs of them. Raises TypeError for other types, tensors not in float32 included."""
    return _ENCODER.encode(value)


def decode(content: bytes, kind: type[T]) -> T:
    """Decodes what `encode` returned for a value of a type. Raises ValueError for anything else."""
    declared: Any = kind
    found: T = _decoder(declared).decode(content)
    return found


@cache
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind, dec_hook=_decoded)


def _encoded(value: object) -> object:
    if isinstance(value, Tensor):
        if value.dtype != torch.float32:
            raise TypeError(f"tensors are sent in float32, got {value.dtype}")
        return TensorContent(tuple(value.shape), as_bytes(value))
    if isinstance(value, InterventionSpec):
        return value.model_dump(mode="json")
    raise TypeError(f"a {type(value).__name__} cannot be sent")


def _decoded(kind: Any, value: Any) -> object:
    """Decodes the types that msgspec does not know. kind: a tensor of a stated shape may be a class of jaxtyping."""
    if kind is InterventionSpec:
        return InterventionSpec.model_validate(value)
    if kind is not Tensor and getattr(kind, "array_type", None) is not Tensor:
        raise ValueError(f"a {kind} cannot be received")
    content = msgspec.convert(value, TensorContent)
    if min(content.shape, default=0) < 0:
        raise ValueError(f"a tensor has no shape {content.shape}")
    count = prod(content.shape)
    if count * FLOAT32_BYTES != len(content.values):
        raise ValueError(f"{len(content.values)} bytes are no float32 tensor of shape {content.shape}")
    return from_bytes(content.values).view(content.shape) if count else torch.empty(content.shape)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_encoded)
