"""ConceptVector <-> safetensors bytes, and the SHA-256 that identifies them. Bytes from a stranger are checked in full.

A file holds one float32 tensor `layer.<n>` of shape (d_model,) a layer, and one metadata entry (metadata.py). The bytes
that rest in a store leave out name, description and tags, so that those may change while the bytes never do.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from steering.errors import InvalidRequest, LimitExceeded, UnsupportedMediaType, VectorModelMismatch
from steering.shapes import Direction
from steering.store.formats.metadata import METADATA_KEY, VectorMetadata, read_metadata, write_metadata
from steering.store.formats.strict_json import load_json
from steering.store.sql.labels import check_text
from steering.vectors import ConceptVector, LayerDirection, unit

LAYER_LIMIT = 512
UNIT_TOLERANCE = 1e-3
_TENSOR_NAME = re.compile(r"layer\.(0|[1-9][0-9]{0,3})")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_OTHER_FORMATS = (b"PK\x03\x04", b"GGUF", b"\x93NUMPY", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True, slots=True)
class FileLimits:
    """Sizes in bytes: of the file, and of the metadata inside its header."""

    file: int
    metadata: int

    @property
    def header(self) -> int:
        """Metadata is JSON inside JSON, so every quote is escaped; each tensor takes some 100 bytes beside it."""
        return 2 * self.metadata + 160 * LAYER_LIMIT


UPLOAD = FileLimits(file=64 << 20, metadata=64 << 10)
"""What a stranger may send."""
OWN = FileLimits(file=256 << 20, metadata=8 << 20)
"""What a store writes: a quality card of many layers is larger than a stranger may send."""


def encode(vector: ConceptVector, *, labels: bool = True) -> bytes:
    """The file to hand out; with `labels=False` the bytes that are stored and digested. Equal content, equal bytes.

    Raises InvalidRequest for directions that are not float32 unit vectors or metadata JSON cannot hold,
    LimitExceeded beyond OWN.
    """
    if len(vector.layers) > LAYER_LIMIT:
        raise LimitExceeded(f"{len(vector.layers)} layers given; a vector has at most {LAYER_LIMIT}", param="layers")
    tensors = {f"layer.{layer}": _resting(layer, entry.direction) for layer, entry in vector.layers.items()}
    text = write_metadata(vector, labels)
    # One metadata entry only: the order of several is the library's affair, and the digest hangs on it.
    content = bytes(save(tensors, metadata={METADATA_KEY: text}))
    if len(text) > OWN.metadata or len(content) > OWN.file:
        raise LimitExceeded(
            f"the vector takes {len(content)} bytes, {len(text)} of them metadata; "
            f"at most {OWN.file} and {OWN.metadata} are kept",
            param="vector",
        )
    return content


def digest(content: bytes) -> str:
    """SHA-256 in lower-case hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def decode(
    content: bytes,
    *,
    name: str | None = None,
    model: str | None = None,
    model_fingerprint: str = "",
    limits: FileLimits = UPLOAD,
) -> ConceptVector:
    """The vector in a file that may come from a stranger. `name` overrides the one inside.

    A bare file (tensors `layer.<n>` without our metadata) is read only when `model` says whose directions they are;
    each direction's length becomes its natural scale. Half-precision directions are made unit length again in float32.
    Raises UnsupportedMediaType for other formats, LimitExceeded, VectorModelMismatch for shapes, else InvalidRequest.
    """
    header = _read_header(content, limits)
    text = _read_metadata_entry(header, limits)
    directions = _read_tensors(content, header)
    if text is None:
        if model is None or name is None:
            raise InvalidRequest(f"the file has no {METADATA_KEY!r} metadata to say what it is", param="metadata")
        return _bare_vector(name, model, model_fingerprint, directions)
    return _vector(name, read_metadata(text), directions)


def _resting(layer: int, direction: Direction) -> Direction:
    """direction (d_model,) as it is written: on the CPU, its own memory; the numbers are not touched."""
    if direction.dtype != torch.float32:
        raise InvalidRequest(
            f"layer {layer}: directions are kept in float32, got {direction.dtype}", param="directions"
        )
    _check_unit(layer, float(direction.detach().norm()))
    return direction.detach().cpu().clone(memory_format=torch.contiguous_format)


def _check_unit(layer: int, length: float) -> None:
    if not math.isclose(length, 1.0, abs_tol=UNIT_TOLERANCE):
        raise InvalidRequest(
            f"layer {layer}: a direction is finite and of unit length (its length belongs in scale), got {length:g}",
            param="directions",
        )


