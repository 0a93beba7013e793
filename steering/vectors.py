"""Defines ConceptVector: one unit direction per layer with natural scale, class means and perhaps a map, card and provenance."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from pydantic import Field

from steering.cards import MapForm, QualityCard, Recommended
from steering.errors import InvalidRequest, VectorModelMismatch, VectorNotFound
from steering.maps import LowRankMap
from steering.shapes import Direction, Float, Tensor
from steering.spec import INLINE_PREFIX, MAX_RANK

SCALES = torch.finfo(torch.float32)
"""Natural scales are divided by and multiplied with in float32; one below its normal numbers is as good as 0."""
_MASK = (1 << 64) - 1
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"


def check_name(name: str, param: str = "name") -> str:
    """Returns the name. Raises InvalidRequest unless it matches NAME_PATTERN, since names are part of URLs."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidRequest(
            f"{name[:80]!r} is not a name: 1 to 64 of a-z, 0-9, '.', '_', '-', starting with a letter or digit",
            param=param,
        )
    return name


@dataclass(frozen=True, slots=True)
class VectorId:
    """`name` (the newest version, version None) or `name@3` (that version)."""

    name: str
    version: int | None = None

    @classmethod
    def parse(cls, text: str, param: str = "vector") -> "VectorId":
        """Parses `name` or `name@version`. Raises InvalidRequest that names `param`."""
        name, at, version = text.partition("@")
        check_name(name, param)
        if not at:
            return cls(name)
        if not (version.isascii() and version.isdigit() and 0 < len(version) <= 9 and int(version) > 0):
            raise InvalidRequest(f"{text[:80]!r}: a version is a positive integer, as in {name}@3", param=param)
        return cls(name, int(version))

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNumbers:
    """The numbers of one layer besides its direction.
    scale: the natural scale kappa, distance between the class means along the direction. positive_mean, negative_mean: the
    class means projected on it, None for given directions. weight, bias: a calibrated probe in residual coordinates,
    sigmoid(weight * (direction . r) + bias), where the method fitted one. kl_positive, kl_negative: how many natural scales, added
    at this layer alone in either direction, change the predictions on neutral text by 1 nat at the 95th percentile of the tokens;
    both above 0, None where that was not calibrated. map: of the map of the layer, where it has one."""

    scale: Annotated[float, Field(gt=0)]
    positive_mean: float | None = None
    negative_mean: float | None = None
    weight: float | None = None
    bias: float | None = None
    kl_positive: Annotated[float, Field(gt=0)] | None = None
    kl_negative: Annotated[float, Field(gt=0)] | None = None
    map: MapForm | None = None

    @property
    def centred(self) -> bool:
        """Whether the class means are known, so that scores are centred between them."""
        return self.positive_mean is not None and self.negative_mean is not None

    @property
    def middle(self) -> float:
        """The middle of the class means on the direction, in residual units; 0 where they are not known."""
        if self.positive_mean is None or self.negative_mean is None:
            return 0.0
        return (self.positive_mean + self.negative_mean) / 2


@dataclass(frozen=True, slots=True)
class LayerDirection(LayerNumbers):
    """The vector at one layer. direction: (d_model,), float32, unit length. map: what operation `apply` adds."""

    direction: Direction
    map: LowRankMap | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True, eq=False)
