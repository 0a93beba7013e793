"""Make a concept vector from contrasting pairs and look at its quality card. No server: the library alone."""

import asyncio
import sys
from pathlib import Path

from steering.engine import open_engine
from steering.engine.options import EngineOptions
from steering.pairs import ContrastivePair, PairSet
from steering.vectors import ConceptVector
from steering.workflows.extract import ExtractionRequest, extract

PLACES = ("the room", "the soup", "my walk", "the train", "the film", "her answer", "the garden", "our visit")
PAIRS = PairSet.of([ContrastivePair(f"I loved {place}.", f"I hated {place}.", topic=place) for place in PLACES])


async def main(model: str = "smollm2-135m-instruct") -> ConceptVector:
    """The vector; its card is printed."""
    cache = Path.home() / ".cache" / "steering-server"
    engine = open_engine("transformers", EngineOptions(model=model, cache_dir=cache))
    try:
        vector = await extract(engine, ExtractionRequest(name="liking", pairs=PAIRS, holdout=0.4))
    finally:
        await engine.close()
    layer = vector.recommended_layers()[0]
    assert vector.quality is not None
    quality = vector.quality.layers[layer]
    print(f"{vector.name}: layer {layer}, natural scale {vector.at(layer).scale:.2f}, held-out AUROC {quality.auroc}")
    print("\n".join(vector.quality.warnings))
    return vector


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
