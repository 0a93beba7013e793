"""AnswerWriter: turns sampled tokens into the events of an answer, and knows when it ends."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from steering.engine.api import Finish, TokenEvent
from steering.engine.transformers.sampling.detokenizer import advance, finish
from steering.engine.transformers.sampling.sampler import Sampled
from steering.engine.transformers.sequence import Sequence
from steering.errors import NonfiniteActivations


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ends. text: its last characters."""

    reason: Literal["stop", "length"]
    text: str


class AnswerWriter:
    """eos_ids: the tokens that end an answer. tokens: how many were written so far."""

    def __init__(self, eos_ids: Collection[int]) -> None:
        self._eos_ids = eos_ids
        self.tokens = 0

    def write(self, sequence: Sequence, chosen: Sampled, readout: Mapping[str, float]) -> Ending | None:
        """Adds a token to an answer and its event to the outbox. Returns the ending if it is the last.

        Raises NonfiniteActivations when the logits were not finite.
        """
        if not chosen.finite:
            raise NonfiniteActivations(
                "steering drove the activations out of range: logits are not finite; lower the strength"
            )
        if chosen.token_id in self._eos_ids and not sequence.sampling.ignore_eos:
            return Ending("stop", finish(sequence))
        index = sequence.generated
        sequence.ids.append(chosen.token_id)
        self.tokens += 1
        text, stopped = advance(sequence, chosen.token_id)
        sequence.outbox.append(TokenEvent(index, chosen.token_id, text, chosen.logprob, chosen.top_logprobs, readout))
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
    return TokenEvent(sequence.generated, -1, ending.text, finish=done)
