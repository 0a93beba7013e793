"""Puts the mandatory interventions of a policy behind a plan that was resolved without them, or with those of another policy."""

from collections.abc import Sequence
from dataclasses import replace

from steering.plan.fingerprint import fingerprinted
from steering.plan.types import ConditionTree, Intervention, SteeringPlan


def carries(plan: SteeringPlan, policy: SteeringPlan) -> bool:
    """Whether a plan ends with exactly the interventions of a policy. policy: a plan of mandatory interventions alone."""
    return _content(plan.interventions[plan.own :]) == _content(policy.interventions)


def under(plan: SteeringPlan, policy: SteeringPlan, model: str) -> SteeringPlan:
    """Returns a plan whose own interventions are followed by those of a policy. model: the fingerprint of the model."""
    if not plan.own:
        return replace(policy, prompt_roles=plan.prompt_roles)
    first = len(plan.thresholds)
    moved = [replace(one, condition=_moved(one.condition, first)) for one in policy.interventions]
    own = {layer: [one for one in edits if not one.mandatory] for layer, edits in plan.layers.items()}
    added = {
        layer: [replace(one, interventions=tuple(index + plan.own for index in one.interventions)) for one in edits]
        for layer, edits in policy.layers.items()
    }
    layers = {layer: (*own.get(layer, ()), *added.get(layer, ())) for layer in sorted({*own, *added})}
    found = replace(
        plan,
        interventions=(*plan.interventions[: plan.own], *moved),
        layers={layer: edits for layer, edits in layers.items() if edits},
        thresholds=(*plan.thresholds, *policy.thresholds),
        mandatory=len(moved),
    )
    return fingerprinted(found, model)


def _content(interventions: Sequence[Intervention]) -> list[tuple[object, str]]:
    return [(one.spec, one.sha256) for one in interventions]


def _moved(tree: ConditionTree | None, first: int) -> ConditionTree | None:
    """Returns a condition whose thresholds have moved to index `first` and after it."""
    if tree is None:
        return None
    threshold = tree.threshold + first if tree.kind == "threshold" else tree.threshold
    children = tuple(child for one in tree.children if (child := _moved(one, first)) is not None)
    return replace(tree, threshold=threshold, children=children)
