"""Vectors and random steering for engine tests, covering every operation, scope, unit, schedule and condition."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from steering.errors import VectorNotFound
from steering.maps import LowRankMap
from steering.model.info import ModelInfo
from steering.plan.resolve import resolve
from steering.plan.types import LINEAR, DoseGuard, Edits, Intervention, SteeringPlan
from steering.shapes import Direction
from steering.spec import InterventionSpec, SteeringSpec
from steering.vectors import ConceptVector, LayerDirection

NAMES = ("alpha", "beta", "gamma", "delta")
PLACES = {
    "all": {"tokens": "all"},
    "prompt": {"tokens": "prompt"},
    "generated": {"tokens": "generated"},
    "last": {"tokens": "last"},
    "prompt window": {"tokens": "prompt", "start": 1, "end": -1},
    "generated window": {"tokens": "generated", "start": 1, "end": 4},
}
WORK: dict[str, dict[str, Any]] = {
    "add": {"operation": "add", "strength": 0.7},
    "ablate": {"operation": "ablate", "strength": 0.9},
    "clamp": {"operation": "clamp", "low": -0.1, "high": 0.3},
    "rotate": {"operation": "rotate", "degrees": 25.0},
    "replace": {"operation": "replace", "to": "beta"},
    "apply": {"operation": "apply", "strength": 0.8},
}

FACTORS: list[dict[str, Any]] = [{"bias": 0.6}, {"bias": -0.3, "activation": "relu"}, {"activation": "relu"}]
"""Of `strength_from`."""


class Vectors:
    """Provides vectors from a dict."""

    def __init__(self, vectors: Mapping[str, ConceptVector]) -> None:
        self.vectors = vectors

    async def get(self, name: str, version: int | None = None) -> ConceptVector:
        if name not in self.vectors:
            raise VectorNotFound(f"no vector {name!r}", param="vector")
        return self.vectors[name]


def random_map(d_model: int, rank: int, scale: float, generator: torch.Generator) -> LowRankMap:
    """Returns a map with orthogonal write directions of length `scale`, linear for odd ranks."""
    rank = min(rank, d_model)
    read, write = torch.randn(2, rank, d_model, generator=generator)
    read = 0.3 * read / read.norm(dim=1, keepdim=True)
    write = scale * torch.linalg.qr(write.T)[0].T
    return LowRankMap.of(read, write, 0.2 * torch.randn(rank, generator=generator), "linear" if rank % 2 else "relu")


def vectors_for(info: ModelInfo, seed: int = 0, scale: float = 3.0, *, means: bool = False) -> dict[str, ConceptVector]:
    """Returns random unit directions at every layer, each with a probe and a map. means: with class means too, off the origin."""
    generator, of_maps = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    vectors = {}
    for number, name in enumerate(NAMES):
        layers = {}
        for layer in range(info.layer_count):
            direction = torch.randn(info.d_model, generator=generator)
            middle, half = 0.3 * number - 0.4, (scale + number) / 2
            layers[layer] = LayerDirection(
                direction / direction.norm(),
                scale=scale + number,
                positive_mean=middle + half if means else None,
                negative_mean=middle - half if means else None,
                weight=0.8,
                bias=0.1,
                map=random_map(info.d_model, number + 1, scale, of_maps),
            )
        vectors[name] = ConceptVector(
            name=name,
            model=info.name,
            model_fingerprint=info.fingerprint,
            d_model=info.d_model,
            method="test",
            layers=layers,
            version=1,
            sha256=f"{name}-digest",
        )
    return vectors


async def plan_for(
    items: Sequence[Mapping[str, Any]],
    vectors: Mapping[str, ConceptVector],
    info: ModelInfo,
    guard: DoseGuard | None = None,
) -> SteeringPlan:
    """Resolves interventions in the form of the API, under no dose guard unless one is given."""
    spec = SteeringSpec.model_validate({"interventions": items})
    return await resolve(spec, Vectors(vectors), info, guard=guard or DoseGuard(action="off"))


def plan_adding(layer: int, change: Direction, fingerprint: str = "", **fields: Any) -> SteeringPlan:
    """Returns a plan that adds a change at a layer to every residual, whatever it is."""
    spec = InterventionSpec(vector="change", layers=(layer,))
    numbers = torch.tensor([[1.0, 0.0, 1.0]])
    edits = Edits(fingerprint, fingerprint, (0,), change[None], torch.zeros_like(change)[None], numbers, (LINEAR,))
    interventions = (Intervention(spec, "", "", (layer,)),)
    return SteeringPlan(interventions, {layer: (edits,)}, fingerprint=fingerprint, **fields)


def change_at(plan: SteeringPlan, layer: int) -> Direction:
    """Returns what the unconditional adds of a plan add at a layer."""
    edits = plan.layers[layer]
    assert not any(bool(one.read.any()) for one in edits)
    return torch.cat([one.numbers[:, :1] * one.numbers[:, 2:] * one.write for one in edits]).sum(0)


def random_condition(rng: random.Random, layers: int, depth: int = 0) -> dict[str, Any]:
    kind = rng.choice(["threshold"] * 4 + ["all", "any", "not"]) if depth < 2 else "threshold"
    if kind in ("all", "any"):
        return {kind: [random_condition(rng, layers, depth + 1) for _ in range(rng.randint(1, 3))]}
    if kind == "not":
        return {"not": random_condition(rng, layers, depth + 1)}
    score = rng.choice(["projection", "projection", "cosine", "probe"])
    bound = {"projection": rng.uniform(-0.3, 0.3), "cosine": rng.uniform(-0.2, 0.2), "probe": rng.uniform(0.3, 0.7)}[
        score
    ]
    side = rng.choice(["above", "below"])
    threshold: dict[str, Any] = {"vector": rng.choice(NAMES), side: bound, "score": score, "layer": 0}
    threshold["at"] = rng.choice(["prompt", "prompt_mean", "token"])
    if threshold["at"] == "token" and rng.random() < 0.5:
        threshold["until"] = bound - 0.2 if side == "above" else bound + 0.2
    return threshold


def random_item(rng: random.Random, layers: int) -> dict[str, Any]:
    """Returns a random intervention, sometimes with a schedule or a condition."""
    item = {"vector": rng.choice(NAMES), **rng.choice([work for name, work in WORK.items() if name != "apply"])}
    if item.get("to") == item["vector"]:
        item["to"] = "gamma"
    if item["operation"] in ("add", "clamp"):
        item["unit"] = rng.choice(["scale", "raw", "relative"])
    item["strength"] = rng.choice([-1.0, -0.5, 0.0, 0.4, 1.0])
    item["layers"] = rng.choice([[0], [1], [layers - 1], "all", {"from": 0, "to": 2}, [-1, 0]])
    item["scope"] = rng.choice(list(PLACES.values()))
    kind = rng.choice(["constant"] * 4 + ["linear", "cosine", "exponential", "warmup"])
    if kind != "constant":
        item["schedule"] = {"kind": kind, "tokens": rng.randint(1, 8)}
        if kind != "warmup":
            item["schedule"]["to"] = 0.2
    if rng.random() < 0.4:
        item["when"] = random_condition(rng, layers)
    if item["operation"] == "add" and item["strength"] > 0.0 and random.Random(str(item)).random() < 0.4:
        hold = {"score": 0.4 * item["strength"], "integral_gain": 0.4, "proportional_gain": 0.1}
        item |= {"hold": hold, "unit": "scale", "scope": {"tokens": "generated"}}
        item.pop("schedule", None)
    elif item["operation"] == "add" and item["unit"] != "relative":
        own = random.Random(f"from {item}")
        if own.random() < 0.6:
            item["strength_from"] = {"vector": own.choice(NAMES), **own.choice(FACTORS)}
    elif item["operation"] != "add" and random.Random(f"apply {item}").random() < 0.15:
        kept = ("vector", "strength", "layers", "scope", "schedule", "when")
        item = {name: item[name] for name in kept if name in item} | {"operation": "apply"}
    return item


def random_items(seed: int, layers: int, most: int = 4) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [random_item(rng, layers) for _ in range(rng.randint(1, most))]


def plain(value: Any) -> Any:
    """Returns random items, or a part of them, for vectors that have no probe and no map."""
    if isinstance(value, dict):
        instead = {("score", "probe"): "projection", ("operation", "apply"): "add"}
        return {name: instead.get((name, str(one)), plain(one)) for name, one in value.items()}
    return list(map(plain, value)) if isinstance(value, list) else value
