"""Renders a map of texts with a slider over the layers. Layers are aligned, so that points move and do not jump."""

import json
import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import TypeAlias

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

    The rotation is the orthogonal Procrustes solution, which has a closed form in two dimensions.
    """
    result: list[Points] = []
    for layer in layers:
        if any(len(point) != 2 for point in layer.points):
            raise ValueError("expected a map in two dimensions")
        points = _normalized([(float(x), float(y)) for x, y in layer.points])
        result.append(_rotated(points, result[-1]) if result else points)
    return result


def _normalized(points: Points) -> Points:
    count = max(len(points), 1)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    size = math.sqrt(sum((x - mean_x) ** 2 + (y - mean_y) ** 2 for x, y in points) / count) or 1.0
    return [((x - mean_x) / size, (y - mean_y) / size) for x, y in points]


def _rotated(points: Points, target: Points) -> Points:
    """Rotates, and mirrors if that fits better, to the least squared distance from the target."""
    xx, xy, yx, yy = (
        sum(p[i] * q[j] for p, q in zip(points, target, strict=True)) for i, j in ((0, 0), (0, 1), (1, 0), (1, 1))
    )
    mirror = -1.0 if math.hypot(xx - yy, xy + yx) > math.hypot(xx + yy, xy - yx) else 1.0
    angle = math.atan2(xy - mirror * yx, xx + mirror * yy)
    cos, sin = math.cos(angle), math.sin(angle)
    return [(cos * x - sin * mirror * y, sin * x + cos * mirror * y) for x, y in points]


def _auroc(layer: LayerMapAnswer) -> float | None:
    found = layer.separability.auroc if layer.separability else None
    return None if found is None or math.isnan(found) else found
