"""Makes the answer of a request from the token ids of vLLM and what the workers measured, by the writer of the transformers engine."""

from collections.abc import Mapping, Sequence
from typing import Any

from steering.engine.api import GenerationRequest, TokenEvent
from steering.engine.readings import MonitoredAnswer
from steering.engine.transformers.answers import AnswerWriter, Ending, finish_event
from steering.engine.transformers.sampling.sampler import Sampled
from steering.engine.transformers.sequence import Sequence as Row
from steering.engine.transformers.sequence import Stream
from steering.engine.transformers.steering.dose import NO_BLOCK, DoseLedger, Run
from steering.engine.vllm.messages import ReportMessage, TokenReadings
from steering.model.prompt import ModelTokenizer
from steering.plan.holds import HeldReadout
from steering.plan.types import SteeringPlan


class Answer:
    """The answer to one request as it grows. ending: how it ended, once that is known."""

    def __init__(
        self, ids: tuple[int, ...], request: GenerationRequest, tokenizer: ModelTokenizer, stream: Stream
    ) -> None:
        self._writer = AnswerWriter(tokenizer.eos_ids)
        self._row = Row(
            id=0,
            ids=list(ids),
            prompt_length=len(ids),
            plan=request.plan,
            sampling=request.sampling,
            stream=stream,
            decoder=tokenizer.decode_stream(ids),
            monitors=request.monitors,
            monitored=MonitoredAnswer(request.monitors, request.request_id) if len(request.monitors) else None,
        )
        self.ending: Ending | None = None

    def scheduled(self, at: float | None) -> None:
        """Notes when vLLM's scheduler first took the request, by the monotonic clock, which its processes share."""
        self._row.scheduled = at

    @property
    def tokens(self) -> int:
        """Returns the number of generated tokens."""
        return self._row.generated

    def add(self, token_id: int, logprobs: Mapping[int, Any] | None, found: TokenReadings) -> list[TokenEvent]:
        """Adds a token. Returns its event; nothing for one that ends the answer. Raises NonfiniteActivations."""
        row = self._row
        read = row.monitors.read_at(first=row.generated == 0)
        scores = [found.scores[place] for place in range(len(read))]
        chosen = Sampled(token_id, found.finite, *_logprobs(token_id, logprobs, row.sampling.logprobs))
        self.ending = self._writer.write(row, chosen, found.readout, scores)
        events = [event for event in row.outbox if isinstance(event, TokenEvent)]
        row.outbox.clear()
        return events

    def finish_event(self, cached_tokens: int, reports: Sequence[ReportMessage]) -> TokenEvent:
        """Returns the last event."""
        assert self.ending is not None
        row = self._row
        row.cached = cached_tokens
        row.dose = ledger_of(row.plan, row.prompt_length, reports)
        return finish_event(row, self.ending)


def _logprobs(
    token_id: int, found: Mapping[int, Any] | None, count: int | None
) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    """(logprob of the token, the most probable ones, best first). found: token id -> vLLM's Logprob, the chosen one too."""
    if found is None or count is None:
        return None, ()
    ranked = sorted((one for one in found.items() if one[1].rank <= count), key=lambda one: one[1].rank)
    return found[token_id].logprob, tuple((token, one.logprob) for token, one in ranked)


def ledger_of(plan: SteeringPlan, prompt_length: int, reports: Sequence[ReportMessage]) -> DoseLedger:
    """Merges what the pipeline stages measured, each at its own layers."""
    ledger = DoseLedger(plan, prompt_length)
    scores = [float("nan")] * len(plan.thresholds)
    held: list[dict[int, HeldReadout]] = [{} for _ in plan.interventions]
    for report in reports:
        for layer, source, phase, dose, tokens, changed, fired_at in report.sums:
            ledger.note((layer, source), Run(NO_BLOCK, phase, 0), dose, tokens, changed, fired_at)
        for number, score in enumerate(report.scores):
            scores[number] = scores[number] if score is None else score
        for all_layers, here in zip(held, report.held, strict=bool(report.held)):
            all_layers.update(here)
    ledger.incomplete = any(report.incomplete for report in reports)
    ledger.scores = tuple(scores)
    ledger.held = tuple(held) if any(one.holds for one in plan.interventions) else ()
    return ledger
