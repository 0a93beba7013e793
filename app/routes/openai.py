"""The OpenAI-compatible routes, for unmodified OpenAI clients."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from app.http.dependencies import AdmittedDep, ContextDep
from app.http.request_reading import ApiRoute, needs
from app.http.streaming import openai_stream
from app.openai import chat, completions, embeddings
from app.openai.models import describe_model, list_models
from app.openai.schemas import ChatRequest, CompletionRequest, EmbeddingRequest

router = APIRouter(route_class=ApiRoute, tags=["openai"])
_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}, "application/json": {}}}}


@router.get("/v1/models", openapi_extra=needs("generate"))
async def models(context: ContextDep) -> dict[str, Any]:
    """Lists the loaded model and each profile as `<model>@<profile>`."""
    return {"object": "list", "data": await list_models(context)}


@router.get("/v1/models/{model:path}", openapi_extra=needs("generate"))
async def model(model: str, context: ContextDep) -> dict[str, Any]:
    """Describes one model."""
    return await describe_model(context, model)


@router.post("/v1/chat/completions", openapi_extra=needs("generate"), response_class=Response, responses=_STREAM)
async def chat_completions(body: ChatRequest, context: AdmittedDep) -> Response:
    """Answers a conversation, as OpenAI's chat completions do; `steering` in and out."""
    work = await chat.prepare(context, body)
    if body.stream:
        return await openai_stream(context.state, chat.chunks(work, body))
    return await chat.answer(work)


@router.post("/v1/completions", openapi_extra=needs("generate"), response_class=Response, responses=_STREAM)
async def text_completions(body: CompletionRequest, context: AdmittedDep) -> Response:
    """Continues texts, as OpenAI's completions do; `echo` with `logprobs` scores the prompt."""
    work = await completions.prepare(context, body)
    if body.stream:
        return await openai_stream(context.state, completions.chunks(work, body))
    return await completions.answer(work, body)


@router.post("/v1/embeddings", openapi_extra=needs("generate"), response_class=Response, responses=_STREAM)
async def create_embeddings(body: EmbeddingRequest, context: AdmittedDep) -> Response:
    """Returns one pooled activation of the chosen layer for each input."""
    return await embeddings.answer(context, body)
