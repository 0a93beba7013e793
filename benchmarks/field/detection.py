"""Detection of AxBench's concepts (Wu et al., arXiv 2501.17148): AUROC of the largest token of a text, with vectors fitted on its training texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.field import data
from benchmarks.field.run import Run
from steering.auroc import auroc
from steering.client import Client

TEXTS_AT_ONCE = 16


def detection(run: Run, part: str, number: int) -> dict[str, Any]:
    """Measures the vector of one concept, and a random direction at its layer."""
    counts = run.counts
    concept = data.concepts(run.folder, part, counts.texts, counts.characters, run.seed)[number]
    name, other = f"field-concept-{number}", f"field-concept-random-{number}"
    positive, negative = concept.train
    made = run.client.extract_vector(
        name,
        positive=positive,
        negative=negative,
        layers=run.layers,
        position="mean",
        card_position="max",
        seed=run.seed,
    )
    assert made.quality is not None, "half of the texts are held out"
    (layer,) = made.recommended.layers
    direction = np.random.default_rng((run.seed, number)).standard_normal(run.d_model)
    run.client.register_vector(other, directions={str(layer): direction.tolist()})
    texts = [*concept.test[0], *concept.test[1], *concept.hard]
    scores, random = (np.array(_largest(run.client, texts, vector, layer)) for vector in (name, other))
    end = len(concept.test[0])
    first_hard = end + len(concept.test[1])
    return {
        "concept": concept.name,
        "layer": layer,
        "card": made.quality.max_auroc,
        "card_interval": made.quality.max_auroc_interval,
        "auroc": float(auroc(scores[:end], scores[end:first_hard])),
        "hard": float(auroc(scores[:end], scores[first_hard:])) if concept.hard else None,
        "random": float(auroc(random[:end], random[end:first_hard])),
        "counts": [len(one) for one in (*concept.train, *concept.test, concept.hard)],
        "digest": data.digest([concept.train, concept.test, concept.hard]),
        "items": [
            {"label": int(place < end) - (place >= first_hard), "score": score, "random": other}
            for place, (score, other) in enumerate(zip(scores.tolist(), random.tolist(), strict=True))
        ],
    }


def _largest(client: Client, texts: Sequence[str], vector: str, layer: int) -> list[float]:
    """Returns the largest score over the tokens of each text, without its first."""
    scores = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        answer = client.readout(list(texts[start : start + TEXTS_AT_ONCE]), vectors=[vector], layers=[layer])
        scores += [next(iter(text.readout.values()))[str(layer)].max for text in answer.texts]
    return scores
