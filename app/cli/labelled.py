"""`steer test`: how well a vector separates labelled texts that it was not made from."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from app.cli.input.conversion import text_of
from app.cli.options import VectorName, file_argument
from app.cli.output.terminal import Output, shown, stderr, with_client
from steering.client import Client
from steering.client.results import Vector
from steering.concepts.loader import load_neutral
from steering.errors import InvalidRequest

POSITIVE, NEGATIVE = {"1", "true", "yes", "positive", "pos"}, {"0", "false", "no", "negative", "neg"}
COLUMNS = ("text", "label", "prompt", "group")
AT_ONCE = 500
"""Texts of one request."""


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One row. prompt: the user's message that the text answers. group: rows that belong together, such as a topic."""

    text: str
    positive: bool
    prompt: str | None
    group: str


@with_client
def separation(
    client: Client,
    vector: VectorName,
    labelled: Annotated[Path, file_argument("CSV with columns text and label, and prompt or group if wanted.")],
    positive: Annotated[
        str | None, Option(help="The label of the positive pole; default: 1, true, yes or positive.")
    ] = None,
    layer: Annotated[int | None, Option(help="Layer to read; default: the middle recommended one.")] = None,
    threshold: Annotated[float, Option(help="Score from which a text counts as positive; 0 is the middle.")] = 0.0,
) -> Output:
    """Test a vector on labelled texts: AUROC with its interval, and accuracy at a threshold."""
    rows = _read_labelled(labelled, positive)
    found = client.get_vector(vector)
    chosen = found.recommended.layers[len(found.recommended.layers) // 2] if layer is None else layer
    position = found.provenance.get("position", "last")
    scores = _scores(client, found, chosen, position, rows)
    result = measured(rows, scores, threshold)
    yield {"vector": found.id, "layer": chosen, "position": position, **result}
    at = f"{found.id} at layer {chosen}, position {position}"
    yield shown(f"{at}: {result['positives']} positive and {result['negatives']} negative texts")
    auroc = result["auroc"]
    yield "AUROC " + ("too few texts" if auroc is None else f"{auroc:.3f}{_interval(result['auroc_interval'])}")
    yield (
        f"accuracy {result['accuracy']:.3f}{_interval(result['accuracy_interval'])} at {threshold:+g}: "
        f"{result['true_positive_rate']:.0%} of the positive and {result['true_negative_rate']:.0%} of the negative texts"
    )
    if not found.centred:
        stderr.print("the vector has no class means, so that 0 is not the middle of its poles", style="yellow")


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f" ({bounds[0]:.3f} to {bounds[1]:.3f})"


def _read_labelled(file: Path, positive: str | None) -> list[LabelledText]:
    """Reads rows of a CSV file. Raises InvalidRequest for columns or labels that are not known, or with one class alone."""
    reader = csv.DictReader(StringIO(text_of(file), newline=""))
    names = reader.fieldnames or ()
    unknown = [name for name in names if name not in COLUMNS]
    if unknown or "text" not in names or "label" not in names:
        raise InvalidRequest(
            f"{file.name}: expected the columns text and label, and prompt or group; got {', '.join(names)}"
        )
    rows = [_row(row, number, file, positive) for number, row in enumerate(reader, start=2)]
    if len({row.positive for row in rows}) < 2:
        raise InvalidRequest(f"{file.name}: expected texts of both labels, got {len(rows)} of one")
    return rows


def _row(row: dict[str, Any], number: int, file: Path, positive: str | None) -> LabelledText:
    text, label = (row["text"] or "").strip(), (row["label"] or "").strip()
    if not text:
        raise InvalidRequest(f"{file.name}, line {number}: the text is empty")
    if positive is None and label.lower() not in POSITIVE | NEGATIVE:
        raise InvalidRequest(
            f"{file.name}, line {number}: label {label[:40]!r} is not known; name the positive one with --positive"
        )
    is_positive = label == positive if positive is not None else label.lower() in POSITIVE
    return LabelledText(text, is_positive, (row.get("prompt") or "").strip() or None, row.get("group") or f"#{number}")


def _scores(client: Client, vector: Vector, layer: int, position: Any, rows: Sequence[LabelledText]) -> list[float]:
    """Returns a score per text, in natural scales, centred where the vector has class means."""
    import numpy as np  # noqa: PLC0415 - other commands start faster without
    from safetensors.numpy import load  # noqa: PLC0415 - imports numpy

    direction = np.asarray(client.get_directions(vector.id, [layer])[str(layer)])
    means = vector.means.get(str(layer))
    middle = 0.0 if means is None else (means[0] + means[1]) / 2
    texts = _texts(rows, position)
    scores: list[float] = []
    for start in range(0, len(texts), AT_ONCE):
        part = texts[start : start + AT_ONCE]
        read = load(client.activations(part, layers=[layer], position=position, steering=[]))[f"layer.{layer}"]
        scores += ((read @ direction - middle) / vector.scale[str(layer)]).tolist()
    return scores


def _texts(rows: Sequence[LabelledText], position: Any) -> list[Any]:
    """Returns texts as the vector's own were read: for `response_mean` as replies, to a neutral prompt where none is given."""
    found: list[Any] = []
    for row, neutral in zip(rows, cycle(load_neutral()), strict=False):
        prompt = neutral if row.prompt is None and position == "response_mean" else row.prompt
        reply = {"role": "assistant", "content": row.text}
        found.append(row.text if prompt is None else [{"role": "user", "content": prompt}, reply])
    return found


def measured(rows: Sequence[LabelledText], scores: Sequence[float], threshold: float) -> dict[str, Any]:
    """Returns AUROC with its interval over groups, and accuracy with its Wilson interval at a threshold."""
    import numpy as np  # noqa: PLC0415 - other commands start faster without
    from scipy.stats import binomtest  # noqa: PLC0415 - imports scipy

    from steering.auroc import HeldOut, estimate_auroc  # noqa: PLC0415 - imports scipy

    values, labels = np.asarray(scores, dtype=np.float64), np.array([row.positive for row in rows])
    groups = np.unique([row.group for row in rows], return_inverse=True)[1]
    held = HeldOut(values[labels], values[~labels], groups[labels], groups[~labels])
    estimate = estimate_auroc([[held]])
    right = (values >= threshold) == labels
    interval = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return {
        "positives": int(labels.sum()),
        "negatives": int((~labels).sum()),
        "auroc": None if estimate is None else estimate.mean,
        "auroc_interval": None if estimate is None or estimate.interval is None else list(estimate.interval),
        "threshold": threshold,
        "accuracy": float(right.mean()),
        "accuracy_interval": [float(interval.low), float(interval.high)],
        "true_positive_rate": float(right[labels].mean()),
        "true_negative_rate": float(right[~labels].mean()),
    }