def _read_header(content: bytes, limits: FileLimits) -> dict[str, Any]:
    if len(content) > limits.file:
        raise LimitExceeded(f"the file has {len(content)} bytes; at most {limits.file} are read", param="file")
    if content.startswith(_OTHER_FORMATS) or content[8:9] != b"{":
        raise UnsupportedMediaType("expected one safetensors file; pickle, zip, NumPy and GGUF are not read")
    length = int.from_bytes(content[:8], "little")
    if length > limits.header:
        raise LimitExceeded(f"the header has {length} bytes; at most {limits.header} are read", param="header")
    if 8 + length > len(content):
        raise InvalidRequest("the file ends inside its header", param="file")
    try:
        text = content[8 : 8 + length].decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest("the header is not UTF-8", param="header") from error
    header = load_json(text, "header")
    if not isinstance(header, dict):  # a first "{" and valid JSON make an object, so this cannot be
        raise InvalidRequest("the header is not an object", param="header")
    return header


def _read_metadata_entry(header: Mapping[str, Any], limits: FileLimits) -> str | None:
    """Our metadata text, None in a bare file. Other entries may stand in a bare file only."""
    entries = header.get("__metadata__", {})
    if not isinstance(entries, dict) or not all(isinstance(value, str) for value in entries.values()):
        raise InvalidRequest("__metadata__ must map texts to texts", param="metadata")
    size = sum(len(key.encode()) + len(value.encode()) for key, value in entries.items())
    if size > limits.metadata:
        raise LimitExceeded(f"the metadata has {size} bytes; at most {limits.metadata} are read", param="metadata")
    text: str | None = entries.get(METADATA_KEY)
    if text is not None and len(entries) > 1:
        raise InvalidRequest(f"metadata beside {METADATA_KEY!r} is not kept, so it is refused", param="metadata")
    return text


def _read_tensors(content: bytes, header: Mapping[str, Any]) -> dict[int, Direction]:
    """Layer -> values (d_model,) as stored. Judged by what the library loaded, not by what the header claims."""
    names = [name for name in header if name != "__metadata__"]
    if len(names) > LAYER_LIMIT:
        raise LimitExceeded(f"{len(names)} tensors given; a vector has at most {LAYER_LIMIT}", param="directions")
    for name in names:
        if not _TENSOR_NAME.fullmatch(name):
            raise InvalidRequest(
                f"tensor {name[:80]!r} is not expected; names are 'layer.<n>', n a zero-based layer", param="directions"
            )
    try:
        tensors = load(content)
    except (SafetensorError, KeyError, ValueError, RuntimeError, OverflowError) as error:
        raise InvalidRequest("the file is damaged: its tensors cannot be read", param="file") from error
    directions = {int(name.partition(".")[2]): tensor for name, tensor in tensors.items()}
    if not directions:
        raise InvalidRequest("the file holds no direction: tensors are named 'layer.<n>'", param="directions")
    for layer, values in directions.items():
        if values.dtype not in _DTYPES:
            raise InvalidRequest(
                f"layer {layer} is {values.dtype}; float32, float16 and bfloat16 are read", param="directions"
            )
        if values.ndim != 1:  # whether the numbers are finite shows in their length, later
            raise VectorModelMismatch(
                f"layer {layer} has shape {tuple(values.shape)}, expected (d_model,)", param="directions"
            )
    return directions


def _bare_vector(name: str, model: str, model_fingerprint: str, directions: dict[int, Direction]) -> ConceptVector:
    check_text(model, "model", 512)
    layers = {layer: LayerDirection(*unit(values, layer)) for layer, values in sorted(directions.items())}
    d_model = next(iter(layers.values())).direction.shape[0]
    return ConceptVector(name, model, model_fingerprint, d_model, "import", layers)


def _vector(name: str | None, said: VectorMetadata, directions: dict[int, Direction]) -> ConceptVector:
    if {str(layer) for layer in directions} != set(said.layers):
        raise InvalidRequest("the layers of the metadata are not those of the tensors", param="metadata")
    if name is None and said.labels is None:
        raise InvalidRequest("neither the file nor the request names the vector", param="name")
    layers = {}
    for layer, values in sorted(directions.items()):
        if tuple(values.shape) != (said.d_model,):
            raise VectorModelMismatch(
                f"layer {layer} has shape {tuple(values.shape)}, expected ({said.d_model},)", param="directions"
            )
        numbers = said.layers[str(layer)]
        direction = values if values.dtype == torch.float32 else unit(values, layer)[0]
        _check_unit(layer, float(direction.norm()))
        layers[layer] = LayerDirection(
            direction, numbers.scale, numbers.positive_mean, numbers.negative_mean, numbers.weight, numbers.bias
        )
    labels = said.labels
    return ConceptVector(
        name=name if name is not None else (labels.name if labels else ""),
        model=said.model,
        model_fingerprint=said.model_fingerprint,
        d_model=said.d_model,
        method=said.method,
        layers=layers,
        description=labels.description if labels else "",
        tags=labels.tags if labels else (),
        recommended=said.recommended,
        quality=said.quality,
        provenance=said.provenance,
    )
