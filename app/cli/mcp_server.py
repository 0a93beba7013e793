"""`steer mcp`: a server of the Model Context Protocol over stdio, whose tools ask a steering server by its client."""

import os
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import anyio
from pydantic import BaseModel, Field
from typer import Option

from app.cli.commands import given
from steering import __version__
from steering.client import ApiError, AsyncClient
from steering.client.connection import DEFAULT_URL
from steering.errors import InvalidRequest, SteeringError
from steering.schemas.reading import LayerScores, TextReadoutAnswer
from steering.schemas.vectors import VectorAnswer

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

INSTRUCTIONS = (
    "Steers a language model by concept vectors. Find vectors with list_vectors, see what one changes with compare, write with "
    "generate, and measure texts with read. A strength of 1 is the natural length of a vector; start with the strengths that "
    "list_vectors gives. Large strengths break the text."
)
Prompt = Annotated[str, Field(description="What the user says; it is written into the model's chat template.")]
Strengths = Annotated[
    dict[str, float],
    Field(description="Strength of each vector by name, in its natural scale; negative steers away. Example: {'calm': 1.5}."),
]  # fmt: skip
Profile = Annotated[str | None, Field(description="Name of a stored profile to apply before the vectors.")]
MaxTokens = Annotated[int, Field(description="Longest answer, in tokens.", ge=1)]
Temperature = Annotated[float, Field(description="0 is greedy decoding.", ge=0)]
Seed = Annotated[int | None, Field(description="The same seed gives the same answer.")]


class FoundVector(BaseModel):
    """A concept vector. strengths: a range to steer with. measured: whether an evaluation found it, or it is where to start."""

    id: str
    description: str
    tags: list[str]
    layers: list[int]
    strengths: tuple[float, float] | None
    measured: bool


class FoundVectors(BaseModel):
    """Vectors of the loaded model. more: there are others; search for them."""

    model: str
    vectors: list[FoundVector]
    more: bool


class SteeredText(BaseModel):
    """An answer. relative_dose: how much the steering changed the residual stream, relative to its length, summed over layers;
    0 means that nothing acted."""

    text: str
    finish_reason: str
    seed: int
    relative_dose: float | None
    warnings: list[str]


class ComparedTexts(BaseModel):
    """Answers to one prompt with one seed. kl_mean: nats per token from the unsteered model. perplexity: of the steered text
    under the unsteered model. scores: of the vectors in both texts."""

    unsteered: str
    steered: str
    seed: int
    kl_mean: float | None
    perplexity: float | None
    relative_dose: float | None
    scores: dict[str, dict[str, float | None]]
    warnings: list[str]


class TokenScore(BaseModel):
    """A token with its score."""

    token: str
    score: float | None


class VectorScores(BaseModel):
    """Scores of a text on a vector at a layer, whose poles are at +0.5 and -0.5."""

    layer: int
    mean: float | None
    max: float | None
    tokens: list[TokenScore] | None = None


class ReadTexts(BaseModel):
    """For each text, in the order given, the scores by the name of the vector."""

    texts: list[dict[str, VectorScores]]
    warnings: list[str]


