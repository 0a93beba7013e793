"""Repeats a generation from the record of its answer."""

from contextlib import suppress
from dataclasses import replace

from app.policy.vector_sources import VectorsByName
from app.services.context import Context
from app.services.generation.generate import Generation
from app.services.inputs import sampling_params
from app.services.limits import check_own_steering, check_sampling
from steering.engine.prompts import encode_prompt
from steering.errors import InvalidRequest, ModelNotFound, VectorNotFound
from steering.namespaces import SHARED
from steering.plan.types import SteeringPlan
from steering.schemas.steering import RECORD_FORMAT, Record, RecordedModel, ReplayRequest
from steering.spec import InterventionSpec, SteeringSpec, pinned, vector_names
from steering.spec_base import InlineVector, is_inline
from steering.store.base import VectorSource
from steering.vectors import ConceptVector, VectorId


async def prepare(context: Context, record: ReplayRequest) -> Generation:
    """Returns the same generation again. Raises LimitExceeded for a record beyond the operator's limits, ModelNotFound,
    VectorNotFound or InvalidRequest for what has changed."""
    _check_format(record)
    check_sampling(context.settings, record.sampling, record.n)
    check_own_steering(context.limits, profile=False, listed=bool(record.interventions))
    _check_model(context, record.model)
    engine = context.engine
    plan = await context.resolve(_with_directions(record), await _recorded_vectors(context, record))
    if not _is_same(plan, record):
        raise InvalidRequest(
            "the recorded interventions resolve to another plan now: the policy or the dose guard has changed, or the record "
            "was edited",
            param="fingerprint",
        )
    prompt = await encode_prompt(engine.tokenizer, tuple(record.prompt))
    sampling = sampling_params(record.sampling, record.sampling.max_tokens)
    request = context.request(prompt, sampling, _with_recorded_roles(plan, record))
    executor = engine.stats().executor
    warnings = _format_warnings(record)
    if record.model.executor not in (None, executor):
        warnings += (
            f"recorded with executor {record.model.executor!r}, replayed with {executor!r}: tokens may differ",
        )
    return Generation(context, request, record.n, tokens=True, warnings=warnings)


def _check_format(record: Record) -> None:
    """Raises InvalidRequest for a record of a later format, whose fields may mean something else."""
    if record.format > RECORD_FORMAT:
        raise InvalidRequest(
            f"the record was made by a later version, format {record.format}; this server reads up to {RECORD_FORMAT}",
            param="format",
        )


def _is_same(plan: SteeringPlan, record: Record) -> bool:
    """Whether a record resolves to what it did. The fingerprints of earlier formats cannot be compared, but the policy can."""
    if record.format == RECORD_FORMAT:
        return plan.fingerprint == record.fingerprint
    return plan.spec.interventions[plan.own :] == record.mandatory


def _format_warnings(record: Record) -> tuple[str, ...]:
    """Warns of what a record of an earlier format does not tell, and of steering that has another meaning now."""
    if record.format == RECORD_FORMAT:
        return ()
    found = [
        f"the record has format {record.format}, of an earlier version: whether the dose guard has changed since is not known"
    ]
    at_layer: dict[object, list[str]] = {}
    for item in (*record.interventions, *record.mandatory):
        for layer in item.layers if isinstance(item.layers, tuple) else (item.layers,):
            at_layer.setdefault(layer, []).append(item.operation)
    if any(len(operations) > 1 and set(operations) != {"add"} for operations in at_layer.values()):
        found.append(
            "several interventions act at one layer: each read what the ones before it had left when this was recorded; now "
            "all of them read the same residual, so tokens may differ"
        )
    return tuple(found)


def _with_recorded_roles(plan: SteeringPlan, record: Record) -> SteeringPlan:
    """Returns the plan with the roles of the recorded prompt, which its token ids do not tell. Raises InvalidRequest."""
    if not plan.needs_roles:
        return plan
    if record.prompt_roles is None or len(record.prompt_roles) != len(record.prompt):
        raise InvalidRequest("a scope has roles: 'prompt_roles' needs an entry for each token", param="prompt_roles")
    return replace(plan, prompt_roles=record.prompt_roles)


def _check_model(context: Context, recorded: RecordedModel) -> None:
    info, engine = context.engine.info, context.settings.engine
    if recorded.fingerprint != info.fingerprint:
        raise ModelNotFound(
            f"the record was made with model {recorded.name!r}; the loaded model is {info.name!r}", param="model"
        )
    if (recorded.dtype, recorded.engine) != (info.dtype, engine):
        raise InvalidRequest(
            f"the record was made in {recorded.dtype} by engine {recorded.engine!r}; this server computes in "
            f"{info.dtype} by {engine!r}, where tokens may differ",
            param="model",
        )


def _with_directions(record: ReplayRequest) -> tuple[InterventionSpec, ...]:
    """Returns the interventions with the inline directions that the replay brings. Raises VectorNotFound for one that it does not."""
    given = {one.sha256: one for one in record.directions}
    spec = SteeringSpec(interventions=record.interventions)
    names: dict[str, str] = {}
    for name in vector_names(spec):
        names[name] = given.get(record.vectors.get(name, ""), name) if is_inline(name) else name
        if is_inline(name) and not isinstance(names[name], InlineVector):
            raise VectorNotFound(
                f"the answer was given the direction {name}, which is not stored; bring it again in 'directions'",
                param="directions",
            )
    return pinned(spec, names).interventions


async def _recorded_vectors(context: Context, record: Record) -> VectorSource:
    """Returns the vectors with the recorded digests: those of the caller's namespace, else the shared ones.

    Raises VectorNotFound for a vector that was deleted and created again: its version has other content.
    """
    own = context.store.vectors
    sources: dict[str, VectorSource] = {}
    for name, sha256 in record.vectors.items():
        if is_inline(name):
            continue
        key = VectorId.parse(name, "vectors")
        vector = await own.get(key.name, key.version)
        if vector.sha256 != sha256:
            sources[name] = await _shared_source(context, key, sha256, vector)
    return VectorsByName(sources, own)


async def _shared_source(context: Context, key: VectorId, sha256: str, seen: ConceptVector) -> VectorSource:
    """Returns the store of `shared` where it has the digest: a profile of `shared` means the vectors there."""
    shared = context.state.store.shared.vectors
    if seen.namespace != SHARED:
        with suppress(VectorNotFound):
            if (await shared.get(key.name, key.version)).sha256 == sha256:
                return shared
    raise VectorNotFound(
        f"vector {key} no longer has the recorded digest {sha256[:12]}…; it is now {seen.sha256[:12]}…", param="vectors"
    )
