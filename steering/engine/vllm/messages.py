"""What the server's process and vLLM's worker processes send each other about a request.

A request names its plan by a key; the plan itself was sent before, once. The worker answers over a socket of its own,
since vLLM's outputs have no field for it: a TokenMessage per generated token, and a ReportMessage when the request has
left the worker. Every message names its request by the key that the server chose.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec

from steering.engine.readings import Reading
from steering.plan.holds import HeldReadout
from steering.plan.types import Phase
from steering.shapes import Tensor

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
        window = self.capture
        capture = window and [list(window.layers), window.start, window.end, window.reduce, window.logits, window.first]
        return {
            "key": self.key,
            "plan": self.plan,
            "readings": self.readings,
            "monitors": self.monitors,
            "prompt_length": self.prompt_length,
            "fingerprint": self.fingerprint,
            "prompt_fingerprint": self.prompt_fingerprint,
            "capture": capture,
        }

    @classmethod
    def unpacked(cls, values: Mapping[str, Any]) -> "RequestSteering":
        """Reads what `packed` returned."""
        capture = values["capture"]
        window = None if capture is None else CaptureWindow(tuple(capture[0]), *capture[1:])
        return cls(**{**values, "capture": window})


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


PhaseSums: TypeAlias = tuple[int, int, Phase, float, float, int]
"""(layer, source, phase, dose, tokens, fired_at) of a DoseLedger."""


class ReportMessage(msgspec.Struct, frozen=True, eq=False, tag="report", forbid_unknown_fields=True):
    """The last message about a request. scores: the last score of each threshold, None where this stage has not decided it.

    held: of each intervention, what its controllers did, by layer.
    activations: layer -> (token, d_model) of a capture. logits: (position, vocab) where they were asked for.
    """

    key: str
    sums: tuple[PhaseSums, ...] = ()
    scores: tuple[float | None, ...] = ()
    held: tuple[Mapping[int, HeldReadout], ...] = ()
    activations: Mapping[int, Tensor] = {}
    logits: Tensor | None = None


class FailureMessage(msgspec.Struct, frozen=True, eq=False, tag="failure", forbid_unknown_fields=True):
    """Steering of this request failed in the worker; the server ends the request. reason: for the log."""

    key: str
    reason: str


Message: TypeAlias = TokenMessage | ReportMessage | FailureMessage
