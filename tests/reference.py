"""The slow, obvious steering loop every engine must agree with: one request, a plain hook, no cache, one position at a time.

It reads SteeringSpec and ConceptVectors directly, and shares no code with the resolver, the engine or the operations.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from steering.model.hook_points import BlockOutput
from steering.spec import AllOf, AnyOf, ConditionSpec, InterventionSpec, LayerRange, Not, SteeringSpec, Threshold
from steering.vectors import ConceptVector
from tests.reference_steps import (
    Controllers,
    choose,
    dose_part,
    factor,
    mapped,
    middle,
    named,
    passes,
    probability,
    weight,
)


@dataclass
class Reference:
    """Generates for one spec. `decided[threshold][position]` remembers every decision that was made.

    bound: of the dose guard, summed over the layers; `used[position]` is what the layers so far have used of it.
    spent[position]: |r' - r| / |r|, summed over the layers so far. doses[number, layer]: of an intervention, at each token at which
    it acted in the last pass. mandatory: how many interventions, the last ones, read what the others left, without a bound.
    roles: of the prompt's tokens. norms: typical |r| by layer, for `share_dose`.
    phase_of: (ids of an answer, number of one) -> its phase."""

    model: torch.nn.Module
    blocks: torch.nn.ModuleList
    spec: SteeringSpec
    vectors: Mapping[str, ConceptVector]
    bound: float = math.inf
    prompt_length: int = 0
    roles: Sequence[str | None] = ()
    norms: Sequence[float] = ()
    phase_of: Callable[[Sequence[int], int], str] | None = None
    ids: Sequence[int] = ()
    mandatory: int = 0
    used: dict[int, float] = field(default_factory=dict)
    spent: dict[int, float] = field(default_factory=dict)
    doses: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    decided: dict[Threshold, dict[int, bool]] = field(default_factory=dict)
    prompt_scores: dict[Threshold, dict[int, float]] = field(default_factory=dict)
    last_scores: dict[Threshold, float] = field(default_factory=dict)
    acted: set[int] = field(default_factory=set)
    controllers: Controllers = field(default_factory=Controllers)
    groups: dict[tuple[int, range], list[tuple[int, ...]]] = field(default_factory=dict)

    def generate(self, prompt: Sequence[int], count: int, *, temperature: float = 0.0, seed: int = 0) -> list[int]:
        """`count` token ids after the prompt."""
        self.prompt_length, self.decided, self.prompt_scores = len(prompt), {}, {}
        ids = list(prompt)
        for index in range(count):
            logits = self.logits(ids)[-1]
            ids.append(choose(logits, temperature, seed, index))
        return ids[len(prompt) :]

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """(position, vocab) of one forward pass over everything so far."""
        self.spent, self.used, self.doses = {}, {}, {}
        self.controllers, self.ids = Controllers(), list(ids)
        handles = [block.register_forward_hook(self._hook(layer)) for layer, block in enumerate(self.blocks)]
        try:
            with torch.no_grad():
                logits: torch.Tensor = self.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits
        finally:
            for handle in handles:
                handle.remove()
        return logits[0].float()

    def _hook(self, layer: int) -> Callable[[torch.nn.Module, object, BlockOutput], BlockOutput]:
        def hook(_module: torch.nn.Module, _inputs: object, output: BlockOutput) -> BlockOutput:
            residual = output[0] if isinstance(output, tuple) else output
            flat = residual.reshape(-1, residual.shape[-1]).float()
            steered = torch.stack([self._position(layer, p, r) for p, r in enumerate(flat)])
            steered = steered.to(residual.dtype).reshape(residual.shape)
            return (steered, *output[1:]) if isinstance(output, tuple) else steered

        return hook

    def _position(self, layer: int, position: int, residual: torch.Tensor) -> torch.Tensor:
        for threshold in self._thresholds:
            if self._condition_layer(threshold) == layer:
                self._decide(threshold, position, residual)
        own = len(self.spec.interventions) - self.mandatory
        leaving, held = residual, list[InterventionSpec]()
        for stage in (range(own), range(own, len(self.spec.interventions))):
            arriving, changes = leaving, dict[tuple[int, ...], torch.Tensor]()
            if (layer, stage) not in self.groups:
                self.groups[layer, stage] = self._groups(layer, stage)
            for group in self.groups[layer, stage]:
                item = self.spec.interventions[group[0]]
                weight = self._weight(item, layer, position)
                if weight:
                    self.acted.add(position)
                    held += [item] if item.hold is not None else []
                    members = [self.spec.interventions[index] for index in group]
                    changes[group] = self._apply(members, layer, arriving, weight) - arriving
            if not changes:
                continue
            change = sum(changes.values(), torch.zeros_like(residual))
            share = 1.0 if stage.start else self._bounded(position, change, arriving)
            leaving = arriving + share * change
            for group, part in changes.items():
                for index in group:
                    self.doses.setdefault((index, layer), []).append(share * float(part.norm() / arriving.norm()))
        self.spent.setdefault(position, 0.0)
        if leaving is not residual:
            self.spent[position] += float((leaving - residual).norm() / residual.norm())
        for item in held:
            self.controllers.step(item, layer, self.vectors[item.vector].layers[layer], leaving)
        return leaving

    def _groups(self, layer: int, stage: range) -> list[tuple[int, ...]]:
        """The interventions that act at a layer, by number; equal removals together, wherever they stand."""
        groups: dict[object, tuple[int, ...]] = {}
        for index in stage:
            item = self.spec.interventions[index]
            if layer in self._layers(item) and item.strength != 0.0:
                joins = item.operation == "ablate" and item.target != "middle"
                key = (item.strength, item.scope, item.schedule, item.when) if joins else index
                groups[key] = (*groups.get(key, ()), index)
        return list(groups.values())

    def _bounded(self, position: int, change: torch.Tensor, arriving: torch.Tensor) -> float:
        """The share of the change that the dose guard leaves."""
        dose = float(change.norm() / arriving.norm())
        left = max(self.bound - self.used.get(position, 0.0), 0.0)
        share = 1.0 if dose <= left else left / dose
        self.used[position] = self.used.get(position, 0.0) + share * dose
        return share

    # ---- when ------------------------------------------------------------------------------------------------------

    def _weight(self, item: InterventionSpec, layer: int, position: int) -> float | None:
        last = self.prompt_length - 1
        scope = item.scope
        inside = {
            "all": True,
            "prompt": position in range(self.prompt_length)[slice(scope.start, scope.end)],
            "last": position == last,
            "generated": position >= last + (scope.start or 0) and (scope.end is None or position < last + scope.end),
        }[scope.tokens]
        role = "assistant" if position >= last else next(iter(self.roles[position : position + 1]), None)
        if (
            not inside
            or (scope.phase is not None and self._phase(position) not in scope.phase)
            or not named(scope, self.ids[position], role)
            or (item.when is not None and self._holds(item.when, layer, position) is not True)
        ):
            return None
        if item.when is not None and self._has_prompt_leaf(item.when) and position < last:
            return None
        index = position - last
        if index < 0 or scope.tokens in ("prompt", "last"):
            return 1.0
        return 1.0 if item.schedule.kind == "constant" else weight(item.schedule, index)

    def _phase(self, position: int) -> str:
        if position < self.prompt_length:
            return "prompt"
        assert self.phase_of is not None
        return self.phase_of(self.ids[self.prompt_length :], position - self.prompt_length)

    @cached_property
    def _thresholds(self) -> list[Threshold]:
        found: list[Threshold] = []

        def visit(condition: ConditionSpec) -> None:
            if isinstance(condition, Threshold):
                if condition not in found:
                    found.append(condition)
            elif isinstance(condition, Not):
                visit(condition.not_)
            else:
                for child in condition.all if isinstance(condition, AllOf) else condition.any:
                    visit(child)

        for item in self.spec.interventions:
            if item.when is not None:
                visit(item.when)
        return found

    def _condition_layer(self, threshold: Threshold) -> int:
        vector = self.vectors[threshold.vector]
        return vector.recommended_layers()[0] if threshold.layer is None else threshold.layer % len(self.blocks)

    def _decide(self, threshold: Threshold, position: int, residual: torch.Tensor) -> None:
        memory = self.decided.setdefault(threshold, {})
        last = self.prompt_length - 1
        if threshold.at == "prompt_mean" and (position > last or (position == 0 and last > 0)):
            return
        if position in memory or (threshold.at == "prompt" and position != self.prompt_length - 1):
            return
        entry = self.vectors[threshold.vector].layers[self._condition_layer(threshold)]
        projection = float(residual @ entry.direction)
        score = {
            "projection": lambda: (projection - middle(entry)) / entry.scale,
            "cosine": lambda: projection / float(residual.norm()),
            "probe": lambda: probability(entry, projection),
        }[threshold.score]()
        if threshold.at == "prompt_mean":
            # one forward pass meets all positions in order, so the sum is complete at the last
            seen = self.prompt_scores.setdefault(threshold, {})
            seen[position] = score
            if position != last:
                return
            score = sum(seen.values()) / len(seen)
        self.last_scores[threshold] = score
        memory[position] = passes(threshold, score, before=memory.get(position - 1, False))

    def _holds(self, condition: ConditionSpec, layer: int, position: int) -> bool | None:
        """None: not decided yet, since a threshold is read at a later layer than this."""
        if isinstance(condition, Threshold):
            memory = self.decided.get(condition, {})
            late = self._condition_layer(condition) > layer
            last = self.prompt_length - 1
            if condition.at != "token":
                return memory.get(last) if position >= last + (1 if late else 0) else None
            if late:
                return memory.get(position - 1) if position > last else None
            return memory.get(position)
        if isinstance(condition, Not):
            held = self._holds(condition.not_, layer, position)
            return None if held is None else not held
        decides = isinstance(condition, AnyOf)
        children = condition.any if isinstance(condition, AnyOf) else condition.all
        found = [self._holds(child, layer, position) for child in children]
        if decides in found:
            return decides
        return None if None in found else not decides

    def _has_prompt_leaf(self, condition: ConditionSpec) -> bool:
        if isinstance(condition, Threshold):
            return condition.at != "token"
        if isinstance(condition, Not):
            return self._has_prompt_leaf(condition.not_)
        children = condition.all if isinstance(condition, AllOf) else condition.any
        return any(self._has_prompt_leaf(child) for child in children)

    # ---- what ------------------------------------------------------------------------------------------------------

    def _layers(self, item: InterventionSpec) -> list[int]:
        vector = self.vectors[item.vector]
        if item.layers == "recommended":
            return list(vector.recommended_layers())
        if item.layers == "all":
            return sorted(vector.layers)
        count = len(self.blocks)
        if isinstance(item.layers, LayerRange):
            return list(range(count))[slice(item.layers.from_, item.layers.to)]
        return [layer % count for layer in item.layers]

    def _apply(self, group: list[InterventionSpec], layer: int, r: torch.Tensor, weight: float) -> torch.Tensor:
        item = group[0]
        entry = self.vectors[item.vector].layers[layer]
        d, share = entry.direction, item.strength * weight
        if item.share_dose:
            share *= dose_part(item, self.vectors[item.vector], self.norms, layer, len(self._layers(item)))
        if item.strength_from is not None:
            share *= factor(item.strength_from, self.vectors[item.strength_from.vector].layers[layer], r)
        if item.hold is not None:
            share = self.controllers.strengths.get((item, layer), 0.0)
        unit = {"scale": entry.scale, "raw": 1.0, "relative": float(r.norm())}[item.unit]
        p = float(r @ d)
        if item.operation == "apply":
            return r + share * mapped(entry, r)
        if item.operation == "add":
            return r + share * unit * d
        if item.operation == "ablate":
            directions = torch.stack([self.vectors[g.vector].layers[layer].direction for g in group])
            # projection onto the span by least squares: no basis needed, so none can be wrong
            inside: torch.Tensor = directions.T @ torch.linalg.lstsq(directions.T, r).solution
            kept = middle(entry) * d if item.target == "middle" else 0.0
            return r - share * (inside - kept)
        if item.operation == "clamp":
            offset = middle(entry) if item.unit == "scale" else 0.0
            low = -math.inf if item.low is None else item.low * unit + offset
            high = math.inf if item.high is None else item.high * unit + offset
            return r + share * (min(max(p, low), high) - p) * d
        if item.operation == "rotate":
            norm, across = float(r.norm()), r - p * d
            phi = math.acos(max(-1.0, min(1.0, p / norm)))
            assert item.degrees is not None
            turned = min(max(phi - share * math.radians(item.degrees), 0.0), math.pi)
            return norm * (math.cos(turned) * d + math.sin(turned) * across / float(across.norm()))
        assert item.to is not None
        target = self.vectors[item.to].layers[layer]
        gain = target.scale / entry.scale if item.unit == "scale" else 1.0
        return r + share * p * (gain * target.direction - d)
