"""POST /v1/vectors/transfer: carries a direction of the second model to the loaded one."""

from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import torch
from fastapi import APIRouter, Query
from pydantic_core import to_jsonable_python
from starlette.responses import Response

from app.api.context import AdmittedDep, Context
from app.api.evaluations import check_second_model, opened_second_model
from app.api.jobs import Work, job_options, respond
from app.api.prompts import check_activations, encode_prompts, pair_set, pair_text, tokenize
from app.api.vectors import (
    vector_answer,
)
from app.core.admission import check_limit
from app.core.errors import InsufficientScope
from app.core.requests import UploadRoute
from app.core.settings import Settings
from steering.engine.api import Engine, SamplingParams
from steering.errors import DoseExceeded
from steering.lab import transfer as workflow
from steering.lab.transfer import PART, ROWS, TEMPERATURE, EffectRequest, effect, effect_answers
from steering.lab.transfer import transfer as run_transfer
from steering.lab.trials import evaluation_prompts
from steering.namespaces import SHARED
from steering.plan.layers import check_model
from steering.schemas.base import WaitQuery
from steering.schemas.extraction import TransferAnswer, TransferRequest
from steering.threads import run_in_thread
from steering.workflows.extract import tried_layers
from steering.workflows.generate import Progress
from steering.workflows.texts import capture_prompts, default_position

router = APIRouter(route_class=UploadRoute, tags=["vectors"])


@router.post("/v1/vectors/transfer", **job_options(201, TransferAnswer, "the vector and its loss"))
async def transfer(body: TransferRequest, query: Annotated[WaitQuery, Query()], context: AdmittedDep) -> Response:
    """Carries a direction of the second model to the loaded one by a map that is fitted on texts both read, and measures the loss."""
    work = await _prepare(context, body)
    return await respond(context, "transfer", body, work, query.wait, 201)


async def _prepare(context: Context, body: TransferRequest) -> Work:
    """Checks the request as far as that is possible without the second model, and returns what runs it, so that no job fails of
    what can be refused at once."""
    settings = context.settings
    check_second_model(settings)
    check_limit(len(body.pairs or ()), settings.max_pairs, "texts", "pairs")
    check_limit(len(body.anchors or ()), settings.max_texts, "texts", "anchors")
    request = await run_in_thread(_request, body)
    workflow.check_transfer(request, context.engine)
    await _check_numbers(context.engine, settings, request, request.to_layer)
    measured = await _effect_request(context, body)
    answers, most = (
        (0, 0) if measured is None else (effect_answers(len(measured.prompts)), measured.sampling.max_tokens)
    )
    texts = (*request.pairs.positive, *request.pairs.negative, *request.anchors)
    await context.charge_answers(None if measured is None else measured.prompts, answers, most, reads=texts)
    return partial(_run, context, request, measured)


async def _run(
    context: Context, request: workflow.TransferRequest, asked: EffectRequest | None, progress: Progress
) -> dict[str, Any]:
    """Carries the direction over and stores the vector with its loss."""
    async with opened_second_model(context.settings) as second:
        await _check_numbers(second, context.settings, request, request.from_layer)
        found = await run_transfer(context.engine, second, request, progress=progress)
    steered = None if asked is None else await effect(context.engine, found, asked, progress=progress)
    loss: dict[str, Any] = {
        "explained": found.explained,
        "cosine": found.cosine,
        "auroc": dict(found.auroc),
        "warnings": list(found.warnings),
    }
    if steered is not None:
        loss["effect"] = steered
    provenance = {**found.vector.provenance, "loss": to_jsonable_python(loss)}
    stored = await context.store.vectors.put(replace(found.vector, provenance=provenance))
    return TransferAnswer(
        vector=vector_answer(stored),
        from_model=found.source_model,
        from_layer=found.from_layer,
        to_layer=found.to_layer,
        anchors=found.anchors,
        **loss,
    ).model_dump(mode="json")


async def _effect_request(context: Context, body: TransferRequest) -> EffectRequest | None:
    """Resolves what is measured of the effect. Raises LimitExceeded, DoseExceeded, VectorNotFound, VectorModelMismatch,
    ContextLengthExceeded, and InsufficientScope for a vector that the caller may not steer with."""
    asked, engine, bound = body.effect, context.engine, context.limits.max_relative_dose
    if asked is None:
        return None
    context.limits.check_own_steering()
    context.limits.check_names([body.name, *filter(None, [asked.native])])
    if context.limits.shared_vectors is not None and context.namespace != SHARED:
        raise InsufficientScope(
            "this key may steer with vectors of 'shared' only, and not with a new one", param="effect"
        )
    check_limit(
        effect_answers(asked.prompts), context.settings.max_evaluation_answers, "answers to generate", "effect.prompts"
    )
    if bound is not None and asked.relative_dose > bound:
        raise DoseExceeded(
            f"relative_dose {asked.relative_dose:g} is beyond the bound of {bound:g}", param="effect.relative_dose"
        )
    native = None if asked.native is None else await context.vector(asked.native, "effect.native")
    if native is not None:
        context.limits.check_vector(native)
        check_model(native, engine.info)
    prompts = await run_in_thread(evaluation_prompts, engine, None, asked.prompts)
    return EffectRequest(
        prompts=[(await tokenize(engine, one, asked.max_tokens)).token_ids for one in prompts],
        relative_dose=asked.relative_dose,
        native=native,
        sampling=SamplingParams(max_tokens=asked.max_tokens, temperature=TEMPERATURE, seed=body.seed),
    )


async def _check_numbers(
    engine: Engine, settings: Settings, request: workflow.TransferRequest, layer: int | None
) -> None:
    """Raises LimitExceeded where one of the two models would hold more numbers at a time than the operator allows.

    Raises ContextLengthExceeded for an anchor that is too long.

    layer: the layer that is read. None: one of several is chosen later.
    """
    layers = len(tried_layers(engine.info.layer_count)) if layer is None else 1
    texts = len(request.pairs.positive) + len(request.pairs.negative)
    check_activations(engine, settings, texts, layers, "activations of pairs (texts x layers x d_model)", "pairs")
    prompts = await run_in_thread(capture_prompts, engine, request.anchors)
    lengths = [len(ids) for ids in await encode_prompts(engine, [one.prompt for one in prompts], "anchors")]
    tokens = max(sum(lengths[start : start + PART]) for start in range(0, len(lengths), PART))
    what = f"activations of anchors in {engine.info.name} ({PART} texts, with all their tokens, x d_model)"
    check_activations(engine, settings, tokens, 1, what, "anchors")
    check_activations(engine, settings, ROWS * len(lengths), 1, "activations of anchors (rows x d_model)", "anchors")


def _request(body: TransferRequest) -> workflow.TransferRequest:
    pairs = pair_set(body.concept, body.pairs)
    anchors = workflow.default_anchors(pairs) if body.anchors is None else tuple(map(pair_text, body.anchors))
    direction = None if body.direction is None else torch.tensor(body.direction)
    given = {"name", "from_layer", "to_layer", "holdout", "seed", "description", "tags"}
    return workflow.TransferRequest(
        pairs=pairs,
        anchors=anchors,
        direction=direction,
        position=body.position or default_position(pairs),
        **body.model_dump(include=given),
    )
