"""activation-steering, steering-lite and AxBench's DiffMean, none of them on the package index: their code, from a folder of clones, fits.

It is imported where a fit needs it, because a folder may lack it, and called with what its authors' programs call it with.
"""

import hashlib
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from pandas import DataFrame
from transformers import PreTrainedModel, PreTrainedTokenizerFast

FITTED_AT_ONCE = 8
AXBENCH = Path("axbench") / "axbench"
PADDING = "<|endoftext|>"
"""Must not be in a text: AxBench masks every token that equals it."""
Pairs = Sequence[tuple[str, str]]
Directions = dict[int, list[float]]
Tokenizers = Callable[[str | None], PreTrainedTokenizerFast]
"""Returns a tokenizer of the model with this token as padding, or without special tokens of its own."""
Fit = Callable[[PreTrainedModel, Tokenizers, Pairs, Sequence[int]], Directions]


class Float32Layers(torch.nn.Module):
    """A model as these projects expect one: each layer hands on float32, which numpy can hold, in a tuple, as transformers did before 4.54.

    The passes are those of the whole model, without its head; the layers here repeat what its layers returned, for hooks.
    """

    def __init__(self, whole: PreTrainedModel) -> None:
        super().__init__()
        self.config, self.device = whole.config, whole.device
        self._base = whole.base_model
        self._layers = torch.nn.ModuleList(torch.nn.Identity() for _ in range(whole.config.num_hidden_layers))
        self.model = torch.nn.Module()
        self.model.layers = self._layers

    def forward(self, **inputs: Any) -> SimpleNamespace:
        """Returns the hidden states, (texts, tokens, width) each: the embedding and after every layer, the last one behind the final norm."""
        found = self._base(**{**inputs, "output_hidden_states": True, "use_cache": False}).hidden_states
        states = [one.float() for one in found]
        for layer, state in zip(self._layers, states[1:], strict=True):
            layer((state,))
        return SimpleNamespace(hidden_states=states)


def activation_steering(
    model: PreTrainedModel, tokenizers: Tokenizers, pairs: Pairs, layers: Sequence[int]
) -> Directions:
    """Fits with SteeringVector.train and its defaults: the first principal component of pairs centred one by one, at the last token.

    It takes the last position, padded or not, so texts are read one by one. SteeringDataset rewrites the special tokens that its tokenizer
    names, which the chat template has written here, so its tokenizer names none.
    """
    package = importlib.import_module("activation_steering")
    tokenizer = tokenizers(None)
    data = package.SteeringDataset(tokenizer, pairs, disable_suffixes=True, use_chat_template=False)
    fitted = package.SteeringVector.train(
        Float32Layers(model), tokenizer, data, hidden_layer_ids=list(layers), batch_size=1
    )
    return {layer: fitted.directions[layer].tolist() for layer in layers}


def steering_lite(model: PreTrainedModel, tokenizers: Tokenizers, pairs: Pairs, layers: Sequence[int]) -> Directions:
    """Fits with Vector.train and MeanDiffC: the mean difference at the last token. Its default would cut texts after 256 tokens."""
    package = importlib.import_module("steering_lite")
    positive, negative = (list(side) for side in zip(*pairs, strict=True))
    longest = model.config.max_position_embeddings
    how = package.MeanDiffC(layers=tuple(layers))
    fitted = package.Vector.train(
        model, tokenizers(PADDING), positive, negative, how, batch_size=FITTED_AT_ONCE, max_length=longest
    )
    return {layer: fitted.state[layer]["v"].tolist() for layer in layers}


def diff_mean(model: PreTrainedModel, tokenizers: Tokenizers, pairs: Pairs, layers: Sequence[int]) -> Directions:
    """Fits with DiffMean: the difference of the means of both sides over all tokens behind what all texts begin with. It cuts texts after 1,024."""
    kind = importlib.import_module("axbench.models.mean").DiffMean
    parameters = importlib.import_module("axbench.scripts.args.training_args").ModelParams
    prefix_length = importlib.import_module("axbench.utils.model_utils").get_prefix_length
    tokenizer, read = tokenizers(PADDING), Float32Layers(model)
    texts = DataFrame({"input": [text for pair in pairs for text in pair], "labels": [1, 0] * len(pairs)})
    directions = {}
    for layer in layers:
        fitted = kind(
            read, tokenizer, layer=layer, training_args=parameters(batch_size=FITTED_AT_ONCE, n_epochs=1), device="cpu"
        )
        fitted.make_model(mode="train")
        fitted.train(texts, prefix_length=prefix_length(tokenizer))
        directions[layer] = fitted.ax.proj.weight[0].tolist()
    return directions


FITS: Mapping[str, tuple[Path, Fit]] = {
    "activation-steering": (
        Path("activation-steering") / "activation_steering" / "steering_vector.py",
        activation_steering,
    ),
    "steering-lite": (
        Path("steering-lite") / "src" / "steering_lite" / "variants" / "mean_diff.py",
        steering_lite,
    ),
    "axbench-diffmean": (AXBENCH / "models" / "mean.py", diff_mean),
}
"""By method the file that fits, in the folder of clones, and the call of it."""


def found_in(folder: Path) -> dict[str, str]:
    """Returns the first 16 digits of the SHA-256 of the file that fits, for each method that the folder has, and makes them importable."""
    sys.path += [str(folder / "activation-steering"), str(folder / "steering-lite" / "src")]
    # its __init__.py imports all of the benchmark, with its judges and plots: the submodules are enough
    package = ModuleType("axbench")
    package.__path__ = [str(folder / AXBENCH)]
    sys.modules["axbench"] = package
    places = {method: folder / path for method, (path, _) in FITS.items()}
    return {
        method: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for method, path in places.items() if path.exists()
    }
