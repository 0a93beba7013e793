"""What the library gives, turned into words on the wire."""

from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring_ascii as quoted
from statistics import fmean
from typing import Any

from steering.engine.api import SteeringReport, TokenEvent, Tokenizer
from steering.model.info import ModelInfo
from steering.plan.types import SteeringPlan
from steering.schemas.base import by_layer
from steering.schemas.flags import RaisedFlag
from steering.schemas.generation import Choice, Token, TokenPiece, TopLogprob, Usage
from steering.schemas.jobs import JobAnswer, JobError, JobProgress
from steering.schemas.profiles import ProfileAnswer
from steering.schemas.replay import Record
from steering.schemas.steering import AppliedIntervention, AppliedSteering
from steering.schemas.system import ModelAnswer
from steering.schemas.vectors import QualityAnswer, RecommendedAnswer, VectorAnswer, VectorExport
from steering.store.base import JobRecord, Profile
from steering.vectors import DEFAULT_STRENGTHS, ConceptVector
from steering.workflows.generate import Answer


def vector_answer(vector: ConceptVector) -> VectorAnswer:
    """A vector without its numbers."""
    return VectorAnswer(**_vector_words(vector))


def vector_export(vector: ConceptVector) -> VectorExport:
    """A vector with its numbers."""
    return VectorExport(**_vector_words(vector), directions=directions(vector))


def directions(vector: ConceptVector, layers: Sequence[int] | None = None) -> dict[str, list[float]]:
    """Unit directions by layer. Raises InvalidRequest for a layer the vector does not have."""
    chosen = sorted(vector.layers) if layers is None else layers
    return {str(layer): vector.at(layer).direction.tolist() for layer in chosen}


def _vector_words(vector: ConceptVector) -> dict[str, Any]:
    strength = DEFAULT_STRENGTHS if vector.recommended is None else vector.recommended.strength
    means = {
        layer: (entry.positive_mean, entry.negative_mean)
        for layer, entry in vector.layers.items()
        if entry.positive_mean is not None and entry.negative_mean is not None
    }
    return {
        "name": vector.name,
        "version": vector.version,
        "id": vector.id,
        "description": vector.description,
        "tags": list(vector.tags),
        "model": vector.model,
        "d_model": vector.d_model,
        "layers": sorted(vector.layers),
        "method": vector.method,
        "scale": by_layer({layer: entry.scale for layer, entry in vector.layers.items()}),
        "means": by_layer(means),
        "sha256": vector.sha256,
        "created_at": vector.created_at,
        "recommended": RecommendedAnswer(layers=list(vector.recommended_layers()), strength=strength),
        "quality": None if vector.quality is None else QualityAnswer.model_validate(vector.quality.to_dict()),
        "provenance": dict(vector.provenance),
    }


def profile_answer(profile: Profile) -> ProfileAnswer:
    """A profile as it is kept."""
    return ProfileAnswer(
        name=profile.name,
        description=profile.description,
        interventions=profile.steering.interventions,
        created_at=profile.created_at,
        updated_at=profile.updated_at,
    )


def job_answer(job: JobRecord) -> JobAnswer:
    """A job as it stands."""
    return JobAnswer(
        id=job.id,
        kind=job.kind,
        status=job.status,
        progress=JobProgress.model_validate(dict(job.progress)),
        result=None if job.result is None else dict(job.result),
        error=None if job.error is None else JobError.model_validate(dict(job.error)),
        created_at=job.created_at,
        updated_at=job.updated_at,
    )


def model_answer(info: ModelInfo) -> ModelAnswer:
    """The loaded model in plain words."""
    return ModelAnswer(
        name=info.name,
        architecture=info.architecture,
        fingerprint=info.fingerprint,
        revision=info.revision,
        d_model=info.d_model,
        layers=info.layer_count,
        vocab_size=info.vocab_size,
        context_length=info.context_length,
        dtype=info.dtype,
        device=info.device,
        parameters=info.parameter_count,
        chat_template=info.chat_template,
        typical_norms=list(info.typical_norms),
    )


