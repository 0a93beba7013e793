"""What the server's process and vLLM's worker processes send each other about a request, and how it is encoded.

A request names its plan by a key; the plan itself was sent before, once. The worker answers over a socket of its own,
since vLLM's outputs have no field for it: a TokenMessage per generated token, and a ReportMessage when the request has
left the worker. Every message names its request by the key that the server chose.

Messages, plans and readings are encoded in MessagePack and decoded strictly as a declared type: nothing that is decoded runs
code. Tensors travel as their shape and their float32 values, specs as what a caller writes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec
import torch

from steering.injection.readings import Reading
from steering.plan.types import HeldReadout
from steering.shapes import Tensor
from steering.spec import InterventionSpec

T = TypeVar("T")
FLOAT32_BYTES = 4
EXTRA_ARGS = "steering"
"""The key of a request's steering in `SamplingParams.extra_args` of vLLM."""


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

    plan, readings, monitors: keys of what was sent before, empty for none. prompt_length: positions of the prompt; a capture may
    state fewer than it has tokens. fingerprint, prompt_fingerprint: for the hashes of the prefix cache.
    """

    key: str
    plan: str = ""
    readings: str = ""
    prompt_length: int = 0
    fingerprint: str = ""
    prompt_fingerprint: str = ""
    capture: CaptureWindow | None = None
    monitors: str = ""

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
    """What one pipeline stage knows of one generated token. index: of the token. finite: False where the last residual
    was not finite, so that the token means nothing. scores: of the monitors that read a layer of this stage, by their place in
    `MonitorSet.read_at`."""

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
    """The sums of one request at the layers of one stage; see `injection.dose.Doses`. Tensors are in float32."""

    layers: tuple[int, ...]
    doses: Tensor
    totals: Tensor
    fired: tuple[int, ...]


class ReportMessage(msgspec.Struct, frozen=True, eq=False, tag="report", forbid_unknown_fields=True):
    """The last message about a request. scores: the last score of each threshold, None where this stage has not decided it.

    held: of each intervention, what its controllers did, by layer.
    activations: layer -> (token, d_model) of a capture. logits: (position, vocab) where they were asked for.
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


class TensorContent(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A float32 tensor. values: in row-major order, as this machine stores them."""

    shape: tuple[int, ...]
    values: bytes


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
        return TensorContent(tuple(value.shape), value.detach().cpu().contiguous().numpy().tobytes())
    if isinstance(value, InterventionSpec):
        return value.model_dump(mode="json")
    raise TypeError(f"a {type(value).__name__} cannot be sent")


def _decoded(kind: Any, value: Any) -> object:
    """Decodes the types that msgspec does not know. kind: a tensor of a stated shape may be a class of jaxtyping."""
    if kind is InterventionSpec:
        return InterventionSpec.model_validate(value)
    if kind is Tensor or getattr(kind, "array_type", None) is Tensor:
        return _tensor(msgspec.convert(value, TensorContent))
    raise ValueError(f"a {kind} cannot be received")


def _tensor(content: TensorContent) -> Tensor:
    if min(content.shape, default=0) < 0:
        raise ValueError(f"a tensor has no shape {content.shape}")
    count = prod(content.shape)
    if count * FLOAT32_BYTES != len(content.values):
        raise ValueError(f"{len(content.values)} bytes are no float32 tensor of shape {content.shape}")
    if not count:
        return torch.empty(content.shape)
    return torch.frombuffer(bytearray(content.values), dtype=torch.float32).view(content.shape)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_encoded)
