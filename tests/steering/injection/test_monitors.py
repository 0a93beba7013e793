"""Monitors: their scores equal a slow reference, they stop an answer exactly at the token, and a row depends on no other."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from steering.engine.api import GenerationRequest
from steering.engine.options import EngineLimits
from steering.injection.readings import EDGES, Monitor, MonitoredAnswer, MonitorSet, Reading, ScoreStatistics
from steering.model.hook_points import BlockOutput
from steering.model.layout import find_layout
from steering.plan.types import SteeringPlan
from steering.spec import SteeringSpec
from steering.vectors import ConceptVector
from tests.engines import Outcome, family_engine, run, run_all, run_at_once, sampling
from tests.families import FAMILIES
from tests.plans import plan_for, vectors_for
from tests.reference import Reference
from tests.reference_steps import middle
from tests.scripted_model import SCRIPTED_MODEL

PROMPT = tuple(b"The answer to that is")
TOKENS, LONG = 10, 40
STEER = [{"vector": "beta", "layers": [0], "strength": 0.8}]


def monitor(vector: ConceptVector, layer: int, bound: float = 0.0, **fields: Any) -> Monitor:
    """A monitor of a vector at a layer, raised above the bound."""
    entry = vector.at(layer)
    reading = Reading(vector.name, layer, entry.direction, entry.scale, entry.middle)
    values: dict[str, Any] = {"name": "watch", "vector": vector.id, "sha256": vector.sha256, "above": True, **fields}
    return Monitor(reading=reading, bound=bound, **values)


class Residuals:
    """What a model's layers compute for whole texts, by a plain forward pass."""

    def __init__(self, model: torch.nn.Module, vectors: dict[str, ConceptVector], steering: list[dict[str, object]]):
        spec = SteeringSpec.model_validate({"interventions": steering})
        self._blocks = find_layout(model).blocks
        self._reference = Reference(model, self._blocks, spec, vectors)

    def scores(self, ids: Sequence[int], vector: ConceptVector, layer: int) -> list[float]:
        """The score at every position."""
        found: list[torch.Tensor] = []

        def keep(_module: object, _inputs: object, output: BlockOutput) -> None:
            found.append((output[0] if isinstance(output, tuple) else output)[0].double())

        handle = self._blocks[layer].register_forward_hook(keep)
        self._reference.prompt_length = len(PROMPT)
        self._reference.logits(ids)
        handle.remove()
        entry = vector.at(layer)
        projections, centre = found[0] @ entry.direction.double(), middle(entry)
        return [float((p - centre) / entry.scale) for p in projections]


def ask(monitors: Sequence[Monitor], plan: SteeringPlan, seed: int = 0, count: int = TOKENS) -> GenerationRequest:
    """A sampled answer under monitors."""
    watched = MonitorSet(monitors)
    return GenerationRequest(
        PROMPT,
        sampling(count, temperature=0.8, seed=seed),
        plan,
        monitors=watched,
        request_id=f"req-{seed}",
    )


def raised(outcome: Outcome, name: str = "watch") -> dict[int, float]:
    """Index of the event -> score, for one monitor."""
    return {e.index: one.score for e in outcome.events for one in e.raised if one.monitor.name == name}


def test_no_request_evades_a_monitor_of_answers_by_the_phases_of_its_tokens() -> None:
    """The first generated token is read also where it is predicted in the prompt, and JSON is an answer."""
    watched = MonitorSet([monitor(vectors_for(SCRIPTED_MODEL)["alpha"], 1, phase=("answer",), action="flag")])
    answer = MonitoredAnswer(watched, "req")
    for token, phase, counts in (
        (0, "prompt", True),
        (1, "thinking", False),
        (2, "tool", False),
        (3, "json", True),
        (4, "answer", True),
    ):
        assert bool(answer.read([1.0], token, phase)) == counts, phase  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
