"""Makes the events of an answer from the token ids of vLLM: text, stop strings, the final report."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from steering.engine.api import Finish, SamplingParams, SteeringReport, TokenEvent
from steering.engine.transformers.sampling.detokenizer import advance, finish
from steering.engine.transformers.sequence import DecodeStream
from steering.engine.transformers.steering.dose import NO_BLOCK, DoseLedger, Run
from steering.engine.vllm.messages import ReportMessage
from steering.plan.holds import HeldReadout
from steering.plan.types import SteeringPlan


@dataclass(slots=True, eq=False)
class Answer:
    """The text of one answer as it grows; see `TextState` of the detokenizer. ended: how, once it is known.

    eos_ids: tokens that end it without being part of it.
    """

    sampling: SamplingParams
    decoder: DecodeStream
    eos_ids: Collection[int]
    held_text: str = ""
    tokens: int = 0
    ended: Literal["stop", "length"] | None = None
    last_text: str = field(default="", init=False)

    def add(self, token_id: int, logprobs: Mapping[int, Any] | None, readout: Mapping[str, float]) -> TokenEvent | None:
        """Adds a token. Returns its event; None for one that ends the answer."""
        if token_id in self.eos_ids and not self.sampling.ignore_eos:
            self.ended, self.last_text = "stop", finish(self)
            return None
        text, stopped = advance(self, token_id)
        chosen, top = _logprobs(token_id, logprobs, self.sampling.logprobs)
        event = TokenEvent(self.tokens, token_id, text, chosen, top, readout)
        self.tokens += 1
        if stopped:
            self.ended = "stop"
        elif self.tokens >= self.sampling.max_tokens:
            self.ended, self.last_text = "length", finish(self)
        return event

    def finish_event(self, prompt_tokens: int, cached_tokens: int, report: SteeringReport) -> TokenEvent:
        """Returns the last event."""
        assert self.ended is not None
        done = Finish(self.ended, prompt_tokens, self.tokens, cached_tokens, report)
        return TokenEvent(self.tokens, -1, self.last_text, finish=done)


def _logprobs(
    token_id: int, found: Mapping[int, Any] | None, count: int | None
) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    """(logprob of the token, the most probable ones, best first). found: token id -> vLLM's Logprob, the chosen one too."""
    if found is None or count is None:
        return None, ()
    ranked = sorted((one for one in found.items() if one[1].rank <= count), key=lambda one: one[1].rank)
    return found[token_id].logprob, tuple((token, one.logprob) for token, one in ranked)


def report_of(plan: SteeringPlan, prompt_length: int, reports: Sequence[ReportMessage]) -> SteeringReport:
    """Merges what the pipeline stages measured, each at its own layers, into one report."""
    ledger = DoseLedger(plan, prompt_length)
    scores = [float("nan")] * len(plan.thresholds)
    for report in reports:
        for layer, source, phase, dose, tokens, fired_at in report.sums:
            ledger.note((layer, source), Run(NO_BLOCK, phase, 0), dose, tokens, fired_at)
        for number, score in enumerate(report.scores):
            scores[number] = scores[number] if score is None else score
    ledger.scores = tuple(scores)
    held: list[dict[int, HeldReadout]] = [{} for _ in plan.interventions]
    for report in reports:
        for all_layers, here in zip(held, report.held, strict=bool(report.held)):
            all_layers.update(here)
    ledger.held = tuple(held) if any(one.holds for one in plan.interventions) else ()
    return ledger.report()
