"""From a sequence's sums to its SteeringReport: what was really done, per intervention."""

from steering.engine.api import SteeringReport
from steering.engine.transformers.sequence import NEVER, OPENING, Sequence
from steering.plan.types import Phase


def report(sequence: Sequence) -> SteeringReport:
    """Measured relative doses by layer, and whether and when each intervention acted."""
    count = len(sequence.plan.interventions)
    doses: list[dict[int, float]] = [{} for _ in range(count)]
    first: list[int] = [NEVER] * count
    for layer, program in sequence.plan.layers.items():
        inverse = list(sequence.opening_inverse.get(layer, (0.0,) * len(Phase)))
        if (layer, OPENING) in sequence.steps:  # what was measured by the request that computed a lent prompt
            inverse[Phase.PROMPT] += sequence.steps[layer, OPENING].dose
        for add in program.opening_adds:
            met = sum(sequence.phase_tokens[phase] for phase in add.phases)
            if met:
                doses[add.source][layer] = add.amount * sum(inverse[phase] for phase in add.phases) / met
            first[add.source] = min(first[add.source], _first_of(sequence, add.phases))
        for stage, step in enumerate(program.steps):
            sums = sequence.steps.get((layer, stage))
            if sums is None:
                continue
            for source in step.sources:
                if sums.tokens:
                    doses[source][layer] = sums.dose / sums.tokens
                first[source] = min(first[source], sums.fired_at)
    return SteeringReport(
        doses=tuple(doses),
        fired=tuple(at != NEVER for at in first),
        fired_at=tuple(None if at == NEVER else at for at in first),
    )


def _first_of(sequence: Sequence, phases: frozenset[Phase]) -> int:
    """Index of the first token an unconditional add acted on: -1 for the prompt, 0 for its last position."""
    before = sequence.prompt_length > 1 and Phase.PROMPT in phases
    return -1 if before else 0 if Phase.LAST in phases else 1
