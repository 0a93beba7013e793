"""Makes the answer of a request from the token ids of vLLM and what the workers measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from steering.engine.answers import Answer, AnswerWriter, Ending, Sampled, finish_event
from steering.engine.api import GenerationRequest, TokenEvent
from steering.engine.vllm.messages import ReportMessage, TokenReadings
from steering.injection.dose import Doses
from steering.injection.readings import MonitoredAnswer
from steering.model.prompt import ModelTokenizer
from steering.plan.types import HeldReadout, SteeringPlan


class VllmAnswer:
    """The answer to one request as it grows. ending: how it ended, once that is known."""

    def __init__(self, ids: tuple[int, ...], request: GenerationRequest, tokenizer: ModelTokenizer) -> None:
        self._writer = AnswerWriter(tokenizer.eos_ids)
        self._answer = Answer(
            ids=list(ids),
            prompt_length=len(ids),
            plan=request.plan,
            sampling=request.sampling,
            decoder=tokenizer.decode_stream(ids),
            monitors=request.monitors,
            monitored=MonitoredAnswer(request.monitors, request.request_id) if len(request.monitors) else None,
        )
        self.ending: Ending | None = None

    def scheduled(self, at: float | None) -> None:
        """Notes when vLLM's scheduler first took the request, by the monotonic clock, which its processes share."""
        self._answer.scheduled = at

    @property
    def tokens(self) -> int:
        """Returns the number of generated tokens."""
        return self._answer.generated

    def add(self, token_id: int, logprobs: Mapping[int, Any] | None, readings: TokenReadings) -> list[TokenEvent]:
        """Adds a token. Returns its event; nothing for one that ends the answer. Raises NonfiniteActivations."""
        answer = self._answer
        read = answer.monitors.read_at(first=answer.generated == 0)
        scores = [readings.scores[place] for place in range(len(read))]
        chosen = Sampled(token_id, readings.finite, *_logprobs(token_id, logprobs, answer.sampling.logprobs))
        event, self.ending = self._writer.write(answer, chosen, readings.readout, scores)
        return [] if event is None else [event]

    def finish_event(self, cached_tokens: int, reports: Sequence[ReportMessage]) -> TokenEvent:
        """Returns the last event."""
        assert self.ending is not None
        self._answer.cached = cached_tokens
        self._answer.doses = doses_of(self._answer.plan, reports)
        return finish_event(self._answer, self.ending)


def _logprobs(
    token_id: int, found: Mapping[int, Any] | None, count: int | None
) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    """(logprob of the token, the most probable ones, best first). found: token id -> vLLM's Logprob, the chosen one too."""
    if found is None or count is None:
        return None, ()
    ranked = sorted((one for one in found.items() if one[1].rank <= count), key=lambda one: one[1].rank)
    return found[token_id].logprob, tuple((token, one.logprob) for token, one in ranked)


def doses_of(plan: SteeringPlan, reports: Sequence[ReportMessage]) -> Doses:
    """Merges what the pipeline stages measured, each at its own layers."""
    doses = Doses(plan)
    scores = [float("nan")] * len(plan.thresholds)
    held: list[dict[int, HeldReadout]] = [{} for _ in plan.interventions]
    for report in reports:
        if report.doses is not None:
            rows = torch.tensor([doses.layers.index(layer) for layer in report.doses.layers], dtype=torch.int64)
            sums, totals = torch.zeros_like(doses.doses), report.doses.totals.double()
            sums[rows] = report.doses.doses.double()
            changed = torch.maximum(doses.totals[1], totals[1])  # a stage knows what it changed itself
            doses.add(sums, totals, report.doses.fired)
            doses.totals[1] = changed
        for number, score in enumerate(report.scores):
            scores[number] = scores[number] if score is None else score
        for all_layers, here in zip(held, report.held, strict=bool(report.held)):
            all_layers.update(here)
    doses.incomplete = any(report.incomplete for report in reports)
    doses.scores = tuple(scores)
    doses.held = tuple(held) if any(one.holds for one in plan.interventions) else ()
    return doses
