"""steering-vectors and repeng: extraction of a vector at every layer, in their own environment (make bench-peers-setup)."""

import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from repeng import ControlVector, DatasetEntry
from steering_vectors import train_steering_vector
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from benchmarks.contenders.protocol import serve_requests

END = "<|im_end|>"


class ExtractionPeer:
    """Extracts with one model as transformers loads it, from the last token, at all layers."""

    def __init__(self, folder: str) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True)
        self._model.eval().requires_grad_(False)
        # read the file directly: an older transformers does not know the tokenizer class that a newer one wrote
        self._tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(Path(folder) / "tokenizer.json"), pad_token=END, eos_token=END
        )

    def steering_vectors(self, pairs: list[list[str]], batch: int) -> dict[str, Any]:
        """Returns the seconds of train_steering_vector, mean difference, with `batch` pairs per pass."""
        samples = [(positive, negative) for positive, negative in pairs]
        return _timed(
            lambda: train_steering_vector(
                self._model, self._tokenizer, samples, read_token_index=-1, batch_size=batch, show_progress=False
            )
        )

    def repeng(self, pairs: list[list[str]], batch: int) -> dict[str, Any]:
        """Returns the seconds of ControlVector.train, first principal component, with `batch` texts per pass."""
        entries = [DatasetEntry(positive=positive, negative=negative) for positive, negative in pairs]
        return _timed(lambda: ControlVector.train(self._model, self._tokenizer, entries, batch_size=batch))


def _timed(work: Callable[[], Any]) -> dict[str, Any]:
    start = time.perf_counter()
    with torch.inference_mode():
        work()
    return {"seconds": time.perf_counter() - start}


def begin(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Loads the model from a folder."""
    peer = ExtractionPeer(options["folder"])
    facts = {name: version(name) for name in ("steering-vectors", "repeng", "torch", "transformers")}
    return {"steering-vectors": peer.steering_vectors, "repeng": peer.repeng}, facts


if __name__ == "__main__":
    serve_requests(begin)
