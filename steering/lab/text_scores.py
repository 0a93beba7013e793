"""Scores finished texts along other vectors than the one that steers, and by another model."""

from collections.abc import Mapping, Sequence

from steering.engine.api import CapturePrompt, CaptureSpec, Engine, Prompt, Tokenizer
from steering.lab.trials import ProjectionScorer, Trial, reading_layer
from steering.pairs import ChatMessage, PairSet
from steering.schemas.evaluation import SideEffectAnswer
from steering.threads import run_in_thread
from steering.vectors import ConceptVector
from steering.workflows.extract import ExtractionRequest, extract, tried_layers
from steering.workflows.logprobs import continuation_ids
from steering.workflows.measures import estimate
from steering.workflows.texts import as_prompts, default_position

TEXTS_AT_ONCE = 16
"""Texts of a call: those of one call share the blocks of what they have in common."""
BLANK = "."
"""Stands for an empty answer, which has no token to read."""


async def side_effects(
    engine: Engine,
    readers: Mapping[str, ConceptVector],
    prompts: Sequence[Prompt],
    unsteered: Trial,
    steered: Trial,
) -> list[SideEffectAnswer]:
    """Reads all answers by the unsteered model, each along every reader where its card reads best."""
    before, after = [
        await scores(engine, readers, [prompts[n] for n, _ in trial.answers], [one.text for _, one in trial.answers])
        for trial in (unsteered, steered)
    ]
    effects = []
    for name, vector in readers.items():
        means = zip(steered.by_prompt(after[name]), unsteered.by_prompt(before[name]), strict=True)
        moved = estimate([one - other for one, other in means])
        layer = reading_layer(vector, engine.info.layer_count)
        effects.append(SideEffectAnswer(vector=name, layer=layer, shift=moved))
    return effects


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


class OtherModelScorer:
    """Scores texts by a vector of another model, read where its card reads best."""

    def __init__(self, engine: Engine, vector: ConceptVector) -> None:
        self.name = engine.info.name
        self._engine, self._vector = engine, vector

    @property
    def evidence(self) -> str:
        """One line: how well the model reads the concept in texts that it did not learn it from."""
        card = self._vector.quality
        found = "not measured" if card is None or card.auroc is None else f"{card.auroc:.2f}"
        layer = reading_layer(self._vector, self._engine.info.layer_count)
        return f"{self.name} reads the answers at layer {layer}; AUROC on held-out topics: {found}"

    async def score(self, instructions: Sequence[str], texts: Sequence[str]) -> list[float]:
        """Returns the projection of each text in natural scales, centred on the poles."""
        prompts = as_prompts(self._engine, instructions)
        return (await scores(self._engine, {self._vector.name: self._vector}, prompts, texts))[self._vector.name]


async def other_model_scorer(engine: Engine, concept: str, pairs: PairSet) -> OtherModelScorer:
    """Extracts the concept in `engine`. Raises what `extract` raises."""
    layers = tried_layers(engine.info.layer_count)
    request = ExtractionRequest(concept, pairs, layers=layers, position=default_position(pairs))
    return OtherModelScorer(engine, await extract(engine, request))
