"""Vectors in and out as files, and beside each other."""

from collections.abc import Callable, Mapping
from statistics import fmean

from starlette.responses import Response

from app.services.gguf_export import control_vector
from app.services.responses import vector_export
from steering.errors import InvalidRequest, UnsupportedParameter, VectorModelMismatch
from steering.layer_indices import layer_index
from steering.model.info import ModelInfo
from steering.plan.layers import check_model
from steering.schemas.base import by_layer
from steering.schemas.vectors import SimilarAnswer, SimilarVector
from steering.store.base import Store, VectorFilter
from steering.store.formats.blob import decode, encode
from steering.vectors import ConceptVector, cosine

_PAGE = 100


def import_file(content: bytes, name: str | None, info: ModelInfo) -> ConceptVector:
    """The vector in a safetensors file, for the loaded model. Raises what `decode` raises, VectorModelMismatch."""
    vector = decode(content, name=name, model=info.name, model_fingerprint=info.fingerprint)
    check_model(vector, info)
    for layer in vector.layers:
        layer_index(layer, info.layer_count, param="vector", error=VectorModelMismatch)
    return vector


def export_file(vector: ConceptVector, form: str, layers: str | None) -> Response:
    """The vector as one file. Raises UnsupportedParameter for a format that is not offered, InvalidRequest for `layers`
    where they cannot be chosen or the vector has none such."""
    writers: Mapping[str, Callable[[], bytes]] = {
        "safetensors": lambda: encode(vector),
        "gguf": lambda: _control_vector(vector, layers or "recommended"),
        "json": lambda: vector_export(vector).model_dump_json().encode(),
    }
    if form not in writers:
        raise UnsupportedParameter("format must be 'safetensors', 'gguf' or 'json'", param="format")
    if layers is not None and form != "gguf":
        raise InvalidRequest(f"layers are chosen for format 'gguf' only; {form} holds them all", param="layers")
    return Response(
        writers[form](),
        media_type="application/json" if form == "json" else "application/octet-stream",
        headers={"Content-Disposition": f'attachment; filename="{vector.name}-{vector.version}.{form}"'},
    )


def _control_vector(vector: ConceptVector, layers: str) -> bytes:
    """A llama.cpp control vector. Layer 0, for which llama.cpp has no place, is left out unless it was named."""
    if layers in ("all", "recommended"):
        known = vector.layers if layers == "all" else vector.recommended_layers()
        chosen = [layer for layer in known if layer > 0]
    else:
        chosen = [int(layer) for layer in layers.split(",")]
    missing = sorted(set(chosen) - set(vector.layers))
    if missing:
        raise InvalidRequest(f"{vector.id} has layers {sorted(vector.layers)}, not {missing}", param="layers")
    entries = {layer: vector.layers[layer] for layer in chosen}
    directions = {layer: entry.direction.tolist() for layer, entry in entries.items()}
    return control_vector(directions, {layer: entry.scale for layer, entry in entries.items()}, vector.model)


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
