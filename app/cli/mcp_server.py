"""`steer mcp`: a server of the Model Context Protocol over stdio, whose tools ask a steering server by its client."""

import os
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import anyio
from pydantic import Field
from typer import Option

from app.cli.commands import given
from steering import __version__
from steering.client import ApiError, AsyncClient
from steering.client.connection import DEFAULT_URL
from steering.errors import InvalidRequest, SteeringError
from steering.schemas.reading import TextReadoutAnswer
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


class SteeringTools:
    """The tools. Each is an async method whose signature and docstring tell a model how to call it, and what it returns."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def list_vectors(
        self,
        search: Annotated[str | None, Field(description="Part of a name or description.")] = None,
        tag: Annotated[str | None, Field(description="Only vectors with this tag.")] = None,
        limit: Annotated[int, Field(description="How many to list.", ge=1, le=100)] = 50,
    ) -> dict[str, Any]:
        """Lists the concept vectors of the loaded `model`, with the layers and the range of strengths to steer at.

        measured: whether an evaluation found these strengths, or they are where to start. more: there are others; search for them.
        """
        page = await self._client.list_vectors(**given(search=search, tag=tag), limit=limit)
        model = (await self._client.capabilities()).model.name
        return {"model": model, "vectors": list(map(_described, page.data)), "more": page.next_cursor is not None}

    async def generate(
        self,
        prompt: Prompt,
        strengths: Strengths | None = None,
        profile: Profile = None,
        max_tokens: MaxTokens = 128,
        temperature: Temperature = 0.7,
        seed: Seed = None,
    ) -> dict[str, Any]:
        """Answers a prompt with the steering given; without any, with the server's default.

        relative_dose: how much the steering changed the residual stream, relative to its length, summed over layers; 0: nothing acted.
        """
        answer = await self._client.generate(
            messages=[{"role": "user", "content": prompt}],
            **given(steering=_steering(strengths, profile), seed=seed),
            max_tokens=max_tokens,
            temperature=temperature,
        )
        (choice,), steering = answer.choices, answer.steering
        found = {"text": choice.text, "finish_reason": choice.finish_reason, "seed": answer.seed}
        return {**found, "relative_dose": steering.relative_dose_total, "warnings": list(steering.warnings)}

    async def compare(
        self,
        prompt: Prompt,
        strengths: Strengths | None = None,
        profile: Profile = None,
        max_tokens: MaxTokens = 64,
        temperature: Temperature = 0.7,
        seed: Seed = None,
    ) -> dict[str, Any]:
        """Answers a prompt without and with steering, with one seed, and measures what the steering changed.

        kl_mean: nats per token from the unsteered model. perplexity: of the steered text under the unsteered model. scores: of the
        vectors in both texts. relative_dose: as of `generate`.
        """
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
        return {
            **{name: arm.choices[0].text for name, arm in zip(arms, found.arms, strict=True)},
            "seed": found.seed,
            "kl_mean": against and against.kl_mean,
            "perplexity": metrics and metrics.perplexity,
            "relative_dose": steered.steering.relative_dose_total,
            "scores": {name: {v: score.mean for v, score in one.readout.items()} for name, one in arms.items() if one},
            "warnings": [*steered.steering.warnings, *(metrics.warnings if metrics else ())],
        }

    async def read(
        self,
        texts: Annotated[list[str], Field(description="Texts to measure.", min_length=1)],
        vectors: Annotated[list[str], Field(description="Names of vectors.", min_length=1)],
        layer: Annotated[int | None, Field(description="Absent: the middle one of the recommended layers.")] = None,
        tokens: Annotated[bool, Field(description="Also the score of every token.")] = False,
    ) -> dict[str, Any]:
        """Measures how far the model's activations in texts point along vectors, without generating anything.

        texts: for each text, in the order given, the scores at a layer by the name of the vector, whose poles are at +0.5 and -0.5.
        """
        answer = await self._client.readout(texts, vectors=vectors, layers=None if layer is None else [layer])
        return {"texts": [{name: _scores(one, name, tokens) for name in one.readout} for one in answer.texts]}


def _described(vector: VectorAnswer) -> dict[str, Any]:
    known = vector.recommended
    measured = known.strength or known.negative
    found: dict[str, Any] = {"id": vector.id, "description": vector.description, "tags": list(vector.tags)}
    found |= {"layers": list(known.layers), "strengths": measured or known.strengths_to_try}
    return {**found, "measured": measured is not None}


def _scores(text: TextReadoutAnswer, vector: str, tokens: bool) -> dict[str, Any]:
    layers = sorted(text.readout[vector], key=int)
    layer = layers[len(layers) // 2]
    scores = text.readout[vector][layer]
    listed = zip(text.tokens, scores.scores, strict=True)
    each = [{"token": token.text, "score": score} for token, score in listed] if tokens else None
    return {"layer": int(layer), "mean": scores.mean, "max": scores.max, "tokens": each}


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

    server: MCPServer[Any] = MCPServer(
        "steering-server", version=__version__, instructions=INSTRUCTIONS, log_level="WARNING"
    )
    tools = SteeringTools(client)
    for tool in (tools.list_vectors, tools.generate, tools.compare, tools.read):
        server.add_tool(reported(tool))
    return server


def serve_mcp(
    url: Annotated[str, Option("--url", envvar="STEERING_URL", help="Address of the server.")] = DEFAULT_URL,
    key: Annotated[str | None, Option("--key", envvar="STEERING_KEY", help="API key of the server.")] = None,
) -> None:
    """Serve tools of the Model Context Protocol over standard input and output: list_vectors, generate, compare, read."""

    async def serve() -> None:
        async with AsyncClient(url, api_key=key, namespace=os.environ.get("STEERING_NAMESPACE") or None) as client:
            await server_of(client).run_stdio_async()

    anyio.run(serve)
