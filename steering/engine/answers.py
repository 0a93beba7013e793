"""Answer: one answer as it grows. AnswerWriter: turns sampled tokens into its events, and knows when it ends. Stream: carries them
from the engine's thread to the coroutine that waits.

Text is sent as whole characters, and nothing that may belong to a stop string.
"""

import asyncio
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from steering.engine.api import Finish, SamplingParams, TokenEvent
from steering.engine.grammars import Matcher
from steering.errors import NonfiniteActivations
from steering.injection.readings import MonitoredAnswer, RaisedMonitor, stops
from steering.injection.rows import SteeredRow
from steering.model.prompt import TextStream
from steering.spec import PhaseName


class Stream:
    """Carries what work yields to one waiting coroutine. Closing it is the cancel."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.closed = False
        self._items: deque[object] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def close(self) -> None:
        """Has the engine drop the work that the stream belongs to."""
        self.closed = True

    def receive(self, items: Iterable[object]) -> None:
        """On the event loop: hand over items and wake the reader."""
        self._items.extend(items)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> object:
        """The next item; an exception that was sent is raised."""
        while not self._items:
            self._waiter = self.loop.create_future()
            await self._waiter
        item = self._items.popleft()
        if isinstance(item, BaseException):
            raise item
        return item


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token that was chosen. finite: whether its logits were; where not, token_id means nothing."""

    token_id: int
    finite: bool
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True, eq=False, kw_only=True)
class Answer(SteeredRow):
    """One answer as it grows, or a text that is only read.

    held_text: characters that may belong to a stop string. stop: the one that was met.
    cached: positions that were not computed for it.
    matcher: the tokens with which it may go on, where it must match a grammar.
    scheduled: when it first ran, by the monotonic clock.
    """

    sampling: SamplingParams
    decoder: TextStream | None = None
    monitored: MonitoredAnswer | None = None
    held_text: str = ""
    stop: str | None = None
    cached: int = 0
    matcher: Matcher | None = None
    scheduled: float | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ends. text: its last characters. raised: monitors that no token reported."""

    reason: Literal["stop", "length", "monitor"]
    text: str
    raised: tuple[RaisedMonitor, ...] = ()


class AnswerWriter:
    """eos_ids: the tokens that end an answer. tokens: how many were written so far."""

    def __init__(self, eos_ids: Collection[int]) -> None:
        self._eos_ids = eos_ids
        self.tokens = 0

    def write(
        self, answer: Answer, chosen: Sampled, readout: Mapping[str, float], scores: Sequence[float]
    ) -> tuple[TokenEvent | None, Ending | None]:
        """Adds a token to an answer. Returns its event, None for a token that ends the answer; and the ending, if it ends.

        readout, scores: what the pass read at the position that predicts the token; scores of the monitors in their order.
        Raises NonfiniteActivations when the logits were not finite, LimitExceeded where its grammar became too complex.
        """
        if not chosen.finite:
            raise NonfiniteActivations.found_in("logits", steered=not answer.plan.empty)
        index, token, monitored = answer.generated, chosen.token_id, answer.monitored
        complete = answer.matcher is not None and answer.matcher.advance(token)
        raised = () if monitored is None or index else monitored.read(scores, None)
        if raised and stops(raised):
            return None, Ending("monitor", "", raised)
        if token in self._eos_ids and not answer.sampling.ignore_eos:
            return None, Ending("stop", finish(answer), raised)
        if monitored is not None:
            raised += monitored.read(scores, index, _phase_before(answer))
        answer.ids.append(token)
        self.tokens += 1
        text = advance(answer, token)
        scheduled = None if index else answer.scheduled
        event = TokenEvent(
            index, token, text, chosen.logprob, chosen.top_logprobs, readout, raised=raised, scheduled=scheduled
        )
        if raised and stops(raised):
            return event, Ending("monitor", finish(answer))
        if answer.stop is not None or complete:
            return event, Ending("stop", finish(answer))
        if answer.generated >= answer.sampling.max_tokens:
            return event, Ending("length", finish(answer))
        return event, None


def _phase_before(answer: Answer) -> PhaseName:
    """Returns the phase of the last token so far."""
    if answer.phases is None:
        return "prompt"
    return answer.phases.phases(answer.ids, answer.prompt_length, len(answer.ids) - 1, 1)[0]


def finish_event(answer: Answer, ending: Ending) -> TokenEvent:
    """Returns the last event of an answer, with the report of what steering did."""
    done = Finish(
        reason=ending.reason,
        prompt_tokens=answer.prompt_length,
        completion_tokens=answer.generated,
        cached_tokens=answer.cached,
        steering=answer.doses.report(),
        stop=answer.stop if ending.reason == "stop" else None,
    )
    scheduled = None if answer.generated else answer.scheduled
    return TokenEvent(answer.generated, -1, ending.text, finish=done, raised=ending.raised, scheduled=scheduled)


def advance(answer: Answer, token_id: int) -> str:
    """Adds one token. Returns the text that can be sent. A stop string in it is noted, and ends the text. Before a token that
    separates parts of the answer nothing is held back, since no stop string goes on behind it."""
    assert answer.decoder is not None
    text = _release(answer, answer.decoder.step(token_id))
    if answer.decoder.separates(token_id):
        held, answer.held_text = answer.held_text, ""
        return text + held
    return text


def finish(answer: Answer) -> str:
    """Returns the text that was held back, as nothing follows; none after a stop string."""
    assert answer.decoder is not None
    if answer.stop is not None:
        return ""
    text = _release(answer, answer.decoder.flush())
    held, answer.held_text = answer.held_text, ""
    return text + held


def _release(answer: Answer, piece: str) -> str:
    stops = answer.sampling.stop
    if not stops:
        return piece
    text = answer.held_text + piece
    found = [(start, number) for number, stop in enumerate(stops) if (start := text.find(stop)) >= 0]
    if found:
        start, number = min(found)
        answer.held_text, answer.stop = "", stops[number]
        return text[:start]
    keep = max((_overlap(text, stop) for stop in stops), default=0)
    answer.held_text = text[len(text) - keep :]
    return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest end of the text that is a beginning of the stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
