"""The work that every side is given: prompts as token ids, and how the rows are steered. Knows neither torch nor a model."""

import random
from typing import Any, TypeAlias

NAMES = ("alpha", "beta", "gamma", "delta")
"""Vectors that every steered side knows: random unit directions at every layer (see `vectors`)."""
ONE_LAYER = 12
LOWEST_ID, HIGHEST_ID = 1_000, 40_000
"""Ids of ordinary tokens in the embedded model's vocabulary."""

Intervention: TypeAlias = dict[str, Any]
KINDS = ("unsteered", "one layer", "all layers", "distinct plans", "mixed operations")
"""unsteered. one layer: adds at one layer, every row its own. all layers: one plan for every row. distinct plans: every
row has a plan of its own, adds at all layers. mixed operations: adds, ablations, clamps and rotations at several layers,
most of them under conditions, every row its own."""


def prompts(rows: int, length: int, seed: int | str) -> list[list[int]]:
    """Random token ids: no two prompts share a beginning, so that with a seed of its own no cache of prompts helps anybody."""
    rng = random.Random(f"{rows} {length} {seed}")
    return [[rng.randint(LOWEST_ID, HIGHEST_ID) for _ in range(length)] for _ in range(rows)]


def steering(kind: str, rows: int) -> list[list[Intervention]]:
    """What steers each row, as a caller writes it."""
    if kind == "all layers":
        return [_all_layers(0)] * rows
    make = {
        "unsteered": _nothing,
        "one layer": _one_layer,
        "distinct plans": _all_layers,
        "mixed operations": _mixed,
    }[kind]
    return [make(row) for row in range(rows)]


def _nothing(row: int) -> list[Intervention]:  # noqa: ARG001 - every row alike
    return []


def _one_layer(row: int) -> list[Intervention]:
    return [{"vector": NAMES[row % 4], "strength": 0.2 + 0.01 * row, "layers": [ONE_LAYER]}]


def _all_layers(row: int) -> list[Intervention]:
    first, second = NAMES[row % 4], NAMES[(row + 1) % 4]
    return [
        {"vector": first, "strength": 0.2 + 0.01 * row, "layers": "all"},
        {"vector": second, "strength": 0.3 - 0.01 * row, "layers": "all"},
    ]


def _mixed(row: int) -> list[Intervention]:
    """Every third row ablates, clamps or rotates; all of them add, under a condition that holds for about half of the
    tokens."""
    vector, other = NAMES[row % 4], NAMES[(row + 2) % 4]
    work: Intervention = [
        {"operation": "ablate", "strength": 0.9},
        {"operation": "clamp", "low": -0.5, "high": 0.5},
        {"operation": "rotate", "degrees": 10.0},
    ][row % 3]
    at_token = {"vector": other, "above": 0.0, "at": "token", "layer": 8}
    at_prompt = {"vector": vector, "below": 1.0 if row % 2 else -1.0, "at": "prompt", "layer": 6}
    return [
        {"vector": vector, "strength": 0.2 + 0.01 * row, "layers": {"from": 9, "to": 15}, "when": at_token},
        {"vector": other, **work, "layers": [12, 16, 20], "when": at_prompt},
        {"vector": other, "strength": 0.1 + 0.01 * row, "layers": [22, 24]},
    ]
