"""TransferRequest and Transfer: what is carried over, and what was measured."""

from dataclasses import dataclass

from steering.concepts import CONCEPTS
from steering.concepts.loader import load_concept, load_neutral_texts
from steering.engine.api import Engine, Position
from steering.errors import InvalidRequest
from steering.layer_indices import layer_indices
from steering.pairs import PairSet, Text, dataset_digest
from steering.quality import Estimate
from steering.shapes import Direction
from steering.vectors import ConceptVector, LayerDirection, check_name
from steering.workflows.extraction.extract import check_position

MIN_ANCHORS, MAX_ANCHORS = 20, 2_000


@dataclass(frozen=True, slots=True, eq=False)
class TransferRequest:
    """What is carried over. pairs: of the concept; they give the source its direction, unless `direction` is given, and measure the
    result. anchors: texts that both models read; none of the pairs. from_layer, to_layer: None for those that read the pairs best."""

    name: str
    pairs: PairSet
    anchors: tuple[Text, ...]
    direction: Direction | None = None
    from_layer: int | None = None
    to_layer: int | None = None
    position: Position | None = None
    holdout: float = 0.3
    seed: int = 0
    description: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Transfer:
    """The vector in the target model, not yet stored, and what was measured.

    source, native, transferred, random: AUROC on held-out pairs: of the source's direction in the source, and in the target of one
    fitted there, of the carried one, and of random ones. fitted: that native direction, from all pairs. explained: share of the variance of held-out anchors that the map
    explains. cosine: of the carried direction with the native one.
    """

    vector: ConceptVector
    fitted: LayerDirection
    source_model: str
    from_layer: int
    to_layer: int
    anchors: int
    explained: float
    penalty: float
    cosine: float
    source: Estimate | None
    native: Estimate | None
    transferred: Estimate | None
    random: Estimate | None
    warnings: tuple[str, ...] = ()


def default_anchors(pairs: PairSet) -> tuple[Text, ...]:
    """Returns the texts of the starter concepts and neutral statements, without those of the pairs."""
    own = {*pairs.positive, *pairs.negative}
    texts: list[Text] = list(load_neutral_texts())
    for name in CONCEPTS:
        concept = load_concept(name)
        if dataset_digest(concept) != dataset_digest(pairs):
            texts += [text for pair in concept for text in pair]
    return tuple(text for text in dict.fromkeys(texts) if text not in own)[:MAX_ANCHORS]


def check_transfer(request: TransferRequest, target: Engine, source: Engine | None = None) -> None:
    """Raises InvalidRequest for what cannot be carried over. source: None where it is not loaded yet."""
    check_name(request.name)
    if request.position is not None:
        check_position(request.position)
    if not MIN_ANCHORS <= len(request.anchors) <= MAX_ANCHORS:
        raise InvalidRequest(
            f"{len(request.anchors)} anchor texts; a map needs {MIN_ANCHORS} to {MAX_ANCHORS}", param="anchors"
        )
    shared = {*request.pairs.positive, *request.pairs.negative}.intersection(request.anchors)
    if shared:
        raise InvalidRequest(
            f"{len(shared)} anchors are texts of the pairs, on which the loss is measured; leave them out",
            param="anchors",
        )
    if request.to_layer is not None:
        layer_indices((request.to_layer,), target.info.layer_count)
    if request.direction is not None and request.from_layer is None:
        raise InvalidRequest("a given direction needs 'from_layer', where it was found", param="from_layer")
    if source is None:
        return
    if request.from_layer is not None:
        layer_indices((request.from_layer,), source.info.layer_count)
    if request.direction is not None and len(request.direction) != source.info.d_model:
        raise InvalidRequest(
            f"the direction has {len(request.direction)} numbers; {source.info.name} has d_model {source.info.d_model}",
            param="direction",
        )
