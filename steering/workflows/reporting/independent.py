"""Another model as a scorer: it learns the concept from the pairs in its own space, and reads what the steered model wrote.

A vector that is judged by the space it acts in may move its own readout and nothing that a reader notices.
"""

from collections.abc import Sequence

from steering.engine.api import Engine
from steering.pairs import PairSet
from steering.vectors import ConceptVector
from steering.workflows.evaluation.setup import as_prompts, reading_layer
from steering.workflows.extraction.extract import ExtractionRequest, extract, tried_layers
from steering.workflows.extraction.texts import default_position
from steering.workflows.reporting.reading import scores


class OtherModelScorer:
    """Implements TextScorer with a vector of another model, read where its card reads best."""

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
