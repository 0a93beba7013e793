"""steering-vectors, repeng and what is imported from folders: extraction of vectors, in their own environment (make bench-peers-setup)."""

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from repeng import ControlVector, DatasetEntry
from steering_vectors import train_steering_vector
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from benchmarks.contenders.peers.from_folders import FITS, FITTED_AT_ONCE, Directions, Pairs, found_in
from benchmarks.contenders.protocol import serve_requests

END = "<|im_end|>"


class ExtractionPeer:
    """Extracts with one model as transformers loads it, from the last token, at all layers."""

    def __init__(self, folder: str) -> None:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        # an older transformers ignores the place where a newer one writes it, and would rotate by its default
        written = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")).get("rope_parameters") or {}
        config.rope_theta = written.get("rope_theta", getattr(config, "rope_theta", None))
        self._model = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.bfloat16, local_files_only=True
        )
        self._model.eval().requires_grad_(False)
        self._folder = Path(folder)
        self._tokenizer = self._read_tokenizer(END)

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

    def fit(
        self, pairs: list[list[list[dict[str, str]]]], layers: list[int], methods: list[str]
    ) -> dict[str, Directions]:
        """Returns the directions of methods at layers, as lists by method and layer. pairs: conversations, read at their last token: an
        assistant's last message stays open, after a user's the assistant's turn begins."""
        texts = [(self._rendered(positive), self._rendered(negative)) for positive, negative in pairs]
        fits: dict[str, Callable[[Pairs, Sequence[int]], Directions]] = {
            "steering-vectors": self._means,
            "repeng": self._components,
            **{name: partial(fit, self._model, self._read_tokenizer) for name, (_, fit) in FITS.items()},
        }
        return {method: fits[method](texts, layers) for method in methods}

    def _means(self, pairs: Pairs, layers: Sequence[int]) -> Directions:
        found = train_steering_vector(
            self._model, self._tokenizer, pairs, layers=layers, read_token_index=-1, batch_size=FITTED_AT_ONCE
        ).layer_activations
        return {layer: found[layer].float().tolist() for layer in layers}

    def _components(self, pairs: Pairs, layers: Sequence[int]) -> Directions:
        entries = [DatasetEntry(positive=positive, negative=negative) for positive, negative in pairs]
        found = ControlVector.train(
            self._model, self._tokenizer, entries, hidden_layers=layers, batch_size=FITTED_AT_ONCE
        ).directions
        return {layer: found[layer].tolist() for layer in layers}

    def _read_tokenizer(self, padding: str | None) -> PreTrainedTokenizerFast:
        """Reads the file directly: an older transformers does not know the tokenizer class that a newer one wrote."""
        named = {} if padding is None else {"pad_token": padding, "eos_token": END}
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(self._folder / "tokenizer.json"), **named)
        template = self._folder / "chat_template.jinja"
        tokenizer.chat_template = template.read_text(encoding="utf-8") if template.exists() else None
        return tokenizer

    def _rendered(self, messages: list[dict[str, str]]) -> str:
        answered = messages[-1]["role"] == "assistant"
        text: str = self._tokenizer.apply_chat_template(
            messages, tokenize=False, continue_final_message=answered, add_generation_prompt=not answered
        )
        return text


def _timed(work: Callable[[], Any]) -> dict[str, Any]:
    start = time.perf_counter()
    with torch.inference_mode():
        work()
    return {"seconds": time.perf_counter() - start}


def begin(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Loads the model from a folder. The facts have the version of each package, and a digest of each peer that the folder `data` has."""
    peer = ExtractionPeer(options["folder"])
    facts = {name: version(name) for name in ("steering-vectors", "repeng", "torch", "transformers")}
    facts |= found_in(Path(options["data"])) if options["data"] else {}
    return {"steering-vectors": peer.steering_vectors, "repeng": peer.repeng, "fit": peer.fit}, facts


if __name__ == "__main__":
    serve_requests(begin)
