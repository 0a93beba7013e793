"""Converts a ConceptVector to safetensors bytes and back, and computes their SHA-256. Untrusted bytes are checked in full.
A file contains one float32 tensor `layer.<n>` of shape (d_model,) per layer, for a layer with a map also `layer.<n>.read` and
`layer.<n>.write` (rank, d_model) and `layer.<n>.bias` (rank,), and one metadata entry, which is written canonically. Stored bytes leave out name, description and tags, so that those may change while the bytes never do."""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from steering.cards import MapForm, QualityCard, Recommended
from steering.errors import InvalidRequest, LimitExceeded, UnsupportedFormat, VectorModelMismatch
from steering.maps import LowRankMap
from steering.schemas.vectors import MAX_METADATA_BYTES
from steering.shapes import Direction, Tensor
from steering.spec import LayerKey
from steering.store.records import check_labels, check_text, values_of
from steering.strict_json import dump_json, load_json
from steering.vectors import SCALES, ConceptVector, LayerDirection, LayerNumbers, check_name, unit

FORMAT = 1
METADATA_KEY = "steering_vector"
LAYER_LIMIT = 512
UNIT_TOLERANCE = MEANS_TOLERANCE = 1e-3
_PARTS = {"": 1, "read": 2, "write": 2, "bias": 1}
"""What a layer may have, `layer.<n>` and `layer.<n>.<part>`, with its number of dimensions."""
_TENSOR_NAME = re.compile(r"layer\.(0|[1-9][0-9]{0,3})(?:\.(read|write|bias))?")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_OTHER_FORMATS = (b"PK\x03\x04", b"GGUF", b"\x93NUMPY", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True, slots=True)
class FileLimits:
    """Sizes in bytes: of the file, and of the metadata inside its header."""

    file: int
    metadata: int

    @property
    def header(self) -> int:
        """Metadata is JSON inside JSON, so every quote is escaped; each tensor takes about 100 bytes more."""
        return 2 * self.metadata + 160 * LAYER_LIMIT * len(_PARTS)


