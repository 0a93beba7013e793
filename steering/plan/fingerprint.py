"""Digests of a plan's content: what is equal under one digest computes equal numbers on one model."""

import hashlib
import json
from dataclasses import replace

import torch

from steering.plan.order import acts_on_prompt, adds_to_prompt
from steering.plan.types import ConditionTree, OperationCall, Phase, ResolvedThreshold, SteeringPlan
from steering.shapes import Tensor


def fingerprinted(plan: SteeringPlan, model: str) -> SteeringPlan:
    """Returns a plan with the digests of what it does. model: the fingerprint of the model."""
    digests = Fingerprints(plan, model)
    prompt_fingerprint, reusable = digests.prompt()
    return replace(plan, fingerprint=digests.whole(), prompt_fingerprint=prompt_fingerprint, reusable=reusable)


class Fingerprints:
    """Digests one plan. Thresholds and directions are hashed once, however many interventions refer to them."""

    def __init__(self, plan: SteeringPlan, model: str) -> None:
        self._plan = plan
        self._context = [model, plan.dose_bound]
        self._tests = [_sha256(_threshold(threshold)) for threshold in plan.thresholds]
        self._calls = {
            layer: [(call, self._call(layer, call)) for call in steering.calls]
            for layer, steering in plan.layers.items()
        }

    def whole(self) -> str:
        """Digest of all that the plan does; empty for a plan that does nothing."""
        if self._plan.empty:
            return ""
        content = {
            str(layer): [
                None if steering.static_sum is None else _digest(steering.static_sum),
                [description for _, description in self._calls[layer]],
            ]
            for layer, steering in self._plan.layers.items()
        }
        return _sha256([*self._context, content])

    def prompt(self) -> tuple[str, bool]:
        """(digest of what acts on prompt positions before the last, whether KV may be shared under it).

        Empty when nothing acts there: such requests share prompt KV with unsteered ones. Windows that count from the
        prompt's end, roles, which token ids alone do not tell, and conditions that carry state from position to position
        are not shareable.
        """
        plan = self._plan
        content: dict[str, list[object]] = {}
        # A mean over the prompt needs the residuals of all its positions, which shared KV does not hold.
        reusable = not any(one.until is not None or one.at == "prompt_mean" for one in plan.thresholds)
        for layer, steering in plan.layers.items():
            static = steering.static_sum if adds_to_prompt(plan.interventions, steering) else None
            acting = [
                pair for pair in self._calls[layer] if acts_on_prompt(plan.intervention(pair[0]), plan.thresholds)
            ]
            if acting or static is not None:
                row = None if static is None else _digest(static[Phase.PROMPT])
                content[str(layer)] = [row, [description for _, description in acting]]
            for call, _ in acting:
                scope = plan.intervention(call).spec.scope
                reusable = reusable and min(scope.start or 0, scope.end or 0) >= 0 and scope.roles is None
        return (_sha256([*self._context, content]) if content else ""), reusable

    def _call(self, layer: int, call: OperationCall) -> list[object]:
        one = self._plan.intervention(call)
        scope = one.spec.scope
        return [
            one.spec.operation,
            _digest(call.directions),
            [repr(value) for value in one.parameters[layer]],
            one.relative,
            scope.model_dump(exclude=None if scope.selects else {"token_ids", "roles"}),
            one.spec.schedule.model_dump(),
            self._tree(one.condition),
            *([repr(one.holds[layer])] if one.holds else []),
            self._plan.is_exempt(call),
        ]

    def _tree(self, tree: ConditionTree | None) -> object:
        """The content of a condition, whatever the numbers of its thresholds in this plan."""
        if tree is None:
            return None
        if tree.kind == "threshold":
            return self._tests[tree.threshold]
        return [tree.kind, *(self._tree(child) for child in tree.children)]


def _threshold(one: ResolvedThreshold) -> list[object]:
    direction = _digest(one.direction)
    return [one.score, one.layer, direction, repr(one.parameters), one.above, one.bound, one.until, one.at]


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.to(torch.float32).contiguous().numpy().tobytes()).hexdigest()


def _sha256(description: object) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
