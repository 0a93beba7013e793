"""Directions out of files of other tools: the decoder row of a SAELens dictionary, and plain JSON. Read here, never by the server."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from steering.errors import InvalidRequest
from steering.schemas.base import Number
from steering.schemas.vectors import LayerKey, RegisterRequest, VectorExport

LARGEST_JSON = 256 << 20
"""Bytes of a JSON file that are read."""
_HOOK = re.compile(r"blocks\.(\d{1,4})\.hook_resid_(pre|post)")
_WIDE = {"F32": np.float32, "F16": np.float16, "F64": np.float64}
_NUMBERS: TypeAdapter[list[float]] = TypeAdapter(Annotated[list[Number], Field(min_length=1)])
_LAYERS: TypeAdapter[dict[str, list[float]]] = TypeAdapter(dict[LayerKey, list[Number]])


@dataclass(frozen=True, slots=True)
class GivenDirections:
    """What a vector is registered from. directions: (d_model,) by layer; scale None: the length of each as it stands."""

    directions: Mapping[str, Sequence[float]]
    scale: Mapping[str, float] | None = None
    name: str | None = None
    description: str = ""
    tags: tuple[str, ...] = ()


def decoder_row(weights: Path, config: Path, feature: int, layer: int | None) -> GivenDirections:
    """Row `feature` of `W_dec` (feature, d_model), at the layer that the hook in SAELens's configuration names, or `layer`.

    A hook before block L reads what block L - 1 left, so `hook_resid_pre` of L is our layer L - 1. Raises InvalidRequest
    for a feature or tensor that is not there, and for a hook that is not on the residual stream where no layer is given.
    """
    said = _json(config) if config.exists() or layer is None else {}
    if not isinstance(said, dict):
        raise InvalidRequest(f"{config.name} is no configuration of SAELens: expected an object", param="config")
    metadata = said["metadata"] if isinstance(said.get("metadata"), dict) else said
    hook = str(metadata.get("hook_name", metadata.get("hook_point", "")))
    row = _row(weights, feature)
    at = _layer_of(hook, config) if layer is None else layer
    source = ", ".join(part for part in (hook, str(metadata.get("model_name", ""))) if part)
    description = f"SAE feature {feature}" + (f" of {source}" if source else "")
    return GivenDirections({str(at): row}, description=description[:4096], tags=("saelens",))


def _layer_of(hook: str, config: Path) -> int:
    found = _HOOK.fullmatch(hook)
    if found is None:
        raise InvalidRequest(
            f"{config.name} names the hook {hook[:80]!r}, which is not the residual stream beside a block "
            "(blocks.<n>.hook_resid_pre or hook_resid_post); name the layer yourself",
            param="layer",
        )
    block = int(found[1]) - (found[2] == "pre")
    if block < 0:
        raise InvalidRequest(f"{hook} is the input of the first block; there is no layer before it", param="layer")
    return block


def _row(weights: Path, feature: int) -> list[float]:
    try:
        with safe_open(weights, framework="numpy") as tensors:
            if "W_dec" not in tensors.keys():  # noqa: SIM118 - it is no mapping
                raise InvalidRequest(f"{weights.name} holds no tensor W_dec", param="file")
            rows = tensors.get_slice("W_dec")
            shape, kind = rows.get_shape(), rows.get_dtype()
            if len(shape) != 2 or kind not in _WIDE:
                raise InvalidRequest(
                    f"W_dec must be (feature, d_model) in {', '.join(sorted(_WIDE))}; it is {shape} in {kind}",
                    param="file",
                )
            if not 0 <= feature < shape[0]:
                raise InvalidRequest(f"there are features 0 to {shape[0] - 1}, not {feature}", param="feature")
            values: list[float] = np.asarray(rows[feature], dtype=np.float64).reshape(-1).tolist()
    except SafetensorError as error:
        raise InvalidRequest(f"{weights.name} is no safetensors file: {error}", param="file") from None
    return values


def plain(file: Path, layer: int | None) -> GivenDirections:
    """`[numbers]` with a layer given; `{"12": [numbers]}`; or an object with `directions`, as the server exports it.

    Raises InvalidRequest for anything else, with the place that is wrong.
    """
    value = _json(file)
    try:
        if isinstance(value, list):
            if layer is None:
                raise InvalidRequest(f"{file.name} is one list of numbers; name its layer", param="layer")
            return GivenDirections({str(layer): _NUMBERS.validate_python(value)})
        if layer is not None:
            raise InvalidRequest(f"{file.name} names its layers itself", param="layer")
        if isinstance(value, dict) and "directions" in value:
            return _exported(value)
        return GivenDirections(_LAYERS.validate_python(value))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise InvalidRequest(f"{file.name}: {place[:80]}: {first['msg']}", param="file") from None


def _exported(value: dict[str, Any]) -> GivenDirections:
    """Directions, scales and words; a card and how the vector was made only travel in a safetensors file."""
    unknown = set(value) - set(VectorExport.model_fields)
    if unknown:
        raise InvalidRequest(f"unknown keys {sorted(unknown)[:5]} beside 'directions'", param="file")
    words = {key: value[key] for key in RegisterRequest.model_fields if key in value}
    read = RegisterRequest.model_validate({"name": "unnamed", **words})
    return GivenDirections(
        read.directions, read.scale, read.name if "name" in value else None, read.description, read.tags
    )


def _json(file: Path) -> Any:
    if not file.exists():
        raise InvalidRequest(f"there is no {file.name} beside the weights; name it, or the layer", param="config")
    if file.stat().st_size > LARGEST_JSON:
        raise InvalidRequest(f"{file.name} is larger than {LARGEST_JSON >> 20} MB", param="file")
    try:
        return json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:  # no text, no JSON, a key twice, a number that is not finite
        raise InvalidRequest(f"{file.name} is not valid JSON: {error}", param="file") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key is given twice")
    return entries


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not finite")
