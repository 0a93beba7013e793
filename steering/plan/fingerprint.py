"""Digests of a plan's content: what is equal under one digest computes equal numbers on one model."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

import torch

from steering.plan.scope import acts_on_prompt, counts_from_prompt_end
from steering.plan.types import ConditionTree, Intervention, ResolvedThreshold, SteeringPlan
from steering.shapes import Tensor


class EditKeys:
    """Digests the edits of one plan. Thresholds are hashed once, however many interventions refer to them."""

    def __init__(self, thresholds: Sequence[ResolvedThreshold]) -> None:
        self._thresholds = thresholds
        self._tests = [_sha256(_threshold(threshold)) for threshold in thresholds]

    def of(
        self, owner: Intervention, layer: int, tensors: Sequence[Tensor], kinds: tuple[int, ...], *, mandatory: bool
    ) -> tuple[str, str]:
        """Returns the key and the prompt key of edits at a layer. owner: the intervention that says when they act."""
        scope, schedule, tree = owner.spec.scope, owner.spec.schedule, self._tree(owner.condition)
        chosen = [scope.token_ids, scope.roles] if scope.selects else []
        change = [[digest(values) for values in tensors], kinds, mandatory, chosen, tree]
        window = [scope.start or 0, scope.end]
        key = _sha256([change, scope.tokens, window, schedule.model_dump(), repr(owner.holds.get(layer))])
        # `all` is a window of `prompt` there, and no schedule has begun
        return key, _sha256([change, window]) if acts_on_prompt(owner, self._thresholds) else ""

    def _tree(self, tree: ConditionTree | None) -> object:
        """The content of a condition, whatever the numbers of its thresholds in this plan."""
        if tree is None:
            return None
        if tree.kind == "threshold":
            return self._tests[tree.threshold]
        return [tree.kind, *(self._tree(child) for child in tree.children)]


def fingerprinted(plan: SteeringPlan, model: str) -> SteeringPlan:
    """Returns a plan with the digests of what it does, empty for a plan that does nothing. model: the fingerprint of the model."""
    whole = _of_layers({layer: [one.key for one in edits] for layer, edits in plan.layers.items()}, plan, model)
    of_prompt, reusable = _of_prompt(plan, model)
    return replace(plan, fingerprint=whole, prompt_fingerprint=of_prompt, reusable=reusable)


def _of_prompt(plan: SteeringPlan, model: str) -> tuple[str, bool]:
    """(digest of what acts on prompt positions before the last, whether KV may be shared under it).

    Empty when nothing acts there: such requests share prompt KV with unsteered ones. Windows that count from the prompt's
    end, roles, which token ids alone do not tell, and conditions that carry state from position to position are not
    shareable. A mean over the prompt needs the residuals of all its positions, which shared KV does not hold.
    """
    reusable = not any(one.until is not None or one.at == "prompt_mean" for one in plan.thresholds)
    content: dict[int, list[str]] = {}
    for layer, edits in plan.layers.items():
        for one in edits:
            if one.prompt_key:
                content.setdefault(layer, []).append(one.prompt_key)
                reusable = reusable and not counts_from_prompt_end(plan.interventions[one.owner].spec.scope)
    return _of_layers(content, plan, model), reusable


def digest(values: Tensor) -> str:
    """Returns the digest of a tensor's float32 values."""
    return hashlib.sha256(values.to(torch.float32).contiguous().numpy().tobytes()).hexdigest()


def _of_layers(content: dict[int, list[str]], plan: SteeringPlan, model: str) -> str:
    return _sha256([model, plan.dose_bound, sorted(content.items())]) if content else ""


def _threshold(one: ResolvedThreshold) -> list[object]:
    direction = digest(one.direction)
    return [one.score, one.layer, direction, repr(one.parameters), one.above, one.bound, one.until, one.at]


def _sha256(description: object) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
