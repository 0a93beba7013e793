"""Reads a sparse autoencoder from a folder in SAELens format (cfg.json and sae_weights.safetensors), and computes how active
its features are at residuals."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from steering.errors import InvalidRequest
from steering.shapes import Float, Residual, Tensor
from steering.strict_json import load_json

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
MAX_CONFIG_BYTES = 1 << 20
MAX_NUMBERS = 1 << 28
"""Of each of W_enc and W_dec: 1 GiB in float32."""
MAX_ACTIVATIONS = 1 << 24
"""Activations of features that are computed at a time, 64 MB in float32. A longer text is read in pieces."""
ARCHITECTURES = ("standard", "jumprelu", "topk")
_HOOK = re.compile(r"blocks\.(\d{1,4})\.hook_resid_(pre|post)")


@dataclass(frozen=True, slots=True, eq=False)
class Encoder:
    """The weights of an encoder, in float32, read once for many texts.

    centre: what is subtracted from a residual first, None for nothing. threshold: of a jumprelu autoencoder. k: active features
    of a topk autoencoder.
    """

    architecture: str
    weight: Float[Tensor, "d_model feature"]
    bias: Float[Tensor, "feature"]
    centre: Float[Tensor, "d_model"] | None = None
    threshold: Float[Tensor, "feature"] | None = None
    k: int = 0

    def encode(self, residual: Residual) -> Float[Tensor, "token feature"]:
        """residual (token, d_model) -> the activation of every feature, 0 where it is not active."""
        rows = residual.float() if self.centre is None else residual.float() - self.centre
        before = rows @ self.weight + self.bias
        if self.architecture == "topk":
            kept = before.topk(min(self.k, before.shape[1]), dim=-1)
            return torch.zeros_like(before).scatter_(-1, kept.indices, kept.values.relu())
        if self.threshold is not None:
            return before * (before > self.threshold)
        return before.relu()

    def pieces(self, residual: Residual, limit: int = MAX_ACTIVATIONS) -> Iterator[Float[Tensor, "piece feature"]]:
        """Yields what `encode` returns in pieces of at most `limit` numbers, but of one token at least."""
        for rows in torch.split(residual, max(limit // len(self.bias), 1)):
            yield self.encode(rows)

    def total(self, residual: Residual) -> Float[Tensor, "feature"]:
        """residual (token, d_model) -> the sum of every feature's activations, one piece of them held at a time."""
        total = torch.zeros(len(self.bias))
        for piece in self.pieces(residual):
            total += piece.sum(0)
        return total


@dataclass(frozen=True, slots=True, eq=False)
class Dictionary:
    """The features of one sparse autoencoder over the residual stream after block `layer`.

    folder: where its weights are. features, d_model: rows and columns of W_dec. k: active features of a topk autoencoder.
    """

    name: str
    folder: Path
    layer: int
    features: int
    d_model: int
    architecture: str
    hook: str
    model: str
    centred: bool
    k: int = 0

    def decoder(self) -> Float[Tensor, "feature d_model"]:
        """Reads W_dec in float32. This and what follows raise InvalidRequest where the folder can no longer be read."""
        return self._tensors("W_dec")["W_dec"]

    def rows(self, features: Sequence[int]) -> Float[Tensor, "row d_model"]:
        """Reads rows of W_dec in float32. Raises InvalidRequest for a feature that does not exist."""
        for feature in features:
            if not 0 <= feature < self.features:
                raise InvalidRequest(
                    f"dictionary {self.name!r} has features 0 to {self.features - 1}, got {feature}", param="feature"
                )
        with _readable(self.folder), safe_open(self.folder / WEIGHTS, framework="pt") as tensors:
            decoder = tensors.get_slice("W_dec")
            rows: Tensor = torch.cat([decoder[feature : feature + 1].float() for feature in features])
        return rows

    def encoder(self) -> Encoder:
        """Reads what activations are computed with, in float32."""
        gated = self.architecture == "jumprelu"
        found = self._tensors("W_enc", "b_enc", "b_dec", *(("threshold",) if gated else ()))
        return Encoder(
            self.architecture,
            weight=found["W_enc"],
            bias=found["b_enc"],
            centre=found["b_dec"] if self.centred else None,
            threshold=found["threshold"] if gated else None,
            k=self.k,
        )

    def _tensors(self, *names: str) -> dict[str, Tensor]:
        with _readable(self.folder), safe_open(self.folder / WEIGHTS, framework="pt") as tensors:
            return {name: tensors.get_tensor(name).float() for name in names}


