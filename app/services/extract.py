"""Extraction from a request's words to a stored vector, now or as a job."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.services.inputs import extraction_of, pairs_of
from app.services.responses import vector_answer
from app.state import AppState
from steering.layer_indices import layer_indices
from steering.schemas.extraction import ExtractRequest
from steering.vectors import ConceptVector, check_name
from steering.workflows.extraction.describe import describe
from steering.workflows.extraction.extract import ExtractionRequest
from steering.workflows.extraction.make import check_method, make_vector
from steering.workflows.progress import Progress
from steering.workflows.training.train import TrainingSettings


@dataclass(frozen=True, slots=True, eq=False)
class Extraction:
    """One extraction whose words have been checked. request: None while its texts are still to be written."""

    state: AppState
    body: ExtractRequest
    request: ExtractionRequest | None

    async def run(self, progress: Progress) -> ConceptVector:
        """The stored vector. Cancelling stops the reading and stores nothing."""
        request = self.request or await self._described(progress)
        training = training_of(self.body)
        vector = await make_vector(self.state.engine, request, training=training, progress=progress)
        return await self.state.store.vectors.put(vector)

    async def job(self, progress: Progress) -> Mapping[str, Any]:
        """The same as a job's result."""
        return {"vector": vector_answer(await self.run(progress)).model_dump(mode="json")}

    async def _described(self, progress: Progress) -> ExtractionRequest:
        assert self.body.describe is not None
        trait, opposite = self.body.describe.trait, self.body.describe.opposite
        written = await describe(self.state.engine, trait, opposite, progress=progress)
        return extraction_of(self.body, written.pairs, self.state)


async def checked(state: AppState, body: ExtractRequest) -> Extraction:
    """Refuses at once what can be refused at once, so that no job fails of it later."""
    check_name(body.name)
    check_method(state.engine, body.method, training_of(body), paired=body.positive is None)
    layer_indices(body.layers, state.engine.info.layer_count)
    if body.describe is not None:
        return Extraction(state, body, None)
    return Extraction(state, body, extraction_of(body, await pairs_of(state, body), state))


def training_of(body: ExtractRequest) -> TrainingSettings | None:
    """What was said of training, with the defaults of the library for what was not."""
    if body.training is None:
        return None
    return TrainingSettings(**body.training.model_dump(exclude_none=True))


def job_words(body: ExtractRequest) -> dict[str, Any]:
    """What a job's record says of the request: everything but the texts, which are the caller's own."""
    return body.model_dump(mode="json", exclude={"pairs", "positive", "negative", "describe"}, exclude_unset=True)
