"""A record of an answer turned into the same generation again, or into what no longer exists."""

from app.http.dependencies import resolved
from app.services.generate import Generation
from app.services.inputs import check_limit
from app.state import AppState
from steering.engine.api import GenerationRequest, SamplingParams
from steering.errors import InvalidRequest, ModelNotFound, VectorNotFound
from steering.model.info import ModelInfo
from steering.schemas.replay import Record, RecordedModel
from steering.spec import SteeringSpec
from steering.store.base import Store
from steering.vectors import VectorId


async def prepared(state: AppState, record: Record, salt: str) -> Generation:
    """The same generation again. Raises ModelNotFound, VectorNotFound, InvalidRequest, naming what no longer exists."""
    engine, settings = state.engine, state.settings
    check_limit(record.n, settings.max_n, "answers", "n")
    _check_model(record.model, engine.info, settings.engine)
    await _check_vectors(record, state.store)
    plan = await resolved(state, SteeringSpec(interventions=record.interventions))
    if plan.fingerprint != record.fingerprint:
        raise InvalidRequest(
            "the recorded interventions make another plan now: their strengths meet another dose guard, or the record "
            "was changed",
            param="fingerprint",
        )
    sampling = SamplingParams(**record.sampling.model_dump())
    request = GenerationRequest(engine.tokenizer.encode(record.prompt), sampling, plan, cache_salt=salt)
    return Generation(engine, request, record.n, tokens=True, engine_name=settings.engine)


def _check_model(recorded: RecordedModel, info: ModelInfo, engine: str) -> None:
    if recorded.fingerprint != info.fingerprint:
        raise ModelNotFound(
            f"the record was made with model {recorded.name!r}, which is not loaded; loaded is {info.name!r}",
            param="model",
        )
    if (recorded.dtype, recorded.engine) != (info.dtype, engine):
        raise InvalidRequest(
            f"the record was made in {recorded.dtype} by engine {recorded.engine!r}; this server computes in "
            f"{info.dtype} by {engine!r}, where tokens may differ",
            param="model",
        )


async def _check_vectors(record: Record, store: Store) -> None:
    """Versions are immutable, but a name can be deleted and made again."""
    for name, sha256 in record.vectors.items():
        key = VectorId.parse(name, "vectors")
        vector = await store.vectors.get(key.name, key.version)
        if vector.sha256 != sha256:
            raise VectorNotFound(
                f"vector {name} no longer has the recorded digest {sha256[:12]}…; it is now {vector.sha256[:12]}…",
                param="vectors",
            )
