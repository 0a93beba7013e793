"""Imports and exports vectors as files, and compares them with each other."""

from collections.abc import Callable, Mapping

from starlette.responses import Response

from app.gguf_format import write_control_vector
from app.services.resources import vector_export
from steering.errors import InvalidRequest, UnsupportedParameter, VectorModelMismatch
from steering.layer_indices import layer_index
from steering.model.info import ModelInfo
from steering.plan.layers import check_model
from steering.store.formats.blob import decode, encode
from steering.vectors import ConceptVector
from steering.workflows.extraction.make import with_recommendation


def file_bytes(vector: ConceptVector) -> int:
    """Returns the memory of writing a vector as text: a Python float and about 20 characters for each number."""
    return len(vector.layers) * vector.d_model * 64


def import_file(content: bytes, name: str | None, info: ModelInfo) -> ConceptVector:
    """Reads the vector in a safetensors file, for the loaded model. Raises what `decode` raises, VectorModelMismatch."""
    vector = decode(content, name=name, model=info.name, model_fingerprint=info.fingerprint)
    check_model(vector, info)
    for layer in vector.layers:
        layer_index(layer, info.layer_count, param="vector", error=VectorModelMismatch)
    return with_recommendation(vector, info)


def export_file(vector: ConceptVector, form: str, layers: str | None) -> Response:
    """Returns the vector as one file. Raises UnsupportedParameter for an unknown format, InvalidRequest for `layers` that
    cannot be chosen in this format or that the vector lacks."""
    writers: Mapping[str, Callable[[], bytes]] = {
        "safetensors": lambda: encode(vector),
        "gguf": lambda: _control_vector(vector, layers or "recommended"),
        "json": lambda: vector_export(vector).model_dump_json().encode(),
    }
    if form not in writers:
        raise UnsupportedParameter(f"format must be 'safetensors', 'gguf' or 'json', got {form[:40]!r}", param="format")
    if layers is not None and form != "gguf":
        raise InvalidRequest(
            f"layers can be chosen for format 'gguf' only; {form} contains all of them", param="layers"
        )
    return Response(
        writers[form](),
        media_type="application/json" if form == "json" else "application/octet-stream",
        headers={"Content-Disposition": f'attachment; filename="{vector.name}-{vector.version}.{form}"'},
    )


def _control_vector(vector: ConceptVector, layers: str) -> bytes:
    """Returns a llama.cpp control vector. Layer 0, which llama.cpp cannot steer, is left out unless it was named."""
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
    return write_control_vector(directions, {layer: entry.scale for layer, entry in entries.items()}, vector.model)