class SteeringTools:
    """The tools. Each is an async method whose signature and docstring tell a model how to call it."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def list_vectors(
        self,
        search: Annotated[str | None, Field(description="Part of a name or description.")] = None,
        tag: Annotated[str | None, Field(description="Only vectors with this tag.")] = None,
        limit: Annotated[int | None, Field(description="How many to list.", ge=1, le=100)] = None,
    ) -> FoundVectors:
        """Lists the concept vectors of the server, with the layers and strengths to steer at."""
        page = await self._client.list_vectors(search=search, tag=tag, limit=limit)
        model = (await self._client.capabilities()).model.name
        return FoundVectors(
            model=model, vectors=[_described(one) for one in page.data], more=page.next_cursor is not None
        )

    async def generate(
        self,
        prompt: Prompt,
        strengths: Strengths | None = None,
        profile: Profile = None,
        max_tokens: MaxTokens = 128,
        temperature: Temperature = 0.7,
        seed: Seed = None,
    ) -> SteeredText:
        """Answers a prompt with the steering given; without any, with the server's default."""
        answer = await self._client.generate(
            messages=[{"role": "user", "content": prompt}],
            **given(steering=_steering(strengths, profile), seed=seed),
            max_tokens=max_tokens,
            temperature=temperature,
        )
        (choice,) = answer.choices
        return SteeredText(
            text=choice.text,
            finish_reason=choice.finish_reason,
            seed=answer.seed,
            relative_dose=answer.steering.relative_dose_total,
            warnings=answer.steering.warnings,
        )

    async def compare(
        self,
        prompt: Prompt,
        strengths: Strengths | None = None,
        profile: Profile = None,
        max_tokens: MaxTokens = 64,
        temperature: Temperature = 0.7,
        seed: Seed = None,
    ) -> ComparedTexts:
        """Answers a prompt without and with steering, with one seed, and measures what the steering changed."""
        steering = _steering(strengths, profile)
        if steering is None:
            raise InvalidRequest("give 'strengths', 'profile' or both: there is nothing to compare")
        found = await self._client.compare(
            messages=[{"role": "user", "content": prompt}],
            steering=steering,
            readout=list(strengths or ()),
            **given(seed=seed),
            max_tokens=max_tokens,
            temperature=temperature,
        )
        plain, steered = found.arms
        for arm in (plain, steered):
            if arm.error is not None:
                raise InvalidRequest(f"the arm {arm.name!r} failed: {arm.error.message}")
        metrics, against = steered.metrics, steered.against_baseline
        arms = {"unsteered": plain.metrics, "steered": metrics}
        return ComparedTexts(
            unsteered=plain.choices[0].text,
            steered=steered.choices[0].text,
            seed=found.seed,
            kl_mean=None if against is None else against.kl_mean,
            perplexity=None if metrics is None else metrics.perplexity,
            relative_dose=steered.steering.relative_dose_total,
            scores={
                name: {vector: score.mean for vector, score in one.readout.items()}
                for name, one in arms.items()
                if one is not None
            },
            warnings=[*steered.steering.warnings, *(metrics.warnings if metrics is not None else ())],
        )

    async def read(
        self,
        texts: Annotated[list[str], Field(description="Texts to measure.", min_length=1)],
        vectors: Annotated[list[str], Field(description="Names of vectors.", min_length=1)],
        layer: Annotated[int | None, Field(description="Absent: the middle one of the recommended layers.")] = None,
        tokens: Annotated[bool, Field(description="Also the score of every token.")] = False,
    ) -> ReadTexts:
        """Measures how far the model's activations in texts point along vectors, without generating anything."""
        answer = await self._client.readout(texts, vectors=vectors, layers=None if layer is None else [layer])
        return ReadTexts(
            texts=[
                {name: _scores(text, layers, tokens) for name, layers in text.readout.items()} for text in answer.texts
            ],
            warnings=answer.warnings,
        )


def _described(vector: VectorAnswer) -> FoundVector:
    recommended = vector.recommended
    measured = recommended.strength or recommended.negative
    strengths = measured or recommended.strengths_to_try
    return FoundVector(
        id=vector.id,
        description=vector.description,
        tags=list(vector.tags),
        layers=list(recommended.layers),
        strengths=strengths,
        measured=measured is not None,
    )


def _scores(text: TextReadoutAnswer, layers: dict[str, LayerScores], tokens: bool) -> VectorScores:
    found = sorted(layers, key=int)
    layer = found[len(found) // 2]
    scores = layers[layer]
    listed = [TokenScore(token=one.text, score=score) for one, score in zip(text.tokens, scores.scores, strict=True)]
    return VectorScores(layer=int(layer), mean=scores.mean, max=scores.max, tokens=listed if tokens else None)


def _steering(strengths: dict[str, float] | None, profile: str | None) -> Any:
    interventions = [{"vector": name, "strength": strength} for name, strength in (strengths or {}).items()]
    if profile is not None:
        return {"profile": profile, "interventions": interventions}
    return None if strengths is None else interventions


def server_of(client: AsyncClient) -> "MCPServer[Any]":
    """Returns a server whose tools use a client. Raises InvalidRequest where the extra `mcp` is not installed."""
    try:
        from mcp.server.mcpserver import MCPServer  # noqa: PLC0415 - an extra
        from mcp.server.mcpserver.exceptions import ToolError  # noqa: PLC0415
        from mcp.server.mcpserver.tools import Tool  # noqa: PLC0415
    except ImportError:
        raise InvalidRequest("steer mcp needs the package mcp: pip install 'mcp>=2.3'") from None

    def reported(tool: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @wraps(tool)
        async def call(*args: Any, **arguments: Any) -> Any:
            try:
                return await tool(*args, **arguments)
            except (ApiError, SteeringError) as error:  # other errors are not shown to the model
                raise ToolError(str(error)) from error

        return call

    own = SteeringTools(client)
    tools = [Tool.from_function(reported(one)) for one in (own.list_vectors, own.generate, own.compare, own.read)]
    for tool in tools:
        known = tool.fn_metadata.arg_model
        known.model_config["extra"] = "forbid"  # the package drops arguments that it does not know
        known.model_rebuild(force=True)
        tool.parameters = known.model_json_schema()
    return MCPServer(
        "steering-server", version=__version__, instructions=INSTRUCTIONS, log_level="WARNING", tools=tools
    )


def serve_mcp(
    url: Annotated[str, Option("--url", envvar="STEERING_URL", help="Address of the server.")] = DEFAULT_URL,
    key: Annotated[str | None, Option("--key", envvar="STEERING_KEY", help="API key of the server.")] = None,
) -> None:
    """Serve tools of the Model Context Protocol over standard input and output: list_vectors, generate, compare, read."""

    async def serve() -> None:
        async with AsyncClient(url, api_key=key, namespace=os.environ.get("STEERING_NAMESPACE") or None) as client:
            await server_of(client).run_stdio_async()

    anyio.run(serve)
