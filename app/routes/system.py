"""Health, version, capabilities, metrics, tokenizing, and the OpenAPI document."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.http.answers import json_in_thread
from app.http.dependencies import AdmittedDep, StateDep
from app.http.playground import is_built
from app.http.request_reading import ApiRoute, needs
from app.key_entries import SCOPES
from app.policy.keys import Key
from app.services import tokenizing
from app.services.resources import model_answer
from app.services.vectors.judge import judges
from steering import __version__
from steering.concepts import CONCEPTS
from steering.concepts.measured import measurement_of
from steering.conditions import CONDITIONS
from steering.engine.capabilities import limits_of, steers_token_scopes
from steering.errors import NotFound
from steering.operations import OPERATIONS
from steering.projection import PROJECTIONS
from steering.schemas.system import (
    CallerAnswer,
    CapabilitiesAnswer,
    DetokenizeAnswer,
    DetokenizeRequest,
    HealthAnswer,
    TokenizeAnswer,
    TokenizeRequest,
    VersionAnswer,
)
from steering.workflows.extraction.make import methods_of

health = APIRouter(tags=["operation"])
"""Routes without authentication."""
router = APIRouter(route_class=ApiRoute, tags=["operation"])


@health.get("/health/live")
async def live(state: StateDep) -> HealthAnswer:
    """Answers 200 while the process runs and its engine, once loaded, neither died nor hangs."""
    state.check_alive()
    return HealthAnswer(status="ok")


@health.get("/health")
@health.get("/health/ready")
async def ready(state: StateDep) -> HealthAnswer:
    """Answers 200 when the model is loaded, the engine alive, the store reachable; else 503 with the reason."""
    await state.check_ready()
    return HealthAnswer(status="ok")


@router.get("/version")
async def version() -> VersionAnswer:
    """Returns the release of the server."""
    return VersionAnswer(name="steering-server", version=__version__)


@router.get("/v1/capabilities")
async def capabilities(request: Request, state: StateDep) -> CapabilitiesAnswer:
    """Describes the loaded model, what this server offers, every limit, and what the key of the request may do."""
    engine, settings = state.engine, state.settings
    key: Key = request.state.key
    return CapabilitiesAnswer(
        engine=settings.engine,
        executor=engine.stats().executor,
        model=model_answer(engine.info),
        d_model=engine.info.d_model,
        layers=engine.info.layer_count,
        operations=list(OPERATIONS),
        methods=list(methods_of(engine)),
        conditions=list(CONDITIONS),
        projections=list(PROJECTIONS),
        concepts=list(CONCEPTS),
        concept_steering={
            name: found.summary
            for name in CONCEPTS
            if (found := measurement_of(name, engine.info.fingerprint)) is not None
        },
        judges=judges(settings),
        second_model=settings.scorer_model is not None,
        token_scopes=steers_token_scopes(engine),
        limits=settings.limits() | limits_of(engine),
        scopes=list(SCOPES),
        key=CallerAnswer(id=key.id, name=key.name, scopes=sorted(key.scopes)),
        playground=is_built(),
    )


@router.get("/metrics", openapi_extra=needs("metrics"), response_class=Response)
async def metrics(state: StateDep) -> Response:
    """Returns Prometheus text."""
    return Response(await state.scraped(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.post("/tokenize", openapi_extra=needs("generate"), response_model=TokenizeAnswer)
async def tokenize(body: TokenizeRequest, context: AdmittedDep) -> Response:
    """Returns the token ids of a text or a conversation as the model reads it. It may be longer than the context."""
    return await tokenizing.tokenize(context, body)


@router.post("/detokenize", openapi_extra=needs("generate"), response_model=DetokenizeAnswer)
async def detokenize(body: DetokenizeRequest, context: AdmittedDep) -> Response:
    """Returns the text of token ids."""
    return await tokenizing.detokenize(context, body)


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request, state: StateDep) -> Response:
    """Returns the OpenAPI document."""
    if not state.settings.openapi:
        raise NotFound("the OpenAPI document is switched off")
    return await json_in_thread(request.app.openapi)