UPLOAD = FileLimits(file=64 << 20, metadata=MAX_METADATA_BYTES)
"""Limits of an uploaded file."""
OWN = FileLimits(file=256 << 20, metadata=8 << 20)
"""Limits of a stored file: a quality card of many layers is larger than an upload may be."""


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
    layers = dict[str, dict[str, Any]]()
    for layer, entry in vector.layers.items():
        values = values_of(entry, LayerNumbers)
        found = values.pop("map")
        layers[str(layer)] = {name: float(number) for name, number in values.items() if number is not None}
        if found is not None:  # so that files without maps stay the same
            layers[str(layer)]["map"] = {"rank": found.rank, "activation": found.activation}
    fields: dict[str, Any] = {
        "format": FORMAT,
        "model": vector.model,
        "model_fingerprint": vector.model_fingerprint,
        "d_model": vector.d_model,
        "method": vector.method,
        "layers": layers,
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
    """Reads metadata that `read_metadata` has accepted before: only its fields are checked. Raises InvalidRequest."""
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


def check_imported(vector: ConceptVector) -> None:
    """Raises InvalidRequest for class means and probes beyond float32, and for class means that contradict the scale.

    Every vector that the server makes has no class means, or both, exactly its scale apart. Stored vectors are not checked,
    because earlier versions imported others.
    """
    for layer, entry in vector.layers.items():
        for name in ("positive_mean", "negative_mean", "weight", "bias"):
            number = getattr(entry, name)
            if number is not None and abs(number) > SCALES.max:
                raise InvalidRequest(
                    f"layer {layer}: {name} must lie between {-SCALES.max:.2g} and {SCALES.max:.2g}, got {number:g}",
                    param="metadata",
                )
        high, low = entry.positive_mean, entry.negative_mean
        apart = entry.scale if high is None or low is None else high - low
        rounded = SCALES.eps * (abs(high or 0.0) + abs(low or 0.0))  # what float32 leaves of means far from the origin
        if (high is None) != (low is None) or not math.isclose(
            apart, entry.scale, rel_tol=MEANS_TOLERANCE, abs_tol=rounded
        ):
            raise InvalidRequest(
                f"layer {layer}: positive_mean and negative_mean must be the scale of {entry.scale:g} apart, or absent; "
                f"got {high} and {low}",
                param="metadata",
            )


def encode(vector: ConceptVector, *, labels: bool = True) -> bytes:
    """Returns the file to export; with `labels=False` the bytes that are stored and hashed. Equal content gives equal bytes.
    Raises InvalidRequest for directions that are not float32 unit vectors or metadata JSON cannot hold, LimitExceeded."""
    if len(vector.layers) > LAYER_LIMIT:
        raise LimitExceeded(f"{len(vector.layers)} layers given; a vector has at most {LAYER_LIMIT}", param="layers")
    tensors = {f"layer.{layer}": _writable(layer, entry.direction) for layer, entry in vector.layers.items()}
    for layer, entry in vector.layers.items():
        if entry.map is not None:
            parts = {"read": entry.map.read, "write": entry.map.write, "bias": entry.map.bias}
            tensors |= {f"layer.{layer}.{part}": _in_own_memory(values) for part, values in parts.items()}
    text = write_metadata(vector, labels)
    # One metadata entry only: safetensors decides the order of several, and the digest depends on it.
    content = bytes(save(tensors, metadata={METADATA_KEY: text}))
    if len(text) > OWN.metadata or len(content) > OWN.file:
        raise LimitExceeded(
            f"the vector takes {len(content)} bytes, {len(text)} of them metadata; "
            f"at most {OWN.file} and {OWN.metadata} are stored",
            param="vector",
        )
    return content


def digest(content: bytes) -> str:
    """Returns the SHA-256 in lower-case hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def decode(
    content: bytes,
    *,
    name: str | None = None,
    model: str | None = None,
    model_fingerprint: str = "",
    limits: FileLimits = UPLOAD,
) -> ConceptVector:
    """Reads the vector in an untrusted file; `name` overrides the one inside. A bare file, without our metadata, needs
    `model`; lengths become natural scales, maps are linear and give missing directions. Raises UnsupportedFormat,
    LimitExceeded, VectorModelMismatch, InvalidRequest."""
    header = _read_header(content, limits)
    text = _read_metadata_entry(header, limits)
    stored = _read_tensors(content, header)
    if text is None:
        if model is None or name is None:
            raise InvalidRequest(f"the file has no {METADATA_KEY!r} metadata to say what it is", param="metadata")
        return _bare_vector(name, model, model_fingerprint, stored)
    return _vector(name, read_metadata(text), stored)


def _writable(layer: int, direction: Direction) -> Direction:
    """Returns the direction (d_model,) as it is written: on the CPU, in its own memory, with unchanged numbers."""
    if direction.dtype != torch.float32:
        raise InvalidRequest(
            f"layer {layer}: directions are stored in float32, got {direction.dtype}", param="directions"
        )
    _check_unit(layer, float(direction.detach().norm()))
    return _in_own_memory(direction)


def _in_own_memory(values: Tensor) -> Tensor:
    return values.detach().cpu().clone(memory_format=torch.contiguous_format)


def _check_unit(layer: int, length: float) -> None:
    if not math.isclose(length, 1.0, abs_tol=UNIT_TOLERANCE):
        raise InvalidRequest(
            f"layer {layer}: a direction must be finite and of unit length (its length belongs in scale), got {length:g}",
            param="directions",
        )


def _read_header(content: bytes, limits: FileLimits) -> dict[str, Any]:
    if len(content) > limits.file:
        raise LimitExceeded(f"the file has {len(content)} bytes; at most {limits.file} are read", param="file")
    length = int.from_bytes(content[:8], "little")
    # The length's first byte may equal another format's first byte (128: pickle), so both must speak against the file.
    if content[8:9] != b"{" or (content.startswith(_OTHER_FORMATS) and length > limits.header):
        raise UnsupportedFormat("expected one safetensors file; pickle, zip, NumPy and GGUF are not read")
    if length > limits.header:
        raise LimitExceeded(f"the header has {length} bytes; at most {limits.header} are read", param="header")
    if 8 + length > len(content):
        raise InvalidRequest("the file ends inside its header", param="file")
    try:
        text = content[8 : 8 + length].decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest("the header is not UTF-8", param="header") from error
    header: dict[str, Any] = load_json(text, "the header", param="header")  # an object, because it begins with "{"
    return header


def _read_metadata_entry(header: Mapping[str, Any], limits: FileLimits) -> str | None:
    """Returns our metadata text, None in a bare file. Other entries are allowed in a bare file only."""
    entries = header.get("__metadata__", {})
    if not isinstance(entries, dict) or not all(isinstance(value, str) for value in entries.values()):
        raise InvalidRequest("__metadata__ must map texts to texts", param="metadata")
    size = sum(len(key.encode()) + len(value.encode()) for key, value in entries.items())
    if size > limits.metadata:
        raise LimitExceeded(f"the metadata has {size} bytes; at most {limits.metadata} are read", param="metadata")
    text: str | None = entries.get(METADATA_KEY)
    if text is not None and len(entries) > 1:
        raise InvalidRequest(f"the file has metadata besides {METADATA_KEY!r}, which would be lost", param="metadata")
    return text


Layers: TypeAlias = dict[int, dict[str, Tensor]]
"""Layer -> part (`""` is the direction) -> values, as stored."""


def _read_tensors(content: bytes, header: Mapping[str, Any]) -> Layers:
    """Returns the tensors as stored. Checks what safetensors loaded, not what the header claims."""
    names = [name for name in header if name != "__metadata__"]
    if len(names) > len(_PARTS) * LAYER_LIMIT:
        raise LimitExceeded(
            f"{len(names)} tensors given; a vector has at most {LAYER_LIMIT} layers of {len(_PARTS)}",
            param="directions",
        )
    for name in names:
        if not _TENSOR_NAME.fullmatch(name):
            raise InvalidRequest(
                f"tensor {name[:80]!r} is not expected; names are 'layer.<n>', n a zero-based layer, and of its map "
                "'layer.<n>.read', 'layer.<n>.write', 'layer.<n>.bias'",
                param="directions",
            )
    try:
        tensors = load(content)
    except (SafetensorError, KeyError, ValueError, RuntimeError, OverflowError) as error:
        raise InvalidRequest("the file is damaged: its tensors cannot be read", param="file") from error
    layers: Layers = {}
    for name, values in tensors.items():
        _, layer, part = (*name.split("."), "")[:3]
        if values.dtype not in _DTYPES:
            raise InvalidRequest(
                f"layer {layer} is {values.dtype}; float32, float16 and bfloat16 are read", param="directions"
            )
        # the checks of vectors and maps find other sizes, and numbers that are not finite
        if values.ndim != _PARTS[part]:
            wanted = "(rank, d_model)" if part in ("read", "write") else "(rank,)" if part else "(d_model,)"
            raise VectorModelMismatch(f"{name} has shape {tuple(values.shape)}, expected {wanted}", param="directions")
        layers.setdefault(int(layer), {})[part] = values
    if not layers:
        raise InvalidRequest("the file contains no direction: tensors are named 'layer.<n>'", param="directions")
    if len(layers) > LAYER_LIMIT:
        raise LimitExceeded(f"{len(layers)} layers given; a vector has at most {LAYER_LIMIT}", param="directions")
    for layer, parts in sorted(layers.items()):
        if "" not in parts and not {"read", "write"} <= set(parts):
            raise InvalidRequest(
                f"the file has no tensor 'layer.{layer}', and no map to take it from", param="directions"
            )
    return layers


def _map_of(layer: int, parts: Mapping[str, Tensor], form: MapForm | None) -> LowRankMap | None:
    """Returns the map of a layer in a file, if it has one. form: what the metadata says of it; None in a bare file: linear."""
    given = sorted(set(parts) - {""})
    if not given and form is None:
        return None
    if not {"read", "write"} <= set(given):
        raise InvalidRequest(
            f"layer {layer}: a map has the tensors 'read', 'write' and 'bias', the file has {given or 'none'}",
            param="maps",
        )
    found = LowRankMap.of(
        parts["read"], parts["write"], parts.get("bias"), "linear" if form is None else form.activation
    )
    found.check(layer, found.write.shape[1])
    if form is not None and form.rank != found.rank:
        raise InvalidRequest(
            f"layer {layer}: the map has rank {found.rank}, the metadata says {form.rank}", param="metadata"
        )
    return found


def _bare_vector(name: str, model: str, model_fingerprint: str, stored: Layers) -> ConceptVector:
    check_text(model, "model", 512)
    layers = {}
    for layer, parts in sorted(stored.items()):
        found = _map_of(layer, parts, None)
        direction, scale = unit(parts[""] if found is None or "" in parts else found.direction(), layer)
        layers[layer] = LayerDirection(direction, scale=scale, map=found)
    d_model = next(iter(layers.values())).direction.shape[0]
    return ConceptVector(name, model, model_fingerprint, d_model, "import", layers)


def _vector(name: str | None, metadata: VectorMetadata, stored: Layers) -> ConceptVector:
    if {str(layer) for layer in stored} != set(metadata.layers):
        raise InvalidRequest("the layers of the metadata are not those of the tensors", param="metadata")
    if name is None and metadata.labels is None:
        raise InvalidRequest("neither the file nor the request names the vector", param="name")
    layers = {}
    for layer, parts in sorted(stored.items()):
        numbers, values = metadata.layers[str(layer)], parts.get("")
        if values is None:
            raise InvalidRequest(f"the file has no tensor 'layer.{layer}'", param="directions")
        if tuple(values.shape) != (metadata.d_model,):
            raise VectorModelMismatch(
                f"layer {layer} has shape {tuple(values.shape)}, expected ({metadata.d_model},)", param="directions"
            )
        if numbers.map is None and len(parts) > 1:
            raise InvalidRequest(f"layer {layer} has a map that the metadata does not name", param="metadata")
        direction = values if values.dtype == torch.float32 else unit(values, layer)[0]
        _check_unit(layer, float(direction.norm()))
        fields = {**values_of(numbers, LayerNumbers), "map": _map_of(layer, parts, numbers.map)}
        layers[layer] = LayerDirection(direction, **fields)
    labels = metadata.labels or Labels("")
    return ConceptVector(
        name=labels.name if name is None else name,
        layers=layers,
        description=labels.description,
        tags=labels.tags,
        **metadata.shared_fields(),
    )
