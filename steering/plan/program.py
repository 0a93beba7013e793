"""From resolved actions to layer programs: what opens a layer is summed once, what follows keeps its order; and digests of it."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from steering.operations import OPERATIONS
from steering.plan.types import (
    SCOPE_PHASES,
    ConditionTree,
    LayerProgram,
    OpeningAdd,
    Phase,
    ResolvedThreshold,
    SteeringPlan,
    Step,
)
from steering.shapes import Float, Tensor


@dataclass(frozen=True, slots=True)
class Action:
    """One intervention at one layer, in the order in which it acts there."""

    layer: int
    step: Step


def weight_index(step: Step) -> int:
    """Which parameter the schedule multiplies; 0 there makes the step the identity."""
    operation = OPERATIONS[step.operation]
    return operation.parameters.index(operation.weighted)


def is_identity(step: Step) -> bool:
    """Strength 0 changes nothing, so it costs nothing and splits no cache."""
    return step.parameters[weight_index(step)] == 0.0


def opens(step: Step) -> bool:
    """Whether a step may join the row that is summed at admission: an add with nothing that varies within a phase."""
    return (
        step.operation == "add"
        and not step.relative
        and step.decision is None
        and step.schedule.kind == "constant"
        and step.scope.start is None
        and step.scope.end is None
    )


def _opening(steps: Sequence[Step]) -> tuple[Float[Tensor, "phase d_model"], tuple[OpeningAdd, ...]]:
    rows = torch.zeros(len(Phase), steps[0].directions.shape[1])
    adds = []
    for step in steps:
        phases = SCOPE_PHASES[step.scope.tokens]
        rows[min(phases) : max(phases) + 1] += (
            step.parameters[0] * step.directions[0]
        )  # a scope's phases are neighbours
        adds.append(OpeningAdd(step.sources[0], abs(step.parameters[0]), phases))
    return rows, tuple(adds)


def _alike(one: Step, other: Step) -> bool:
    """Neighbours that differ in nothing but their directions."""
    return (one.operation, one.parameters, one.relative, one.scope, one.schedule, one.decision) == (
        other.operation,
        other.parameters,
        other.relative,
        other.scope,
        other.schedule,
        other.decision,
    )


def _merge(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Neighbouring removals become one over an orthonormal basis, so that their order does not matter."""
    merged: list[Step] = []
    for step in steps:
        if merged and OPERATIONS[step.operation].merges and _alike(merged[-1], step):
            last = merged[-1]
            basis = torch.linalg.qr(torch.cat([last.directions, step.directions]).T)[0].T.contiguous()
            merged[-1] = replace(last, directions=basis, sources=last.sources + step.sources)
        else:
            merged.append(step)
    return tuple(merged)


def build(actions: Sequence[Action]) -> dict[int, LayerProgram]:
    """One program per layer, from actions in the order written."""
    by_layer: dict[int, list[Step]] = {}
    for action in actions:
        if not is_identity(action.step):
            by_layer.setdefault(action.layer, []).append(action.step)
    programs: dict[int, LayerProgram] = {}
    for layer, steps in sorted(by_layer.items()):
        count = next((i for i, step in enumerate(steps) if not opens(step)), len(steps))
        opening, adds = _opening(steps[:count]) if count else (None, ())
        programs[layer] = LayerProgram(opening, adds, _merge(steps[count:]))
    return programs


def _describe(step: Step, thresholds: Sequence[ResolvedThreshold]) -> list[object]:
    leaves = sorted(step.decision.leaves()) if step.decision else []
    return [
        step.operation,
        _digest(step.directions),
        [repr(value) for value in step.parameters],
        step.relative,
        step.scope.model_dump(),
        step.schedule.model_dump(),
        _tree(step.decision),
        [
            [t.score, t.layer, _digest(t.direction), repr(t.parameters), t.above, t.bound, t.until, t.at]
            for t in (thresholds[leaf] for leaf in leaves)
        ],
    ]


def _tree(decision: ConditionTree | None) -> object:
    if decision is None:
        return None
    if decision.kind == "threshold":
        return decision.threshold
    return [decision.kind, *(_tree(child) for child in decision.children)]


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.to(torch.float32).contiguous().numpy().tobytes()).hexdigest()


def _sha256(description: object) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def fingerprint(programs: Mapping[int, LayerProgram], thresholds: Sequence[ResolvedThreshold], model: str) -> str:
    """Digest of all that a plan does to one model; empty for a plan that does nothing."""
    if not programs:
        return ""
    layers = {
        str(layer): [
            None if program.opening is None else _digest(program.opening),
            [_describe(step, thresholds) for step in program.steps],
        ]
        for layer, program in programs.items()
    }
    return _sha256([model, layers])


def waits_for_prompt(decision: ConditionTree | None, thresholds: Sequence[ResolvedThreshold]) -> bool:
    """Whether a decision is made at the prompt's end, and so cannot act on the positions before it."""
    return decision is not None and any(thresholds[leaf].at == "prompt" for leaf in decision.leaves())


def acts_on_prompt(step: Step, thresholds: Sequence[ResolvedThreshold]) -> bool:
    """Whether a step may act on prompt positions before the last."""
    return Phase.PROMPT in SCOPE_PHASES[step.scope.tokens] and not waits_for_prompt(step.decision, thresholds)


def opens_prompt(program: LayerProgram) -> bool:
    """Whether the opening of a layer has adds for prompt positions before the last."""
    return any(Phase.PROMPT in add.phases for add in program.opening_adds)


def prompt_fingerprint(
    programs: Mapping[int, LayerProgram], thresholds: Sequence[ResolvedThreshold], model: str
) -> tuple[str, bool]:
    """(digest of what acts on prompt positions before the last, whether KV may be shared under it).

    Empty when nothing acts there: such requests share prompt KV with unsteered ones. Windows that count from the
    prompt's end and conditions that carry state from position to position are not shareable.
    """
    layers: dict[str, list[object]] = {}
    reusable = True
    for layer, program in programs.items():
        row = program.opening[Phase.PROMPT] if program.opening is not None and opens_prompt(program) else None
        steps = [step for step in program.steps if acts_on_prompt(step, thresholds)]
        if steps or row is not None:
            layers[str(layer)] = [
                None if row is None else _digest(row),
                [_describe(step, thresholds) for step in steps],
            ]
        for step in steps:
            leaves = step.decision.leaves() if step.decision else frozenset()
            stateful = any(thresholds[leaf].until is not None for leaf in leaves)
            from_end = min(step.scope.start or 0, step.scope.end or 0) < 0
            reusable = reusable and not stateful and not from_end
    return (_sha256([model, layers]) if layers else ""), reusable


def steps_of(plan: SteeringPlan, layer: int) -> tuple[Step, ...]:
    """The steps after the opening at a layer, none where the plan does nothing."""
    program = plan.layers.get(layer)
    return () if program is None else program.steps
