"""Health, version, capabilities, metrics, tokenizing, the OpenAPI document, and the built playground at `/`."""

from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from app.api.context import AdmittedDep
from app.api.evaluations import judges
from app.api.prompts import prompt_of
from app.core.admission import check_limit
from app.core.answers import SCORE_BYTES, json_in_thread
from app.core.key import Key
from app.core.requests import ApiRoute, StateDep, needs
from app.core.settings import SCOPES
from steering import __version__
from steering.concepts import CONCEPTS
from steering.concepts.measured import measurement_of
from steering.conditions import CONDITIONS
from steering.engine.capabilities import limits_of, steers_token_scopes
from steering.errors import ContextLengthExceeded, InvalidRequest, LimitExceeded, NotFound
from steering.model.info import ModelInfo
from steering.operations import OPERATIONS
from steering.projection import PROJECTIONS
from steering.schemas.system import (
    CallerAnswer,
    CapabilitiesAnswer,
    DetokenizeAnswer,
    DetokenizeRequest,
    HealthAnswer,
    ModelAnswer,
    TokenizeAnswer,
    TokenizeRequest,
    VersionAnswer,
)
from steering.threads import run_in_thread
from steering.workflows.extract import methods_of

STATIC = Path(str(files("app"))) / "static"
_NOT_BUILT = """<!doctype html><html lang="en"><meta charset="utf-8"><title>steering-server</title>
<h1>The server is running</h1>
<p>The playground has not been built. In the source tree, <code>make web</code> builds it; the API works without it.</p>
<p>Start at <a href="/v1/capabilities">/v1/capabilities</a> and <a href="/openapi.json">/openapi.json</a>.</p></html>
"""

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
    tokenizer, settings = context.engine.tokenizer, context.settings
    param = "prompt" if body.prompt is not None else "messages"
    try:
        ids = await run_in_thread(tokenizer.encode, prompt_of(body, settings), settings.max_scored_tokens)
    except ContextLengthExceeded as error:
        raise LimitExceeded(error.message, param=param) from None
    context.charge_tokens(len(ids))
    context.admission.reserve(len(ids) * SCORE_BYTES * (2 if body.texts else 1))

    def build() -> TokenizeAnswer:
        texts = [tokenizer.token_text(token) for token in ids] if body.texts else None
        return TokenizeAnswer(tokens=list(ids), count=len(ids), texts=texts)

    return await json_in_thread(build)


@router.post("/detokenize", openapi_extra=needs("generate"), response_model=DetokenizeAnswer)
async def detokenize(body: DetokenizeRequest, context: AdmittedDep) -> Response:
    """Returns the text of token ids."""
    engine = context.engine
    check_limit(len(body.tokens), context.settings.max_scored_tokens, "tokens", "tokens")
    largest = max(body.tokens, default=0)
    if largest >= engine.info.vocab_size:
        raise InvalidRequest(f"token ids must be below {engine.info.vocab_size}, got {largest}", param="tokens")
    return await json_in_thread(lambda: DetokenizeAnswer(text=engine.tokenizer.decode(body.tokens)))


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request, state: StateDep) -> Response:
    """Returns the OpenAPI document."""
    if not state.settings.openapi:
        raise NotFound("the OpenAPI document is switched off")
    return await json_in_thread(request.app.openapi)


def model_answer(info: ModelInfo) -> ModelAnswer:
    """Describes the loaded model."""
    return ModelAnswer.model_validate({**asdict(info), "layers": info.layer_count, "parameters": info.parameter_count})


def is_built() -> bool:
    """Whether there is a playground to serve."""
    return (STATIC / "index.html").is_file()


class HashedFiles(StaticFiles):
    """Serves built files. The name of a script or style sheet contains a hash of its content, so it may be cached for good."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Adds the cache header to what StaticFiles answers."""
        response = super().file_response(*args, **kwargs)
        forever = str(args[0] if args else kwargs["full_path"]).endswith((".js", ".css"))
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if forever else "no-cache"
        return response


def mount_playground(app: FastAPI) -> None:
    """Adds `/` and, when built, `/assets`."""

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def playground() -> Response:
        if is_built():
            return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})
        return HTMLResponse(_NOT_BUILT, status_code=404)

    if (STATIC / "assets").is_dir():
        app.mount("/assets", HashedFiles(directory=STATIC / "assets"), name="assets")
