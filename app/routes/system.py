"""What the server is and can do: version, capabilities, metrics, tokenizing, and the OpenAPI document."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from app.http.dependencies import EngineDep, StateDep
from app.http.playground import is_built
from app.http.request_reading import ApiRoute, needs
from app.services.inputs import prompt_of
from app.services.judge import judges
from app.services.responses import model_answer
from app.settings import SCOPES
from steering import __version__
from steering.concepts import CONCEPTS
from steering.conditions import CONDITIONS
from steering.engine.prompts import encode_prompt
from steering.errors import InvalidRequest, NotFound
from steering.operations import OPERATIONS
from steering.projection import PROJECTIONS
from steering.schemas.system import (
    CapabilitiesAnswer,
    DetokenizeAnswer,
    DetokenizeRequest,
    TokenizeAnswer,
    TokenizeRequest,
    VersionAnswer,
)
from steering.workflows.extraction.make import methods_of

router = APIRouter(route_class=ApiRoute, tags=["operation"])


@router.get("/version")
async def version() -> VersionAnswer:
    """Which release this is."""
    return VersionAnswer(name="steering-server", version=__version__)


@router.get("/v1/capabilities")
async def capabilities(state: StateDep, engine: EngineDep) -> CapabilitiesAnswer:
    """The loaded model, the tables of what exists, and every limit."""
    return CapabilitiesAnswer(
        engine=state.settings.engine,
        model=model_answer(engine.info),
        d_model=engine.info.d_model,
        layers=engine.info.layer_count,
        operations=list(OPERATIONS),
        methods=list(methods_of(engine)),
        conditions=list(CONDITIONS),
        projections=list(PROJECTIONS),
        concepts=list(CONCEPTS),
        judges=judges(state.settings),
        limits=state.settings.limits(),
        scopes=list(SCOPES),
        playground=is_built(),
    )


@router.get("/metrics", openapi_extra=needs("admin"), response_class=Response)
async def metrics(state: StateDep) -> Response:
    """Prometheus text."""
    return Response(state.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.post("/tokenize", openapi_extra=needs("generate"))
async def tokenize(body: TokenizeRequest, state: StateDep, engine: EngineDep) -> TokenizeAnswer:
    """Token ids of a text or a conversation, as the model would read them."""
    ids = await encode_prompt(engine.tokenizer, prompt_of(body, state.settings))
    texts = await asyncio.to_thread(lambda: [engine.tokenizer.token_text(i) for i in ids]) if body.texts else None
    return TokenizeAnswer(tokens=list(ids), count=len(ids), texts=texts)


@router.post("/detokenize", openapi_extra=needs("generate"))
async def detokenize(body: DetokenizeRequest, engine: EngineDep) -> DetokenizeAnswer:
    """The text of token ids."""
    largest = max(body.tokens, default=0)
    if largest >= engine.info.vocab_size:
        raise InvalidRequest(f"token ids must be below {engine.info.vocab_size}", param="tokens")
    return DetokenizeAnswer(text=await asyncio.to_thread(engine.tokenizer.decode, body.tokens))


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request, state: StateDep) -> JSONResponse:
    """The OpenAPI document."""
    if not state.settings.openapi:
        raise NotFound("the OpenAPI document is switched off")
    document: dict[str, Any] = request.app.openapi()
    return JSONResponse(document)
