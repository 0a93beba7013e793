"""Renders a map of texts with a slider over the layers. Layers are aligned, so that points move and do not jump."""

import json
import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any, TypeAlias

from steering.client.display.html import SERIES, page
from steering.schemas.latent_space import LatentSpaceAnswer, LayerMapAnswer

Points: TypeAlias = list[tuple[float, float]]


def map_page(answer: LatentSpaceAnswer, texts: Sequence[str], labels: Sequence[str] | None = None) -> str:
    """Returns a self-contained page. Raises ValueError for a map in three dimensions."""
    layers = ([answer.embedding] if answer.embedding else []) + list(answer.layers)
    names = sorted(set(labels or []))
    data = {
        "texts": list(texts),
        "labels": [names.index(label) for label in labels] if labels else [0] * len(texts),
        "names": names,
        "colours": SERIES,
        "layers": [
            {
                "name": "input embeddings" if layer.layer is None else f"layer {layer.layer}",
                "points": points,
                "auroc": auroc,
            }
            for layer, points, auroc in zip(layers, aligned(layers), map(_auroc, layers), strict=True)
        ],
    }
    title = f"{len(texts)} texts in {answer.model}, {answer.method}"
    script = (files("steering.client.display") / "map.js").read_text(encoding="utf-8")
    safe = json.dumps(data, allow_nan=False).replace("<", "\\u003c")  # a text must not close the script element
    body = f'<h1>{escape(title)}</h1><div id="map"></div>'
    return page(title, body, f"const DATA = {safe};\n{script}")


def aligned(layers: Sequence[LayerMapAnswer]) -> list[Points]:
    """Returns the points of each layer, centred, scaled to unit size, and rotated to match the layer before.

    The rotation, mirrored if that fits better, is the orthogonal Procrustes solution.
    """
    import numpy as np  # noqa: PLC0415 - a client that draws no map starts faster without

    result: list[Any] = []
    for layer in layers:
        points = np.asarray(layer.points, dtype=np.float64)
        if points.shape[1:] != (2,):
            raise ValueError("expected a map in two dimensions")
        points -= points.mean(0)
        points /= np.sqrt((points**2).sum() / len(points)) or 1.0
        if result:
            left, _, right = np.linalg.svd(points.T @ result[-1])
            points = points @ (left @ right)
        result.append(points)
    return [[(x, y) for x, y in points.tolist()] for points in result]


def _auroc(layer: LayerMapAnswer) -> float | None:
    found = layer.separability.auroc if layer.separability else None
    return None if found is None or math.isnan(found) else found
