"""Reads finished texts along many vectors at once: what steering toward one concept does to the others."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from steering.engine.api import CapturePrompt, CaptureSpec, Engine, Position, Prompt
from steering.pairs import ChatMessage
from steering.quality import Estimate
from steering.vectors import ConceptVector
from steering.workflows.comparison.text_metrics import estimate
from steering.workflows.evaluation.scorers import ProjectionScorer
from steering.workflows.evaluation.setup import reading_layer
from steering.workflows.evaluation.trials import Trial

TEXTS_AT_ONCE = 16
"""Texts of a call: those of one call share the blocks of what they have in common."""
BLANK = "."
"""Stands for an empty answer, which has no token to read."""


@dataclass(frozen=True, slots=True)
class SideEffect:
    """How far the texts moved along another vector, in its natural scales: its score steered minus unsteered."""

    vector: str
    layer: int
    shift: Estimate


async def side_effects(
    engine: Engine,
    readers: Mapping[str, ConceptVector],
    prompts: Sequence[Prompt],
    unsteered: Trial,
    steered: Trial,
) -> tuple[SideEffect, ...]:
    """Reads all answers by the unsteered model, each along every reader where its card reads best."""
    before, after = [
        await scores(engine, readers, [prompts[n] for n, _ in trial.answers], [one.text for _, one in trial.answers])
        for trial in (unsteered, steered)
    ]
    effects = []
    for name, vector in readers.items():
        means = zip(steered.by_prompt(after[name]), unsteered.by_prompt(before[name]), strict=True)
        moved = estimate([one - other for one, other in means])
        effects.append(SideEffect(name, reading_layer(vector, engine.info.layer_count), moved))
    return tuple(effects)


async def scores(
    engine: Engine, readers: Mapping[str, ConceptVector], prompts: Sequence[Prompt], texts: Sequence[str]
) -> dict[str, list[float]]:
    """Name -> score of each text after its prompt, in natural scales, as the unsteered model reads it."""
    at = {name: reading_layer(vector, engine.info.layer_count) for name, vector in readers.items()}
    layers = tuple(sorted(set(at.values())))
    found: dict[str, list[float]] = {name: [] for name in readers}
    if not layers:
        return found
    wholes = [_with_answer(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    for position, part in _parts(wholes):
        captures = await engine.capture([CapturePrompt(whole) for whole in part], CaptureSpec(layers, position))
        for name, vector in readers.items():
            rows = [capture.activations[layers.index(at[name])] for capture in captures]
            found[name] += [ProjectionScorer.score(row, vector.at(at[name])) for row in rows]
    return found


def _parts(wholes: Sequence[tuple[Prompt, Position]]) -> Iterator[tuple[Position, list[Prompt]]]:
    """Texts that follow each other and are read at the same position, a few at a time."""
    for position, group in groupby(wholes, key=itemgetter(1)):
        found = [whole for whole, _ in group]
        for start in range(0, len(found), TEXTS_AT_ONCE):
            yield position, found[start : start + TEXTS_AT_ONCE]


def _with_answer(prompt: Prompt, text: str) -> tuple[Prompt, Position]:
    """The prompt with its answer, and which positions are the answer's: of a plain text, all but the first."""
    shown = text if text.strip() else BLANK
    if isinstance(prompt, str):
        return prompt + shown, "mean"
    messages = tuple(one for one in prompt if isinstance(one, ChatMessage))
    return (*messages, ChatMessage("assistant", shown)), "response_mean"
