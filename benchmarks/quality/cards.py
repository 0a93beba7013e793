"""Reads the quality card of a starter concept extracted with default settings."""

from dataclasses import asdict
from typing import Any

from benchmarks.quality.concepts import vector_of
from steering.engine.api import Engine


async def card(engine: Engine, concept: str) -> dict[str, Any]:
    """Returns the card of the recommended layer."""
    vector = await vector_of(engine, concept)
    (layer,) = vector.recommended_layers()
    assert vector.quality is not None
    assert vector.recommended is not None
    scale = vector.at(layer).scale
    return {
        "position": vector.provenance["position"],
        "layer": layer,
        "scale": scale,
        "share": scale / engine.info.typical_norms[layer],
        "strength": vector.recommended.strength,
        "negative": vector.recommended.negative,
        "strengths_to_try": vector.recommended.strengths_to_try,
        "warnings": list(vector.quality.warnings),
        **asdict(vector.quality.layers[layer]),
    }
