"""ConditionResolver: resolves the conditions of one request into thresholds with tensors, and trees over them."""

from collections.abc import Mapping

from steering.condition_spec import ConditionSpec, Threshold, children_of, condition_kind
from steering.conditions import CONDITIONS
from steering.errors import InvalidRequest
from steering.model.info import ModelInfo
from steering.plan.layers import resolve_layers
from steering.plan.scope import SCOPE_PHASES, Phase
from steering.plan.types import ConditionTree, ResolvedThreshold
from steering.spec import InterventionSpec, Layers
from steering.vectors import ConceptVector


class ConditionResolver:
    """Collects thresholds while interventions are resolved; equal ones are tested once."""

    def __init__(self, found: Mapping[str, ConceptVector], info: ModelInfo) -> None:
        self._found, self._info = found, info
        self._known: dict[Threshold, int] = {}
        self.thresholds: list[ResolvedThreshold] = []

    def tree(self, condition: ConditionSpec) -> ConditionTree:
        """The tree of a condition. Raises InvalidRequest for a layer or a measurement the vector does not have."""
        if isinstance(condition, Threshold):
            if condition not in self._known:
                self._known[condition] = len(self.thresholds)
                self.thresholds.append(self._threshold(condition))
            return ConditionTree("threshold", self._known[condition])
        return ConditionTree(condition_kind(condition), children=tuple(map(self.tree, children_of(condition))))

    def _threshold(self, spec: Threshold) -> ResolvedThreshold:
        vector = self._found[spec.vector]
        wanted: Layers = "recommended" if spec.layer is None else (spec.layer,)
        layer = resolve_layers(wanted, vector, self._info.layer_count)[0]
        entry = vector.at(layer)
        values = {name: getattr(entry, name) for name in CONDITIONS[spec.score].parameters}
        missing = [name for name, value in values.items() if value is None]
        if missing:
            raise InvalidRequest(
                f"condition score {spec.score!r} needs {' and '.join(missing)}, which vector {vector.id} does not have "
                f"at layer {layer} (it was made by method {vector.method!r})",
                param="when",
            )
        bound = spec.above if spec.above is not None else spec.below
        assert bound is not None, "Threshold has exactly one bound"
        return ResolvedThreshold(
            vector=vector.id,
            score=spec.score,
            layer=layer,
            direction=entry.direction,
            parameters=tuple(float(value) for value in values.values()),
            above=spec.above is not None,
            bound=float(bound),
            until=spec.until,
            at=spec.at,
        )

    def check_order(self, item: InterventionSpec, first_layer: int, condition: ConditionTree | None) -> None:
        """Refuses a condition that is read too late for the scope.

        A condition read at a later layer than the action takes effect one token later. Prompt positions are computed
        together, so they cannot wait for it.
        """
        phases = SCOPE_PHASES[item.scope.tokens]
        for leaf in frozenset() if condition is None else condition.leaves():
            threshold = self.thresholds[leaf]
            late = threshold.layer > first_layer
            before_end = Phase.PROMPT in phases and threshold.at == "token"
            if late and (before_end or Phase.GENERATED not in phases):
                raise InvalidRequest(
                    f"the condition reads layer {threshold.layer}, later than layer {first_layer} where the "
                    f"intervention acts. It takes effect one token later, which scope {item.scope.tokens!r} does not "
                    f"allow; use scope 'generated' or a condition layer up to {first_layer}",
                    param="when",
                )