def applied_steering(
    plan: SteeringPlan, reports: Sequence[SteeringReport], record: Record | None = None
) -> AppliedSteering:
    """What the plan asked and what the engine measured over all answers: doses are averaged, fired is true for any."""
    applied = []
    for index, one in enumerate(plan.interventions):
        doses = [report.doses[index] for report in reports if index < len(report.doses)]
        fired_at = [r.fired_at[index] for r in reports if index < len(r.fired_at) and r.fired_at[index] is not None]
        applied.append(
            AppliedIntervention(
                vector=one.vector,
                sha256=one.sha256,
                operation=one.spec.operation,
                layers=list(one.layers),
                strength=one.spec.strength,
                unit=one.spec.unit,
                planned_dose=by_layer(one.planned_dose),
                relative_dose=by_layer(_mean_doses(doses)),
                fired=any(report.fired[index] for report in reports if index < len(report.fired)),
                fired_at=min((token for token in fired_at if token is not None), default=None),
            )
        )
    warnings = list(plan.warnings)
    clamped = sum(report.clamped for report in reports)
    if clamped:
        warnings.append(f"the dose guard scaled the change down {clamped} times, counted over tokens and layers")
    return AppliedSteering(
        fingerprint=plan.fingerprint,
        applied=applied,
        relative_dose_total=fmean(report.total for report in reports) if reports else 0.0,
        warnings=warnings,
        record=record,
    )


def _mean_doses(doses: Sequence[Mapping[int, float]]) -> dict[int, float]:
    if len(doses) == 1:
        return dict(doses[0])
    layers = {layer for one in doses for layer in one}
    return {layer: fmean(one[layer] for one in doses if layer in one) for layer in layers}


def token_words(event: TokenEvent, tokenizer: Tokenizer) -> dict[str, Any]:
    """The measurements of one token; keys that were not asked for are absent."""
    words: dict[str, Any] = {"text": event.text}
    if event.logprob is not None:
        words["logprob"] = event.logprob
    if event.top_logprobs:
        words["top_logprobs"] = [
            TopLogprob(id=token, text=tokenizer.token_text(token), logprob=logprob)
            for token, logprob in event.top_logprobs
        ]
    if event.readout:
        words["readout"] = dict(event.readout)
    return words


def token_piece(
    event: TokenEvent,
    choice: int,
    tokenizer: Tokenizer,
    arm: str | None = None,
    flags: list[int] | None = None,
) -> TokenPiece:
    """The data of one `token` event."""
    token_id = event.token_id if event.token_id >= 0 else None
    words = token_words(event, tokenizer)
    return TokenPiece(arm=arm, choice=choice, index=event.index, id=token_id, flags=flags, **words)


def token_data(event: TokenEvent, choice: int, tokenizer: Tokenizer, flags: list[int] | None) -> TokenPiece | bytes:
    """What a stream says of a token: its piece. Of a token without measurements, as most are, the same already written,
    since this is done for every token of every stream."""
    if flags is None and event.logprob is None and not event.readout and event.token_id >= 0:
        text = quoted(event.text)
        return f'{{"choice":{choice},"index":{event.index},"id":{event.token_id},"text":{text}}}'.encode()
    return token_piece(event, choice, tokenizer, flags=flags)


def choice_answer(
    index: int,
    answer: Answer,
    tokenizer: Tokenizer,
    *,
    tokens: bool,
    flags: list[RaisedFlag] | None = None,
) -> Choice:
    """One answer, with its tokens if they were asked for."""
    listed = [Token(id=event.token_id, **token_words(event, tokenizer)) for event in answer.events] if tokens else None
    return Choice(
        index=index,
        text=answer.text,
        finish_reason=answer.finish.reason,
        tokens=listed,
        flags=flags,
    )


def usage_of(answers: Sequence[Answer]) -> Usage:
    """Tokens of all answers; the prompt is counted once."""
    prompt = answers[0].finish.prompt_tokens
    completion = sum(answer.finish.completion_tokens for answer in answers)
    cached = answers[0].finish.cached_tokens
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        cached_tokens=cached,
    )
