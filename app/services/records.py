"""record_of: everything the answers of a request depend on, in the words of the wire."""

from steering.engine.api import SamplingParams
from steering.model.info import ModelInfo
from steering.plan.types import SteeringPlan
from steering.schemas.replay import Record, RecordedModel, RecordedSampling


def record_of(
    info: ModelInfo, engine: str, prompt: tuple[int, ...], sampling: SamplingParams, plan: SteeringPlan, n: int
) -> Record:
    """Everything the answers of a request depend on."""
    return Record(
        prompt=prompt,
        sampling=RecordedSampling(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            stop=sampling.stop,
            seed=sampling.seed,
        ),
        n=n,
        interventions=plan.spec.interventions,
        vectors=dict(plan.vectors),
        fingerprint=plan.fingerprint,
        model=RecordedModel(name=info.name, fingerprint=info.fingerprint, dtype=info.dtype, engine=engine),
    )
