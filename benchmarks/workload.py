"""The work of every contender: prompts as token ids, and the steering of each row. Imports neither torch nor a model."""

import math
import random
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

NAMES = ("alpha", "beta", "gamma", "delta")
"""Vectors that every steered contender has: random unit directions at every layer (see `vectors`)."""
ONE_LAYER = 12
MAPS, MAP_LAYERS, MAP_RANK = ("first-map", "second-map"), (6, 12, 18, 24), 4
"""Vectors with a map, whose probes read every token."""
MIN_ID, MAX_ID = 1_000, 40_000
"""Ids of ordinary tokens in the embedded model's vocabulary."""
TOKENS_PER_WORD = 1.3
"""Of English text, with the embedded model's tokenizer."""
SPREAD = 1.0
"""Standard deviation of the logarithm of the lengths of a mixed load."""

Intervention: TypeAlias = dict[str, Any]
KINDS = ("unsteered", "one layer", "all layers", "distinct plans", "mixed operations", "maps")
"""unsteered. one layer: adds at one layer, different in every row. all layers: one plan for every row. distinct plans:
a plan per row that adds at all layers. mixed operations: adds, ablations, clamps and rotations at several layers, most
under conditions, different in every row. maps: a map of rank 4 at four layers, with another strength in every row."""


class MixedLoad(Protocol):
    """The fields of a Profile that describe a mixed load."""

    @property
    def mixed_requests(self) -> int:
        """Number of requests."""

    @property
    def mixed_words(self) -> tuple[int, int]:
        """Shortest and longest prompt in words."""

    @property
    def mixed_answers(self) -> tuple[int, int]:
        """Fewest and most generated tokens."""


def prompts(rows: int, length: int, seed: int | str) -> list[list[int]]:
    """Returns random token ids. No two prompts share a prefix, so prefix caches have no effect."""
    rng = random.Random(f"{rows} {length} {seed}")
    return [_ids(rng, length) for _ in range(rows)]


def mixed_requests(load: MixedLoad, rate: float, seed: int) -> list[dict[str, Any]]:
    """Returns requests {"at": seconds, "prompt": ids, "new_tokens"}: Poisson arrivals, lognormal lengths.

    rate: requests per second. The lengths of a seed are the same at every rate; the prompts are not, or prefix caches would have them.
    """
    rng, words_rng = random.Random(f"mixed {seed}"), random.Random(f"mixed {rate} {seed}")
    at, requests = 0.0, []
    for _ in range(load.mixed_requests):
        at += rng.expovariate(rate)
        words = _lognormal(rng, load.mixed_words)
        prompt = _ids(words_rng, max(1, round(words * TOKENS_PER_WORD)))
        requests.append({"at": at, "prompt": prompt, "new_tokens": _lognormal(rng, load.mixed_answers)})
    return requests


def _ids(rng: random.Random, length: int) -> list[int]:
    return [rng.randint(MIN_ID, MAX_ID) for _ in range(length)]


def _lognormal(rng: random.Random, bounds: Sequence[int]) -> int:
    """Draws a length between bounds; its median is their geometric mean."""
    low, high = bounds
    drawn = rng.lognormvariate(math.log(math.sqrt(low * high)), SPREAD)
    return min(max(round(drawn), low), high)


def steering(kind: str, rows: int) -> list[list[Intervention]]:
    """Returns the interventions of each row, as a client sends them."""
    if kind == "all layers":
        return [_all_layers(0)] * rows
    make = {
        "unsteered": _unsteered,
        "one layer": _one_layer,
        "distinct plans": _all_layers,
        "mixed operations": _mixed,
        "maps": _maps,
    }[kind]
    return [make(row) for row in range(rows)]


def _unsteered(row: int) -> list[Intervention]:  # noqa: ARG001 - the same signature for every kind
    return []


def _one_layer(row: int) -> list[Intervention]:
    return [{"vector": NAMES[row % 4], "strength": 0.2 + 0.01 * row, "layers": [ONE_LAYER]}]


def _all_layers(row: int) -> list[Intervention]:
    first, second = NAMES[row % 4], NAMES[(row + 1) % 4]
    return [
        {"vector": first, "strength": 0.2 + 0.01 * row, "layers": "all"},
        {"vector": second, "strength": 0.3 - 0.01 * row, "layers": "all"},
    ]


def _maps(row: int) -> list[Intervention]:
    return [{"vector": MAPS[row % 2], "strength": 0.2 + 0.01 * row, "layers": list(MAP_LAYERS)}]


def _mixed(row: int) -> list[Intervention]:
    """Ablates, clamps or rotates by row, and adds under a condition that holds for about every second token."""
    vector, other = NAMES[row % 4], NAMES[(row + 2) % 4]
    operation: Intervention = [
        {"operation": "ablate", "strength": 0.9},
        {"operation": "clamp", "low": -0.5, "high": 0.5},
        {"operation": "rotate", "degrees": 10.0},
    ][row % 3]
    at_token = {"vector": other, "above": 0.0, "at": "token", "layer": 8}
    at_prompt = {"vector": vector, "below": 1.0 if row % 2 else -1.0, "at": "prompt", "layer": 6}
    return [
        {"vector": vector, "strength": 0.2 + 0.01 * row, "layers": {"from": 9, "to": 15}, "when": at_token},
        {"vector": other, **operation, "layers": [12, 16, 20], "when": at_prompt},
        {"vector": other, "strength": 0.1 + 0.01 * row, "layers": [22, 24]},
    ]
