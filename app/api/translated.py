"""Chat completions in the form of another API: what the routes of Anthropic's and Ollama's API share."""

from abc import abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, cast

from pydantic import Field
from starlette.responses import Response

from app.api.answer_parts import Part
from app.api.conversation import Offer, ThinkingSwitch
from app.api.openai import GenerationWork, flags_of
from app.api.openai_schemas import GenerationRequest
from app.core.answers import Event
from steering.engine.api import Prompt, TokenEvent
from steering.pairs import ChatMessage
from steering.spec import Number
from steering.threads import run_in_thread
from steering.workflows.generate import Answer, assemble

NOTHING = Offer()
TopK = Annotated[int, Field(strict=True, ge=0, le=1_000_000)]


class TranslatedRequest(GenerationRequest):
    """The fields of a chat completion that a request of another API means, its messages left out, with sampling fields that OpenAI's
    API lacks."""

    top_k: TopK | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=100)] | None = None


@dataclass(eq=False)
class TranslatedWork(GenerationWork):
    """A chat completion with one answer."""

    @abstractmethod
    def described(self, answer: Answer) -> dict[str, Any]:
        """Describes a whole answer."""

    def beginning(self) -> list[Event]:
        """Returns the events of a stream before its first text."""
        return []

    @abstractmethod
    def pieces(self, part: Part) -> list[Event]:
        """Returns the events for a part of the answer, or a piece of it."""

    @abstractmethod
    def ending(self, answer: Answer) -> list[Event]:
        """Returns the events of a stream after its last text."""

    async def answer(
        self, prompt: Prompt, max_tokens: int | None, offer: Offer = NOTHING, thinking: ThinkingSwitch | None = None
    ) -> Response:
        """Checks, resolves and admits the request as a chat completion is, and answers it as a stream or as a whole."""
        with self.renaming():
            if isinstance(prompt, str):
                await self.prepare([prompt], max_tokens)
            else:
                messages = cast("tuple[ChatMessage, ...]", prompt)
                self.context.check_messages(messages)
                await self.prepare_chat(messages, offer, max_tokens, thinking)
        return await self.respond()

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """See GenerationWork.whole."""
        return self.described(answers[0])

    async def stream(self) -> AsyncGenerator[Event, None]:
        """See GenerationWork.stream."""
        observed: list[TokenEvent] = []
        async with aclosing(self._events()) as arriving:
            async for _, event in arriving:
                if not observed:  # not sooner: a failure before has its own status
                    for each in await run_in_thread(self.beginning):
                        yield each
                observed.append(event)
                for part in self.parts.of_event(0, event):
                    for each in self.pieces(part):
                        yield each
        for each in await run_in_thread(self.ending, assemble(observed)):
            yield each

    def facts(self, answer: Answer) -> dict[str, Any]:
        """Returns what no other API has: `seed` and `steering`, as in chat completions, and `flags` where a monitor was raised."""
        return {**self._extension([answer]), **flags_of(answer)}
