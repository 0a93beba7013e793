"""Reads finished texts along many vectors at once: what steering toward one concept does to the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steering.engine.api import CapturePrompt, CaptureSpec, Engine, Prompt, Tokenizer
from steering.pairs import ChatMessage
from steering.quality import Estimate
from steering.threads import run_in_thread
from steering.vectors import ConceptVector
from steering.workflows.comparison.text_metrics import estimate
from steering.workflows.evaluation.scorers import ProjectionScorer
from steering.workflows.evaluation.setup import reading_layer
from steering.workflows.evaluation.trials import Trial
from steering.workflows.reading.score import continuation_ids

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
    answered = list(zip(prompts, texts, strict=True))
    wholes = await run_in_thread(lambda: [_with_answer(engine.tokenizer, *one) for one in answered])
    for start in range(0, len(wholes), TEXTS_AT_ONCE):
        part = wholes[start : start + TEXTS_AT_ONCE]
        captures = await engine.capture(part, CaptureSpec(layers, "response_mean"))
        for name, vector in readers.items():
            rows = [capture.activations[layers.index(at[name])] for capture in captures]
            found[name] += [ProjectionScorer.score(row, vector.at(at[name])) for row in rows]
    return found


def _with_answer(tokenizer: Tokenizer, prompt: Prompt, text: str) -> CapturePrompt:
    """The prompt with its answer, whose tokens are read: those of the last message, or those after a text."""
    shown = text if text.strip() else BLANK
    if isinstance(prompt, str):
        before = tokenizer.encode(prompt)
        return CapturePrompt(before + continuation_ids(tokenizer, prompt, shown), prompt_length=len(before))
    messages = tuple(one for one in prompt if isinstance(one, ChatMessage))
    return CapturePrompt((*messages, ChatMessage("assistant", shown)))
