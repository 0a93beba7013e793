"""AnswerWriter: turns sampled tokens into the events of an answer, and knows when it ends.

Text is sent as whole characters, and nothing that may belong to a stop string.
"""

from collections.abc import Collection, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Literal

from steering.engine.api import Finish, TokenEvent
from steering.engine.readings import RaisedMonitor, stops
from steering.engine.transformers.sampling.sampler import Sampled
from steering.engine.transformers.sequence import Sequence
from steering.errors import NonfiniteActivations


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
        self, sequence: Sequence, chosen: Sampled, readout: Mapping[str, float], scores: Rows[float]
    ) -> Ending | None:
        """Adds a token to an answer and its event to the outbox. Returns the ending if it is the last.

        readout, scores: what the pass read at the position that predicts the token; scores of the monitors in their order.
        Raises NonfiniteActivations when the logits were not finite.
        """
        if not chosen.finite:
            raise NonfiniteActivations(
                "steering drove the activations out of range: logits are not finite; lower the strength"
            )
        index, token, monitored = sequence.generated, chosen.token_id, sequence.monitored
        raised = () if monitored is None or index else monitored.read(scores, None)
        if stops(raised):
            return Ending("monitor", "", raised)
        if token in self._eos_ids and not sequence.sampling.ignore_eos:
            return Ending("stop", finish(sequence), raised)
        if monitored is not None:
            raised += monitored.read(scores, index)
        sequence.ids.append(token)
        self.tokens += 1
        text, stopped = advance(sequence, token)
        scheduled = None if index else sequence.scheduled
        event = TokenEvent(
            index, token, text, chosen.logprob, chosen.top_logprobs, readout, raised=raised, scheduled=scheduled
        )
        sequence.outbox.append(event)
        if stops(raised):
            return Ending("monitor", "" if stopped else finish(sequence))
        if stopped:
            return Ending("stop", "")
        if sequence.generated >= sequence.sampling.max_tokens:
            return Ending("length", finish(sequence))
        return None


def finish_event(sequence: Sequence, ending: Ending) -> TokenEvent:
    """Returns the last event of an answer, with the report of what steering did."""
    done = Finish(
        reason=ending.reason,
        prompt_tokens=sequence.prompt_length,
        completion_tokens=sequence.generated,
        cached_tokens=sequence.cached,
        steering=sequence.dose.report(),
    )
    scheduled = None if sequence.generated else sequence.scheduled
    return TokenEvent(sequence.generated, -1, ending.text, finish=done, raised=ending.raised, scheduled=scheduled)


def advance(sequence: Sequence, token_id: int) -> tuple[str, bool]:
    """Adds one token. Returns (text that can be sent, whether a stop string was found)."""
    assert sequence.decoder is not None
    return _release(sequence, sequence.decoder.step(token_id))


def finish(sequence: Sequence) -> str:
    """Returns the text that was held back, as nothing follows."""
    assert sequence.decoder is not None
    text, stopped = _release(sequence, sequence.decoder.flush())
    if stopped:
        return text
    held, sequence.held_text = sequence.held_text, ""
    return text + held


def _release(sequence: Sequence, piece: str) -> tuple[str, bool]:
    stops = sequence.sampling.stop
    if not stops:
        return piece, False
    text = sequence.held_text + piece
    found = [start for stop in stops if (start := text.find(stop)) >= 0]
    if found:
        sequence.held_text = ""
        return text[: min(found)], True
    keep = max((_overlap(text, stop) for stop in stops), default=0)
    sequence.held_text = text[len(text) - keep :]
    return text[: len(text) - keep], False


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest end of the text that is a beginning of the stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
