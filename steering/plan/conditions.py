"""ConditionResolver: the conditions of one request become thresholds with tensors, and decisions over them."""

from collections.abc import Mapping

from steering.conditions import CONDITIONS
from steering.errors import InvalidRequest
from steering.model.info import ModelInfo
from steering.plan.layers import resolve_layers
from steering.plan.types import SCOPE_PHASES, ConditionTree, Phase, ResolvedThreshold
from steering.spec import AllOf, AnyOf, ConditionSpec, InterventionSpec, Layers, Not, Threshold
from steering.vectors import ConceptVector


class ConditionResolver:
    """Collects thresholds while interventions are resolved; equal ones are tested once."""

    def __init__(self, found: Mapping[str, ConceptVector], info: ModelInfo) -> None:
        self._found, self._info = found, info
        self._known: dict[Threshold, int] = {}
        self.thresholds: list[ResolvedThreshold] = []

    def decision(self, condition: ConditionSpec) -> ConditionTree:
        """The tree of a condition. Raises InvalidRequest for a layer or a probe the vector does not have."""
        match condition:
            case Threshold():
                return ConditionTree("threshold", self._threshold(condition))
            case AllOf():
                return ConditionTree("all", children=tuple(self.decision(child) for child in condition.all))
            case AnyOf():
                return ConditionTree("any", children=tuple(self.decision(child) for child in condition.any))
            case Not():
                return ConditionTree("not", children=(self.decision(condition.not_),))

    def _threshold(self, spec: Threshold) -> int:
        if spec in self._known:
            return self._known[spec]
        vector = self._found[spec.vector]
        wanted: Layers = "recommended" if spec.layer is None else (spec.layer,)
        layer = resolve_layers(wanted, vector, self._info.layer_count)[0]
        entry = vector.at(layer)
        names = CONDITIONS[spec.score].parameters
        values = [getattr(entry, name) for name in names]
        if None in values:
            raise InvalidRequest(
                f"vector {vector.id} carries no probe; condition score {spec.score!r} needs one", param="when"
            )
        bound = spec.above if spec.above is not None else spec.below
        assert bound is not None, "Threshold has exactly one bound"
        self.thresholds.append(
            ResolvedThreshold(
                vector=vector.id,
                score=spec.score,
                layer=layer,
                direction=entry.direction,
                parameters=tuple(float(value) for value in values),
                above=spec.above is not None,
                bound=float(bound),
                until=spec.until,
                at=spec.at,
            )
        )
        self._known[spec] = len(self.thresholds) - 1
        return self._known[spec]

    def check_order(self, item: InterventionSpec, first_layer: int, decision: ConditionTree | None) -> None:
        """A condition read at a later layer is heard of one token later, which prompt positions cannot wait for."""
        if decision is None:
            return
        for leaf in decision.leaves():
            threshold = self.thresholds[leaf]
            late = threshold.layer > first_layer
            before_end = Phase.PROMPT in SCOPE_PHASES[item.scope.tokens] and threshold.at == "token"
            only_prompt = Phase.GENERATED not in SCOPE_PHASES[item.scope.tokens]
            if late and (before_end or only_prompt):
                raise InvalidRequest(
                    f"the condition reads layer {threshold.layer}, after layer {first_layer} where it is to act: it is "
                    f"heard of one token later, so scope {item.scope.tokens!r} cannot obey it; use scope 'generated' "
                    f"or a condition layer up to {first_layer}",
                    param="when",
                )
