"""One way in for every method: those of the table, which are arithmetic on activations, and training, which needs the model."""

from steering.engine.api import Engine, SupportsFitting, fitting_of
from steering.errors import InvalidRequest
from steering.extraction import METHODS
from steering.vectors import ConceptVector
from steering.workflows.extraction.extract import ExtractionRequest, extract
from steering.workflows.progress import Progress
from steering.workflows.training.train import TRAINED, TrainingSettings, train

METHOD_NAMES = (*METHODS, TRAINED)
"""Every name that `method` may have."""


def methods_of(engine: Engine) -> tuple[str, ...]:
    """Returns the names that `method` may have with this engine."""
    return METHOD_NAMES if isinstance(engine, SupportsFitting) else tuple(METHODS)


def check_method(engine: Engine, method: str, training: TrainingSettings | None = None, *, paired: bool = True) -> None:
    """Raises InvalidRequest for a method that does not exist, training settings for one that is not trained, and unpaired
    texts for one that is; UnsupportedParameter for training with an engine that cannot fit directions."""
    if method not in METHOD_NAMES:
        raise InvalidRequest(f"unknown method {method[:64]!r}; known: {', '.join(METHOD_NAMES)}", param="method")
    if method == TRAINED:
        fitting_of(engine)
    if training is not None and method != TRAINED:
        raise InvalidRequest(f"'training' belongs to method {TRAINED!r}, not to {method!r}", param="training")
    if method == TRAINED and not paired:
        raise InvalidRequest(f"method {TRAINED!r} needs pairs, not two heaps of texts", param="method")


async def make_vector(
    engine: Engine,
    request: ExtractionRequest,
    *,
    training: TrainingSettings | None = None,
    progress: Progress | None = None,
) -> ConceptVector:
    """By `extract` or `train`, whichever the method asks for; see there."""
    check_method(engine, request.method, training)
    if request.method == TRAINED:
        return await train(engine, request, training, progress=progress)
    return await extract(engine, request, progress=progress)
