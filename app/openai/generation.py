"""Prepares and runs the generations of one OpenAI request: several prompts, several choices of each."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from app.metrics import TokenClock
from app.openai.models import NamedModel, named_model, steering_of
from app.openai.schemas import GenerationRequest as OpenAIGeneration
from app.services.context import Context
from app.services.generation.generate import Generation
from app.services.inputs import sampling_params, tokenize
from app.services.limits import check_limit, check_sampling
from steering.engine.api import Prompt, TokenEvent
from steering.plan.types import SteeringPlan
from steering.workflows.generate import Answer, assemble, choices, interleaved, stream_events


@dataclass(frozen=True, slots=True, eq=False)
class OpenAIWork:
    """The generations of one request, one for each prompt, and what the response needs. created: Unix time."""

    context: Context
    model: NamedModel
    plan: SteeringPlan
    generations: tuple[Generation, ...]
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def n(self) -> int:
        """Choices of each prompt."""
        return self.generations[0].n


async def prepare(
    context: Context,
    body: OpenAIGeneration,
    prompts: Sequence[Prompt],
    max_tokens: int | None,
    logprobs: int | None,
) -> OpenAIWork:
    """Resolves the request and takes its rows. Everything that can be refused is refused here."""
    settings, fields = context.settings, body.sampling()
    check_sampling(settings, fields, body.choices)
    check_limit(logprobs or 0, settings.max_top_logprobs, "alternatives", "logprobs")
    check_limit(len(prompts), settings.max_prompts, "prompts", "prompt")
    model = named_model(context, body.model)
    plan = await context.plan(await steering_of(model, body.steering, context))
    generations = []
    for prompt in prompts:
        tokenized = await tokenize(context.engine, prompt, max_tokens, plan)
        context.charge_tokens(len(tokenized.token_ids) + body.choices * tokenized.max_tokens)
        sampling = sampling_params(fields, tokenized.max_tokens, logprobs)
        request = context.request(tokenized.token_ids, sampling, tokenized.plan)
        generations.append(Generation(context, request, body.choices, tokens=logprobs is not None))
    context.admission.take(len(prompts) * body.choices)
    return OpenAIWork(context, model, plan, tuple(generations))


async def events(work: OpenAIWork) -> AsyncGenerator[tuple[int, TokenEvent], None]:
    """Yields (choice, event) as they arrive; choices are numbered over all prompts."""
    requests = [one for generation in work.generations for one in choices(generation.request, generation.n)]
    clock = TokenClock(work.context.state.metrics)
    streams = [stream_events(work.context.engine, request) for request in requests]
    async with aclosing(interleaved(streams)) as arriving:
        async for choice, event in arriving:
            clock.observe(choice)
            yield choice, event


async def run(work: OpenAIWork) -> tuple[Answer, ...]:
    """Returns the answers of all choices when the last one has ended."""
    observed: list[list[TokenEvent]] = [[] for _ in range(len(work.generations) * work.n)]
    async with aclosing(events(work)) as arriving:
        async for choice, event in arriving:
            observed[choice].append(event)
    return tuple(assemble(one) for one in observed)
