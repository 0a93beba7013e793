"""Vectors in and out as files, and beside each other."""

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from starlette.responses import Response

from app.commands import control_vector
from app.schemas.base import by_layer
from app.schemas.vectors import SimilarAnswer, SimilarVector
from steering.errors import UnsupportedParameter, VectorModelMismatch
from steering.layer_choice import check_model
from steering.model.info import ModelInfo
from steering.store.base import Store, VectorFilter
from steering.store.blob import decode, encode
from steering.vectors import ConceptVector, cosine

_PAGE = 100


def import_file(content: bytes, name: str | None, info: ModelInfo) -> ConceptVector:
    """The vector in a safetensors file, for the loaded model. Raises what `decode` raises, VectorModelMismatch."""
    vector = decode(content, name=name, model=info.name, model_fingerprint=info.fingerprint)
    check_model(vector, info)
    beyond = [layer for layer in vector.layers if layer >= info.layer_count]
    if beyond:
        raise VectorModelMismatch(
            f"the vector has layers {beyond}; the model has 0 to {info.layer_count - 1}", param="vector"
        )
    return vector


def export_file(vector: ConceptVector, form: str) -> Response:
    """The vector as one file. Raises UnsupportedParameter for a format that is not offered."""
    writers: Mapping[str, Callable[[ConceptVector], bytes]] = {"safetensors": encode, "gguf": _control_vector}
    if form not in writers:
        raise UnsupportedParameter("format must be 'safetensors', 'gguf' or 'json'", param="format")
    return Response(
        writers[form](vector),
        media_type="application/octet-stream",
        headers={"Content-Disposition": f'attachment; filename="{vector.name}-{vector.version}.{form}"'},
    )


def _control_vector(vector: ConceptVector) -> bytes:
    """A llama.cpp control vector: every layer but 0, for which llama.cpp has no place, at its natural scale."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "vector.gguf"
        scales = {layer: entry.scale for layer, entry in vector.layers.items()}
        directions = {layer: entry.direction.tolist() for layer, entry in vector.layers.items()}
        control_vector.write(path, directions, scales, vector.model)
        return path.read_bytes()


async def similar_vectors(store: Store, vector: ConceptVector) -> SimilarAnswer:
    """Every other vector of the same model, the most similar first by absolute mean cosine over shared layers."""
    found: list[SimilarVector] = []
    cursor: str | None = None
    while True:
        page = await store.vectors.find(VectorFilter(), _PAGE, cursor)
        found.extend(one for other in page.vectors if (one := _similar(vector, other)) is not None)
        cursor = page.next_cursor
        if cursor is None:
            break
    return SimilarAnswer(data=sorted(found, key=lambda one: (-abs(one.mean), one.id)))


def _similar(vector: ConceptVector, other: ConceptVector) -> SimilarVector | None:
    if other.name == vector.name or other.model_fingerprint != vector.model_fingerprint:
        return None
    layers = cosine(vector, other)
    if not layers:
        return None
    return SimilarVector(id=other.id, cosine=by_layer(layers), mean=fmean(layers.values()))