class VectorSummary:
    """Everything of a concept vector except its directions: listings return summaries, so that they read no blob.
    version 0; namespace, sha256 and created_at "" until a store has saved it."""

    name: str
    model: str
    model_fingerprint: str
    d_model: int
    method: str
    layers: Mapping[int, LayerNumbers]
    version: int = 0
    description: str = ""
    tags: tuple[str, ...] = ()
    sha256: str = ""
    created_at: str = ""
    namespace: str = ""
    recommended: Recommended | None = None
    quality: QualityCard | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    def recommended_layers(self) -> tuple[int, ...]:
        """Returns the recommended layers, else the middle layer the vector has."""
        if self.recommended is not None:
            return self.recommended.layers
        ordered = sorted(self.layers)
        return (ordered[len(ordered) // 2],)


@dataclass(frozen=True, slots=True, eq=False)
class ConceptVector(VectorSummary):
    """A concept vector. inline: given in a request for that request alone; it is never stored."""

    layers: Mapping[int, LayerDirection]
    inline: bool = False

    def __post_init__(self) -> None:
        check_name(self.name)
        if not self.layers:
            raise InvalidRequest("a vector needs a direction for at least one layer", param="directions")
        for layer, entry in self.layers.items():
            _check_direction(layer, entry, self.d_model)

    @property
    def id(self) -> str:
        """`name@version`, or `inline:<first 12 of sha256>`."""
        return f"{INLINE_PREFIX}{self.sha256[:12]}" if self.inline else f"{self.name}@{self.version}"

    def at(self, layer: int) -> LayerDirection:
        """Returns the direction at a layer. Raises InvalidRequest naming the layers that exist."""
        if layer not in self.layers:
            raise InvalidRequest(
                f"vector {self.name!r} has no direction at layer {layer}; it has {sorted(self.layers)}", param="layers"
            )
        return self.layers[layer]


@runtime_checkable
class VectorSource(Protocol):
    """Looks up vectors by name: all that resolving a spec needs."""

    async def get(self, name: str, version: int | None = None) -> ConceptVector:
        """Returns the newest or the given version. Raises VectorNotFound, StoreCorrupt."""


@dataclass(frozen=True, slots=True)
class VectorsByName:
    """A VectorSource of some names with a vector or a source of their own; all others are looked up in `rest`.
    entries: the vector or the source of a name as it is written (`mood` or `mood@3`).
    rest: where all other names are looked up, if anywhere."""

    entries: Mapping[str, ConceptVector | VectorSource]
    rest: VectorSource | None = None

    async def get(self, name: str, version: int | None = None) -> ConceptVector:
        """See VectorSource.get."""
        entry = self.entries.get(str(VectorId(name, version)), self.rest)
        if entry is None:
            raise VectorNotFound(f"there is no vector {name!r}", param="vector")
        return entry if isinstance(entry, ConceptVector) else await entry.get(name, version)


def _check_direction(layer: int, entry: LayerDirection, d_model: int) -> None:
    if layer < 0:
        raise InvalidRequest(f"layer {layer} is negative; layers are zero-based block indices", param="directions")
    if tuple(entry.direction.shape) != (d_model,):
        raise VectorModelMismatch(
            f"the direction at layer {layer} has shape {tuple(entry.direction.shape)}, expected ({d_model},)",
            param="directions",
        )
    if not bool(torch.isfinite(entry.direction).all()):
        raise InvalidRequest(f"layer {layer}: numbers must be finite", param="directions")
    _check_scale(layer, entry.scale, "scale")
    if entry.map is not None:
        entry.map.check(layer, d_model)


def _check_scale(layer: int, scale: float, param: str) -> None:
    if not SCALES.tiny <= scale <= SCALES.max:
        raise InvalidRequest(
            f"layer {layer}: the scale must lie between {SCALES.tiny:.2g} and {SCALES.max:.2g}, got {scale:g}",
            param=param,
        )


def unit(values: Direction, layer: int) -> tuple[Direction, float]:
    """Splits values (d_model,) into (unit direction in float32, norm). Raises InvalidRequest for zero and what is not finite in float32."""
    values = values.to(torch.float32)
    norm = float(values.norm())
    if 1e-16 < norm < math.inf:  # not in float64 too, which changes last bits: records have digests of directions
        return values / norm, norm
    norm = float(values.double().norm())  # whose squares were rounded to 0 or infinity in float32
    if not 0.0 < norm < math.inf:
        raise InvalidRequest(
            f"the direction at layer {layer} must be finite in float32 and not zero", param="directions"
        )
    return (values.double() / norm).float(), norm


def random_directions(count: int, d_model: int, seed: int) -> Float[Tensor, "count d_model"]:
    """Draws directions of random controls: standard normal in float64, all equally likely, not of unit length."""
    return torch.randn(count, d_model, generator=torch.Generator().manual_seed(seed % 2**63), dtype=torch.float64)


def mix(seed: int, choice: int) -> int:
    """Derives the seed of choice j: seed for 0, else the finalizer of SplitMix64 (Steele, Lea, Flood 2014), a
    bijection, of seed + j * 0x9E3779B97F4A7C15 mod 2^64, so that no two later choices share their noise."""
    if choice == 0:
        return seed
    value = (seed + choice * 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def combine(
    name: str, terms: Sequence[tuple[ConceptVector, float]], orthogonal_to: Sequence[ConceptVector] = ()
) -> ConceptVector:
    """Sums weight_i kappa_i d_i at the layers all terms share, without the part in the span of `orthogonal_to`; maps
    too. The norm of the sum is its natural scale. It has no class means, card or recommendation. Raises
    InvalidRequest when no layer is shared, the sum vanishes, or its norm is beyond float32."""
    first = terms[0][0]
    others = [vector for vector, _ in terms] + list(orthogonal_to)
    for vector in others:
        if vector.model_fingerprint != first.model_fingerprint or vector.d_model != first.d_model:
            raise VectorModelMismatch(
                f"{vector.id} belongs to model {vector.model!r}, {first.id} to {first.model!r}", param="terms"
            )
    shared = sorted(set.intersection(*(set(vector.layers) for vector in others)))
    if not shared:
        raise InvalidRequest("the vectors share no layer", param="terms")
    layers: dict[int, LayerDirection] = {}
    for layer in shared:
        parts = torch.stack([w * v.layers[layer].scale * v.layers[layer].direction.double() for v, w in terms])
        total, before = parts.sum(0), float(parts.norm(dim=1).sum())
        if orthogonal_to:
            total = total - _within_span([v.layers[layer].direction for v in orthogonal_to], total)
        norm = float(total.norm())
        if norm <= 1e-5 * before < math.inf:  # less is rounding of the terms
            raise InvalidRequest(f"the combination is zero at layer {layer}", param="terms")
        _check_scale(layer, norm, "terms")
        direction, _ = unit(total / norm, layer)
        summed = _sum_of_maps(layer, terms, [v.layers[layer].direction for v in orthogonal_to])
        layers[layer] = LayerDirection(direction, scale=norm, map=summed)
    made = [{"vector": v.id, "sha256": v.sha256, "weight": w} for v, w in terms]
    provenance = {"terms": made, "orthogonal_to": [v.id for v in orthogonal_to]}
    of = first.model, first.model_fingerprint, first.d_model
    return ConceptVector(name, *of, "combine", layers, tags=first.tags, provenance=provenance)


def _sum_of_maps(
    layer: int, terms: Sequence[tuple[ConceptVector, float]], orthogonal_to: Sequence[Direction]
) -> LowRankMap | None:
    """Returns the map that adds what the maps of the terms add together, with their weights, at one layer; None where none has a
    map. What it writes in the span of `orthogonal_to` is removed. Raises InvalidRequest where only some terms have a map, where
    their activations differ, and where the ranks sum to more than MAX_RANK."""
    maps = [(vector.id, vector.layers[layer].map, weight) for vector, weight in terms]
    present = [(found, weight) for _, found, weight in maps if found is not None]
    if not present:
        return None
    if without := [name for name, found, _ in maps if found is None]:
        raise InvalidRequest(
            f"{without[0]} has no map at layer {layer} to be summed with those of the others", param="terms"
        )
    first, rank = present[0][0], sum(found.rank for found, _ in present)
    if any(found.activation != first.activation for found, _ in present):
        raise InvalidRequest(
            f"the maps at layer {layer} have different activations, so their sum is no map", param="terms"
        )
    if rank > MAX_RANK:
        raise InvalidRequest(
            f"the maps at layer {layer} have rank {rank} together; a map has at most {MAX_RANK}", param="terms"
        )
    write = torch.cat([weight * found.write for found, weight in present])
    if orthogonal_to:
        write = write - torch.stack([_within_span(orthogonal_to, row) for row in write])
    read, bias = (torch.cat(parts) for parts in zip(*((found.read, found.bias) for found, _ in present), strict=True))
    return LowRankMap.of(read, write, bias, first.activation)


def _within_span(directions: Sequence[Direction], values: Direction) -> Direction:
    """Projects values (d_model,) on the span of unit directions, which need not be independent."""
    left, sizes, _ = torch.linalg.svd(torch.stack(list(directions)).T.double(), full_matrices=False)
    basis = left[:, sizes > 1e-6 * sizes[0]]
    inside: Direction = basis @ (basis.T @ values.double())
    return inside.to(values.dtype)


def cosine(one: ConceptVector, other: ConceptVector) -> dict[int, float]:
    """Returns the cosine of two vectors at every layer both have."""
    return {
        layer: float(one.layers[layer].direction @ other.layers[layer].direction)
        for layer in sorted(set(one.layers) & set(other.layers))
    }
