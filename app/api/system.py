"""Health, version, capabilities, concepts, metrics, tokenizing, the OpenAPI document, and the built playground at `/`."""

from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from app.api.context import AdmittedDep
from app.api.evaluations import judges
from app.core.admission import Key, check_limit
from app.core.answers import SCORE_BYTES, json_in_thread
from app.core.requests import ApiRoute, StateDep, needs
from app.core.settings import SCOPES
from steering import __version__
from steering.concepts import CONCEPTS
from steering.concepts.described import all_concepts, described, search
from steering.concepts.loader import load_concept
from steering.concepts.measured import measurement_of, summaries_of
from steering.conditions import CONDITIONS
from steering.engine import capabilities as engines
from steering.errors import ContextLengthExceeded, InvalidRequest, LimitExceeded, NotFound
from steering.operations import OPERATIONS
from steering.pairs import Text as PairText
from steering.projection import PROJECTIONS
from steering.schemas import system as schemas
from steering.schemas.messages import Message, Text
from steering.schemas.system import ConceptAnswer, HealthAnswer
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
concepts = APIRouter(route_class=ApiRoute, tags=["concepts"])


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
async def version() -> schemas.VersionAnswer:
    """Returns the release of the server."""
    return schemas.VersionAnswer(name="steering-server", version=__version__)


@router.get("/v1/capabilities")
async def capabilities(request: Request, state: StateDep) -> schemas.CapabilitiesAnswer:
    """Describes the loaded model, what this server offers, every limit, and what the key of the request may do."""
    engine, info, settings = state.engine, state.engine.info, state.settings
    key: Key = request.state.key
    model = {**asdict(info), "layers": info.layer_count, "parameters": info.parameter_count}
    measured = {name: found.summary for name in CONCEPTS if (found := measurement_of(name, info.fingerprint))}
    return schemas.CapabilitiesAnswer(
        engine=settings.engine,
        executor=engine.stats().executor,
        kernels=engine.stats().kernels or None,
        weight_bytes=dict(engine.stats().weight_bytes),
        model=schemas.ModelAnswer.model_validate(model),
        d_model=info.d_model,
        layers=info.layer_count,
        operations=list(OPERATIONS),
        methods=list(methods_of(engine)),
        conditions=list(CONDITIONS),
        projections=list(PROJECTIONS),
        concepts=list(CONCEPTS),
        concept_steering=measured,
        judges=judges(settings),
        second_model=settings.scorer_model is not None,
        token_scopes=engines.steers_token_scopes(engine),
        attending_positions=engines.reads_attention(engine),
        grammars=engines.takes_grammars(engine),
        tools=None if (tools := engines.tool_format(engine)) is None else tools.name,
        thinking=None if (thinking := engines.thinking_format(engine)) is None else thinking.name,
        thinking_is_optional=thinking is not None and bool(thinking.switch),
        phases=sorted(engines.phases(engine)),
        limits=settings.limits() | engines.limits_of(engine),
        scopes=list(SCOPES),
        key=schemas.CallerAnswer(id=key.id, name=key.name, scopes=sorted(key.scopes)),
        playground=is_built(),
    )


@router.get("/metrics", openapi_extra=needs("metrics"), response_class=Response)
async def metrics(state: StateDep) -> Response:
    """Returns Prometheus text."""
    return Response(await state.scraped(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.post("/tokenize", openapi_extra=needs("generate"), response_model=schemas.TokenizeAnswer)
async def tokenize(body: schemas.TokenizeRequest, context: AdmittedDep) -> Response:
    """Returns the token ids of a text or a conversation as the model reads it. It may be longer than the context."""
    tokenizer = context.engine.tokenizer
    try:
        ids = await run_in_thread(tokenizer.encode, context.prompt_of(body), context.settings.max_scored_tokens)
    except ContextLengthExceeded as error:
        param = "prompt" if body.prompt is not None else "messages"
        raise LimitExceeded(error.message, param=param) from None
    context.charge(len(ids), len(ids) * SCORE_BYTES * (2 if body.texts else 1))

    def build() -> schemas.TokenizeAnswer:
        texts = [tokenizer.token_text(token) for token in ids] if body.texts else None
        return schemas.TokenizeAnswer(tokens=list(ids), count=len(ids), texts=texts)

    return await json_in_thread(build)


@router.post("/detokenize", openapi_extra=needs("generate"), response_model=schemas.DetokenizeAnswer)
async def detokenize(body: schemas.DetokenizeRequest, context: AdmittedDep) -> Response:
    """Returns the text of token ids."""
    engine = context.engine
    check_limit(len(body.tokens), context.settings.max_scored_tokens, "tokens", "tokens")
    largest = max(body.tokens, default=0)
    if largest >= engine.info.vocab_size:
        raise InvalidRequest(f"token ids must be below {engine.info.vocab_size}, got {largest}", param="tokens")
    return await json_in_thread(lambda: schemas.DetokenizeAnswer(text=engine.tokenizer.decode(body.tokens)))


@concepts.get("/v1/concepts")
async def find(query: Annotated[schemas.ConceptQuery, Query()]) -> schemas.ConceptList:
    """Lists the starter concepts and those in words, or the ones that match a text."""

    def found() -> list[ConceptAnswer]:
        known = all_concepts()
        names = known if query.search is None else search(query.search)
        return [_concept_answer(name) for name in names if query.kind in (None, known[name].kind)]

    return schemas.ConceptList(data=await run_in_thread(found))


@concepts.get("/v1/concepts/{name}")
async def read(name: str) -> schemas.ConceptDetail:
    """Returns one concept; a starter concept with its pairs."""

    def detail() -> schemas.ConceptDetail:
        if name in described():
            return schemas.ConceptDetail(**_concept_answer(name).model_dump(), data=[])
        pairs = load_concept(name)
        topics = pairs.topics or (None,) * len(pairs)
        data = [
            schemas.ConceptPair(positive=_text(positive), negative=_text(negative), topic=topic)
            for (positive, negative), topic in zip(pairs, topics, strict=True)
        ]
        return schemas.ConceptDetail(**_concept_answer(name).model_dump(), data=data)

    return await run_in_thread(detail)


def _concept_answer(name: str) -> ConceptAnswer:
    entry = all_concepts()[name]
    pairs = len(load_concept(name)) if name in CONCEPTS else 0
    return ConceptAnswer(name=name, **asdict(entry), pairs=pairs, measured=summaries_of(name))


def _text(text: PairText) -> Text:
    return text if isinstance(text, str) else tuple(Message(role=one.role, content=one.content) for one in text)


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request, state: StateDep) -> Response:
    """Returns the OpenAPI document."""
    if not state.settings.openapi:
        raise NotFound("the OpenAPI document is switched off")
    return await json_in_thread(request.app.openapi)


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