def open_dictionary(folder: Path) -> Dictionary:
    """Reads the configuration and checks the shapes of the weights, without reading them; again when a file has changed.

    Raises InvalidRequest for what is not a sparse autoencoder of the residual stream in a form that can be computed.
    """
    with _readable(folder):
        return _opened(folder, tuple(_version(folder / name) for name in (CONFIG, WEIGHTS)))


def _version(file: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced; empty where there is none."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turns what reading the files raises into an error that names the folder, without its path."""
    try:
        yield
    except SafetensorError as error:
        raise _invalid(folder, f"{WEIGHTS} is not a safetensors file: {error}") from error
    except OSError as error:
        raise _invalid(folder, f"its files cannot be read: {error.strerror or type(error).__name__}") from error


@lru_cache(maxsize=64)
def _opened(folder: Path, _versions: tuple[tuple[int, ...], ...]) -> Dictionary:
    config = _config(folder / CONFIG)
    metadata = config["metadata"] if isinstance(config.get("metadata"), dict) else config
    hook = str(metadata.get("hook_name", metadata.get("hook_point", "")))
    architecture = str(config.get("architecture", config.get("architecture_type", "standard")))
    if architecture not in ARCHITECTURES:
        raise _invalid(folder, f"architecture {architecture[:40]!r} is not one of {', '.join(ARCHITECTURES)}")
    scaling = config.get("normalize_activations", "none")
    if scaling not in ("none", None):
        raise _invalid(folder, f"normalize_activations {str(scaling)[:40]!r} is not supported, only 'none'")
    function = config.get("activation_fn_str", config.get("activation_fn", "relu"))
    if function != "relu" and not (architecture == "topk" and function == "topk"):
        raise _invalid(folder, f"the activation function {str(function)[:40]!r} is not supported, only 'relu'")
    if config.get("rescale_acts_by_decoder_norm"):
        raise _invalid(folder, "rescale_acts_by_decoder_norm is not supported")
    shapes = _shapes(folder)
    features, d_model = _checked_shapes(folder, shapes, architecture)
    k = config.get("k", 0)
    if architecture == "topk" and not (type(k) is int and 0 < k <= features):
        raise _invalid(folder, f"a topk autoencoder needs 'k' from 1 to {features}, got {str(k)[:40]}")
    return Dictionary(
        name=folder.name,
        folder=folder,
        layer=_layer_of(folder, hook),
        features=features,
        d_model=d_model,
        architecture=architecture,
        hook=hook,
        model=str(metadata.get("model_name", ""))[:256],
        centred=bool(config.get("apply_b_dec_to_input", True)),
        k=k if architecture == "topk" else 0,
    )


def _config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise _invalid(file.parent, f"there is no {CONFIG}")
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise _invalid(file.parent, f"{CONFIG} is larger than {MAX_CONFIG_BYTES >> 20} MB")
    found = load_json(file.read_bytes(), file.name, param="dictionary")
    if not isinstance(found, dict):
        raise _invalid(file.parent, f"{CONFIG} is not an object")
    return found


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    file = folder / WEIGHTS
    if not file.is_file():
        raise _invalid(folder, f"there is no {WEIGHTS}")
    with safe_open(file, framework="pt") as tensors:
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 - not a mapping


def _checked_shapes(folder: Path, shapes: dict[str, tuple[int, ...]], architecture: str) -> tuple[int, int]:
    decoder = shapes.get("W_dec", ())
    if len(decoder) != 2 or min(decoder) < 1:
        raise _invalid(folder, f"W_dec must be (feature, d_model), it is {decoder or 'missing'}")
    features, d_model = decoder
    if features * d_model > MAX_NUMBERS:
        raise _invalid(folder, f"W_dec has {features * d_model} numbers; at most {MAX_NUMBERS} are read")
    expected = {"W_enc": (d_model, features), "b_enc": (features,), "b_dec": (d_model,)}
    if architecture == "jumprelu":
        expected["threshold"] = (features,)
    for name, shape in expected.items():
        if shapes.get(name) != shape:
            raise _invalid(folder, f"{name} must have shape {shape}, it is {shapes.get(name, 'missing')}")
    return features, d_model


def _layer_of(folder: Path, hook: str) -> int:
    """A hook before block L reads the output of block L - 1."""
    found = _HOOK.fullmatch(hook)
    layer = -1 if found is None else int(found[1]) - (found[2] == "pre")
    if layer < 0:
        raise _invalid(
            folder,
            f"the hook {hook[:80]!r} is not the residual stream after a block (blocks.<n>.hook_resid_post, or hook_resid_pre "
            "of a later block)",
        )
    return layer


def _invalid(folder: Path, message: str) -> InvalidRequest:
    return InvalidRequest(f"dictionary {folder.name!r}: {message}", param="dictionary")
