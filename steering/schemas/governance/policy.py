"""The policy as an operator writes it, and the response models of /v1/policy and /v1/monitors."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from steering.schemas.base import Answer, Measured, Number, Request
from steering.spec import MAX_MANDATORY, InterventionSpec, SteeringSpec, pinned, vector_names
from steering.spec_base import LayerIndex

MAX_MONITORS = 32
MonitorName: TypeAlias = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
"""Names are labels of metrics and parts of URLs, like names of vectors."""
StoredName: TypeAlias = Annotated[str, Field(max_length=128)]
"""The name of a stored vector: a policy takes no inline direction."""
OwnSteering: TypeAlias = Literal["any", "profiles", "none"]


class MonitorSpec(Request):
    """A standing test on the score of a vector, in natural scales.

    at: `prompt` is its last position, `generated` each position that predicts a token, as for readouts. layer: absent, the
    middle of the vector's recommended layers. action: `count` only counts, `flag` also reports in the response, `stop` also
    ends the answer.
    """

    name: MonitorName
    vector: StoredName
    above: Number | None = None
    below: Number | None = None
    at: Literal["prompt", "generated"] = "generated"
    layer: LayerIndex | None = None
    action: Literal["count", "flag", "stop"] = "count"

    @model_validator(mode="after")
    def _one_bound(self) -> "MonitorSpec":
        if (self.above is None) == (self.below is None):
            raise ValueError("a monitor needs exactly one of 'above' and 'below'")
        return self


class SteeringLimits(Request):
    """What requests may steer with. None: no limit.

    max_relative_dose: summed over the layers; larger doses are refused, or scaled down where they show only at run time.
    own_steering: `any`, `profiles` (requests may only name profiles) or `none`. vectors: the only ones to steer with.
    """

    max_relative_dose: Annotated[Number, Field(gt=0, le=1000)] | None = None
    own_steering: OwnSteering = "any"
    vectors: Annotated[tuple[StoredName, ...], Field(max_length=256, fail_fast=True)] | None = None


class PolicySpec(Request):
    """What holds for all traffic. mandatory: act after the interventions of a request, in this order."""

    mandatory: Annotated[tuple[InterventionSpec, ...], Field(max_length=MAX_MANDATORY, fail_fast=True)] = ()
    monitors: Annotated[tuple[MonitorSpec, ...], Field(max_length=MAX_MONITORS, fail_fast=True)] = ()
    limits: SteeringLimits = SteeringLimits()

    @model_validator(mode="after")
    def _unique_names(self) -> "PolicySpec":
        names = [one.name for one in self.monitors]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"names of monitors must be unique; given twice: {', '.join(twice)}")
        return self

    @property
    def steering(self) -> SteeringSpec:
        """The mandatory interventions."""
        return SteeringSpec(interventions=self.mandatory)

    def vector_names(self) -> Iterator[str]:
        """Every vector that it needs, as written; a name may come twice."""
        yield from vector_names(self.steering)
        yield from (one.vector for one in self.monitors)

    def pinned(self, names: Mapping[str, str]) -> "PolicySpec":
        """Returns the policy with other names for its vectors."""
        return self.model_copy(
            update={
                "mandatory": pinned(self.steering, names).interventions,
                "monitors": tuple(one.model_copy(update={"vector": names[one.vector]}) for one in self.monitors),
            }
        )


NO_POLICY = PolicySpec()


class PolicyAnswer(Answer):
    """The policy, with every vector pinned to its version. Without one everything is empty."""

    mandatory: tuple[InterventionSpec, ...]
    monitors: tuple[MonitorSpec, ...]
    limits: SteeringLimits


class MonitorAnswer(Answer):
    """A monitor, and what this server process measured since it was set.

    scores: how many were measured; raised: those beyond the bound; answers: answers with at least one such score. mean,
    lowest, highest: of the scores, null before the first.
    """

    name: str
    vector: str
    layer: int
    above: float | None = None
    below: float | None = None
    at: Literal["prompt", "generated"]
    action: Literal["count", "flag", "stop"]
    scores: int
    raised: int
    answers: int
    mean: Measured | None = None
    lowest: Measured | None = None
    highest: Measured | None = None


class DistributionAnswer(Answer):
    """How often scores fell into each bucket. counts[i]: above edges[i - 1] and up to edges[i]; the last: above all edges."""

    edges: list[float]
    counts: list[int]


class RaiseAnswer(Answer):
    """The first raise in one answer. token: its index, null for a prompt."""

    request_id: str
    score: Measured
    token: int | None
    at: datetime


class HourAnswer(Answer):
    """The scores of one hour."""

    start: datetime
    scores: int
    raised: int
    mean: Measured


class MonitorDetail(MonitorAnswer):
    """A monitor with its scores. latest: the latest raises, newest first. hours: oldest first, so that drift can be seen."""

    distribution: DistributionAnswer
    latest: list[RaiseAnswer]
    hours: list[HourAnswer]


class MonitorList(Answer):
    """The monitors of the policy, in its order."""

    data: list[MonitorAnswer]
    next_cursor: None = None
