"""Metadata in the header of a vector file: written canonically, read as untrusted input."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from steering.errors import InvalidRequest
from steering.quality import QualityCard, Recommended
from steering.spec_base import LayerKey
from steering.store.rules import check_labels, check_text, values_of
from steering.strict_json import dump_json, load_json
from steering.vectors import ConceptVector, LayerNumbers, check_name

FORMAT = 1
METADATA_KEY = "steering_vector"


@dataclass(frozen=True, slots=True)
class Labels:
    """What is known about a vector and may change later. Travels with an exported file, never inside the digest."""

    name: str
    description: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VectorMetadata:
    """Everything of a ConceptVector except tensors, version and dates."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    format: Literal[1]
    model: str
    model_fingerprint: str
    d_model: Annotated[int, Field(gt=0)]
    method: str
    layers: dict[LayerKey, LayerNumbers]
    recommended: Recommended | None = None
    quality: QualityCard | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    labels: Labels | None = None

    def shared_fields(self) -> dict[str, Any]:
        """Returns the fields that ConceptVector and VectorSummary have too, except the layers."""
        values = values_of(self, VectorMetadata)
        return {name: value for name, value in values.items() if name not in ("format", "layers", "labels")}


_ADAPTER = TypeAdapter(VectorMetadata)


def write_metadata(vector: ConceptVector, labels: bool) -> str:
    """Writes canonical JSON: equal content gives equal text. Without `labels` it leaves out name, description and tags."""
    fields: dict[str, Any] = {
        "format": FORMAT,
        "model": vector.model,
        "model_fingerprint": vector.model_fingerprint,
        "d_model": vector.d_model,
        "method": vector.method,
        "layers": {
            str(layer): {name: float(one) for name, one in values_of(entry, LayerNumbers).items() if one is not None}
            for layer, entry in vector.layers.items()
        },
        "recommended": None if vector.recommended is None else asdict(vector.recommended),
        "quality": None if vector.quality is None else vector.quality.to_dict(),
        "provenance": dict(vector.provenance),
    }
    if labels:
        fields["labels"] = {"name": vector.name, "description": vector.description, "tags": list(vector.tags)}
    return dump_json(fields, "metadata")


def read_metadata(text: str) -> VectorMetadata:
    """Reads metadata of a file. Raises InvalidRequest naming the field that does not fit."""
    # Refuses what pydantic lets pass: duplicate keys, surrogates, depth, NaN inside provenance.
    load_json(text, "the metadata", param="metadata")
    fields = read_stored_metadata(text)
    check_text(fields.model, "model", 512)
    check_text(fields.model_fingerprint, "model_fingerprint", 512)
    check_name(fields.method, "method")
    _check_recommended(fields.recommended, fields.layers)
    if fields.labels is not None:
        check_name(fields.labels.name)
        check_labels(fields.labels.description, fields.labels.tags)
    return fields


def read_stored_metadata(text: str) -> VectorMetadata:
    """Reads metadata that `read_metadata` has accepted when it was stored: only its fields are checked again, in compiled code.

    Raises InvalidRequest naming the field that does not fit.
    """
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(str(part)[:40] for part in first["loc"][:6])
        raise InvalidRequest(f"metadata field {place!r}: {first['msg'][:200]}", param="metadata") from error


def _check_recommended(recommended: Recommended | None, layers: Mapping[str, LayerNumbers]) -> None:
    if recommended is None:
        return
    missing = [layer for layer in recommended.layers if str(layer) not in layers]
    if missing or not recommended.layers:
        raise InvalidRequest(f"metadata recommends layers {missing}, which the vector does not have", param="metadata")
    for ends in (recommended.strength, recommended.negative, recommended.strengths_to_try):
        if ends is not None and ends[0] > ends[1]:
            raise InvalidRequest("metadata recommends a strength range whose end is below its start", param="metadata")
