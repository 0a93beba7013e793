"""What a request may steer with (the limits of the operator, the policy and its key), and where the vectors of its names are looked up."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from app.core.errors import InsufficientScope
from app.core.settings import Settings
from steering.errors import InvalidRequest
from steering.model.info import ModelInfo
from steering.namespaces import SHARED
from steering.plan.resolve import check_model
from steering.plan.types import DoseGuard
from steering.schemas.governance import KeyLimitsFields, OwnSteering, SteeringLimits
from steering.spec import InterventionSpec, SteeringSpec, is_inline, vector_names
from steering.vectors import ConceptVector, VectorId, VectorSource

_NARROWER = ("any", "profiles", "none")


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What one request may steer with.
    vectors: the only vectors that its key allows.
    shared_vectors: the only vectors that the policy allows, which are vectors of `shared`."""

    max_relative_dose: float | None = None
    own_steering: OwnSteering = "any"
    vectors: tuple[str, ...] | None = None
    shared_vectors: tuple[str, ...] | None = None

    @classmethod
    def of(cls, policy: SteeringLimits, key: KeyLimitsFields) -> "RequestLimits":
        """Returns the narrower limit of each kind. A key never widens what the policy allows."""
        doses = [dose for dose in (policy.max_relative_dose, key.max_relative_dose) if dose is not None]
        own = max(policy.own_steering, key.own_steering, key=_NARROWER.index)
        return cls(min(doses, default=None), own, key.vectors, policy.vectors)

    def may_have(self, name: str) -> bool:
        """Whether a vector of this name may be among those allowed."""
        return all(name in {entry.partition("@")[0] for entry in names} for names in self._lists)

    @property
    def _lists(self) -> list[tuple[str, ...]]:
        return [names for names in (self.vectors, self.shared_vectors) if names is not None]

    def check_own_steering(self, *, profile: bool = False, listed: bool = True) -> None:
        """Raises InsufficientScope for a profile or listed interventions that are not allowed. `[]` (no steering) always is."""
        if listed and self.own_steering != "any":
            raise InsufficientScope("this key may not list interventions of its own", param="steering")
        if profile and self.own_steering == "none":
            raise InsufficientScope("this key may not choose its steering", param="steering")

    def check_spec(self, spec: SteeringSpec) -> None:
        """Raises InsufficientScope as `check_names`, and for a `head`, which no list of vectors can name."""
        if self._lists and any(item.head is not None for item in spec.interventions):
            raise InsufficientScope("this key may steer with listed vectors only, not with a 'head'", param="steering")
        self.check_names(vector_names(spec))

    def check_names(self, names: Iterable[str]) -> None:
        """Raises InsufficientScope for inline directions, and for a name that no allowed vector has."""
        if not self._lists:
            return
        for name in names:
            if is_inline(name):
                raise InsufficientScope("this key may not steer with directions of its own", param="steering")
            if not self.may_have(name.partition("@")[0]):
                raise InsufficientScope(f"this key may not steer with vector {name[:80]!r}", param="steering")

    def check_vector(self, vector: ConceptVector) -> None:
        """Raises InsufficientScope for a vector that is not allowed."""
        own, shared = self.vectors, self.shared_vectors
        names = {vector.name, vector.id}
        if (own is not None and not names & set(own)) or (
            shared is not None and not (names & set(shared) and vector.namespace == SHARED)
        ):
            where = f"{vector.id!r} of namespace {vector.namespace!r}"
            raise InsufficientScope(f"this key may not steer with vector {where}", param="steering")

    def check_new(self, name: str, namespace: str, param: str | None = None) -> None:
        """Raises InsufficientScope for a version that is yet to be made unless its name is listed without a version."""
        elsewhere = self.shared_vectors is not None and namespace != SHARED
        if elsewhere or any(name not in names for names in self._lists):
            where = f"{name[:80]!r} of namespace {namespace!r}"
            raise InsufficientScope(f"this key may not steer with a new version of {where}", param=param)

    def guard(self, settings: Settings, action: Literal["clamp", "refuse"] = "refuse") -> DoseGuard:
        """Returns the operator's dose guard, or that of the policy or the key, which is always enforced; the operator's warning stays."""
        guard, limit = DoseGuard(settings.dose_bound, settings.dose_action), self.max_relative_dose
        if limit is None or (guard.run_time_bound is not None and guard.bound <= limit):
            return guard
        return DoseGuard(limit, action, guard.bound if guard.action == "warn" else None)


@dataclass(frozen=True, slots=True)
class AllowedVectors:
    """A VectorSource that returns what a request may steer with, whatever its names stand for."""

    source: VectorSource
    limits: RequestLimits

    async def get(self, name: str, version: int | None = None) -> ConceptVector:
        """See VectorSource.get. Raises InsufficientScope."""
        vector = await self.source.get(name, version)
        self.limits.check_vector(vector)
        return vector


async def find_vectors(names: Iterable[str], store: VectorSource, info: ModelInfo) -> dict[str, ConceptVector]:
    """Returns vectors of the loaded model by the names as written. Raises VectorNotFound, VectorModelMismatch."""
    found = {}
    for name in dict.fromkeys(names):
        key = VectorId.parse(name)
        found[name] = await store.get(key.name, key.version)
        check_model(found[name], info)
    return found


def storable(interventions: Sequence[InterventionSpec], param: str = "interventions") -> SteeringSpec:
    """Returns steering that is to be stored. Raises InvalidRequest for an inline direction in it. param: its field in the request."""
    spec = SteeringSpec(interventions=tuple(interventions))
    if any(map(is_inline, vector_names(spec))):
        raise InvalidRequest(
            "an inline direction is for one request and is not stored; register it (POST /v1/vectors) and give its name",
            param=param,
        )
    return spec