async def test_scores_equal_the_reference_in_a_mixed_batch(
    family: str, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = FAMILIES[family]()
    async with family_engine(family, hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info, means=True)
        alpha, beta = vectors["alpha"], vectors["beta"]
        watched = [
            monitor(alpha, 2, -1e9, action="flag"),
            monitor(beta, 1, -1e9, name="other", action="flag"),
            monitor(alpha, 1, -1e9, name="asked", at="prompt", action="flag"),
        ]
        plans = [await plan_for([], vectors, engine.info), await plan_for(STEER, vectors, engine.info)]
        requests = [ask(watched, plans[seed % 2], seed) for seed in range(4)]
        outcomes = await run_all(engine, requests)
    for seed, outcome in enumerate(outcomes):
        ids = [*PROMPT, *outcome.tokens]
        residuals = Residuals(model, vectors, STEER if seed % 2 else [])
        for name, vector, layer in (("watch", alpha, 2), ("other", beta, 1)):
            expected = residuals.scores(ids, vector, layer)[len(PROMPT) - 1 : -1]
            assert list(raised(outcome, name)) == list(range(TOKENS))
            assert list(raised(outcome, name).values()) == pytest.approx(expected, abs=2e-4)
        asked = residuals.scores(ids, alpha, 1)[len(PROMPT) - 1]
        assert raised(outcome, "asked") == {0: pytest.approx(asked, abs=2e-4)}


async def test_an_answer_ends_with_the_token_at_which_it_is_stopped(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info, means=True)
        plan = await plan_for([], vectors, engine.info)
        free = await run(engine, ask([monitor(vectors["alpha"], 1, -1e9, action="flag")], plan, count=LONG))
        scores = list(raised(free).values())
        at = max(range(2, LONG - 1), key=lambda index: scores[index] - max(scores[:index]))
        bound = (scores[at] + max(scores[:at])) / 2
        assert max(scores[:at]) < bound < scores[at]
        stop = monitor(vectors["alpha"], 1, bound, action="stop")
        stopped, other = await run_all(engine, [ask([stop], plan, count=LONG), ask([], plan, seed=5)])
        again = await run(engine, ask([], plan, seed=5))
    assert stopped.tokens == free.tokens[: at + 1]
    assert stopped.finish.reason == "monitor"
    assert stopped.finish.completion_tokens == at + 1
    assert free.text.startswith(stopped.text)
    assert raised(stopped) == {at: pytest.approx(scores[at], abs=1e-4)}
    assert (other.tokens, other.finish.reason) == (again.tokens, "length"), "rows without monitors go on"
    statistics = stop.statistics
    assert (statistics.count, statistics.raised, statistics.answers) == (at + 1, 1, 1)
    (latest,) = statistics.latest
    assert (latest.request_id, latest.score, latest.token) == ("req-0", raised(stopped)[at], at)


async def test_a_prompt_that_is_stopped_has_no_token(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info, means=True)
        plan = await plan_for([], vectors, engine.info)
        stop = monitor(vectors["alpha"], 1, -1e9, at="prompt", action="stop")
        counted = monitor(vectors["alpha"], 1, -1e9, name="counted")
        outcome = await run(engine, ask([counted, stop], plan))
        below = monitor(vectors["alpha"], 1, -1e9, name="below", above=False, at="prompt", action="stop")
        free = await run(engine, ask([below], plan))
    assert (outcome.tokens, outcome.text, outcome.finish.reason) == ([], "", "monitor")
    assert outcome.finish.prompt_tokens == len(PROMPT)
    assert list(raised(outcome)) == [0]
    assert (stop.statistics.answers, counted.statistics.count) == (1, 0)
    assert (len(free.tokens), below.statistics.count, below.statistics.raised) == (TOKENS, 1, 0)


async def test_every_score_is_counted_once_under_preemption(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """A sequence that gave up its blocks is computed again and not scored again."""
    limits = EngineLimits(max_running=8, cache_bytes=200_000)
    async with family_engine("llama", hf_byte_tokenizer, limits) as engine:
        vectors = vectors_for(engine.info, means=True)
        plan = await plan_for([], vectors, engine.info)
        watched = monitor(vectors["alpha"], 1, -1e9)
        monitors = MonitorSet([watched])
        requests = [
            GenerationRequest(tuple(f"prompt {seed} of it".encode()), sampling(60, temperature=1.0, seed=seed), plan, monitors=monitors)
            for seed in range(8)
        ]  # fmt: skip
        await run_at_once(engine, requests)
        assert engine.stats().preemptions > 0, "this test needs a smaller cache"
    assert watched.statistics.count == watched.statistics.raised == 8 * 60
    assert watched.statistics.answers == 8


def test_a_distribution_is_by_upper_edges() -> None:
    statistics = ScoreStatistics()
    for score in (-9.0, EDGES[0], 0.1, 0.25, 9.0):
        statistics.add(score, score > 0.2)
    assert statistics.buckets[0] == 2
    assert statistics.buckets[EDGES.index(0.25)] == 2
    assert statistics.buckets[-1] == 1
    assert (statistics.count, statistics.raised) == (5, 2)
    assert (statistics.lowest, statistics.highest) == (-9.0, 9.0)
    assert sum(hour.count for hour in statistics.hours) == 5
