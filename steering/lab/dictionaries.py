"""Dictionaries of features (sparse autoencoders): read from folders, and searched by a vector or by texts."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from steering.concepts.loader import load_neutral_texts
from steering.engine.api import Capture, CapturePrompt, CaptureSpec, Engine, Prompt
from steering.engine.capabilities import unembedding_of
from steering.errors import InvalidRequest, VectorModelMismatch
from steering.lab.controls import planned
from steering.model.info import ModelInfo
from steering.schemas.latent_space import FeatureAnswer
from steering.schemas.reading import ReadToken
from steering.shapes import Direction, Float, Residual, Tensor
from steering.spec import InterventionSpec, TokenScope
from steering.strict_json import load_json
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, LayerDirection

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
MAX_CONFIG_BYTES = 1 << 20
MAX_NUMBERS = 1 << 28
"""Of each of W_enc and W_dec: 1 GiB in float32."""
MAX_ACTIVATIONS = 1 << 24
"""Activations of features that are computed at a time, 64 MB in float32. A longer text is read in pieces."""
ARCHITECTURES = ("standard", "jumprelu", "topk")
_HOOK = re.compile(r"blocks\.(\d{1,4})\.hook_resid_(pre|post)")
PROMOTED = 8
"""Tokens that a feature promotes, most first."""
NEUTRAL_TEXTS = 32
"""Texts that activations are compared with where the caller gives none."""
DOSE = 0.5
"""Relative dose at which a feature's output score is measured."""
PROBE_PROMPT = "In my experience,"
MAX_SCORED = 64
"""Features whose output score one search measures: each takes a pass over the probe prompt."""


@dataclass(frozen=True, slots=True, eq=False)
class Encoder:
    """An encoder in float32. centre: subtracted from a residual first. threshold: of jumprelu. k: of topk, otherwise 0."""

    weight: Float[Tensor, "d_model feature"]
    bias: Float[Tensor, "feature"]
    centre: Float[Tensor, "d_model"] | None = None
    threshold: Float[Tensor, "feature"] | None = None
    k: int = 0

    def encode(self, residual: Residual) -> Float[Tensor, "token feature"]:
        """residual (token, d_model) -> the activation of every feature, 0 where it is not active."""
        rows = residual.float() if self.centre is None else residual.float() - self.centre
        before = rows @ self.weight + self.bias
        if self.k:
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
        return sum((piece.sum(0) for piece in self.pieces(residual)), start=torch.zeros(len(self.bias)))


@dataclass(frozen=True, slots=True, eq=False)
class Dictionary:
    """The features of one sparse autoencoder over the residual stream after block `layer`. features, d_model: rows and
    columns of W_dec. Its methods raise InvalidRequest where the folder can no longer be read."""

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
        """Reads W_dec in float32."""
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
    """Reads the configuration and checks the shapes of weights, again after a change. Raises InvalidRequest."""
    with _readable(folder):
        return _opened(folder, tuple(_version(folder / name) for name in (CONFIG, WEIGHTS)))


def _version(file: Path) -> tuple[int, ...]:
    """Returns what changes when a file is written or replaced; empty where there is none."""
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
    file = folder / CONFIG
    if not file.is_file():
        raise _invalid(folder, f"there is no {CONFIG}")
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise _invalid(folder, f"{CONFIG} is larger than {MAX_CONFIG_BYTES >> 20} MB")
    config: Any = load_json(file.read_bytes(), file.name, param="dictionary")
    if not isinstance(config, dict):
        raise _invalid(folder, f"{CONFIG} is not an object")
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
    features, d_model = _checked_shapes(folder, architecture)
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


def _checked_shapes(folder: Path, architecture: str) -> tuple[int, int]:
    """Returns (features, d_model)."""
    if not (folder / WEIGHTS).is_file():
        raise _invalid(folder, f"there is no {WEIGHTS}")
    with safe_open(folder / WEIGHTS, framework="pt") as tensors:
        names = tensors.keys()
        shapes: dict[str, tuple[int, ...]] = {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
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


def problem_of(dictionary: Dictionary, info: ModelInfo) -> str | None:
    """Returns why a dictionary cannot be of the loaded model; None where it can."""
    if dictionary.d_model == info.d_model and dictionary.layer < info.layer_count:
        return None
    return (
        f"dictionary {dictionary.name!r} is of layer {dictionary.layer} and d_model {dictionary.d_model}; {info.name} has "
        f"{info.layer_count} layers and d_model {info.d_model}"
    )


def check_dictionary(dictionary: Dictionary, info: ModelInfo) -> None:
    """Raises VectorModelMismatch where the dictionary cannot be of the loaded model."""
    problem = problem_of(dictionary, info)
    if problem is not None:
        raise VectorModelMismatch(problem, param="dictionary")


def compared_texts(given: Sequence[Prompt]) -> Sequence[Prompt]:
    """Returns the texts that activations are compared with: those given, or neutral ones."""
    return given or load_neutral_texts()[:NEUTRAL_TEXTS]


async def search(
    engine: Engine,
    dictionary: Dictionary,
    *,
    vector: Direction | None = None,
    texts: Sequence[Prompt] = (),
    against: Sequence[Prompt] = (),
    top: int = 20,
    min_output_score: float | None = None,
) -> list[FeatureAnswer]:
    """Returns at most `top` features, best first. Raises VectorModelMismatch, and UnsupportedParameter for an engine
    that cannot unembed.

    vector: compared with decoder rows (score: cosine). texts, without it: compared in mean activation with `against`,
    by default neutral texts; only features that are more active there. min_output_score: lowest output score of a feature; None: not measured.
    """
    check_dictionary(dictionary, engine.info)
    unembedding = unembedding_of(engine)
    if vector is not None:
        direction = vector[None]
        scores = await run_in_thread(lambda: torch.nn.functional.cosine_similarity(dictionary.decoder(), direction))
    else:
        encoder = await run_in_thread(dictionary.encoder)
        scores = await _activity(engine, dictionary.layer, encoder, texts)
        scores = scores - await _activity(engine, dictionary.layer, encoder, compared_texts(against))
    limit = top if min_output_score is None else MAX_SCORED
    if vector is None:
        limit = min(limit, int((scores > 0.0).sum()))  # features that are not more active there are no answer
        if not limit:
            return []
    values, features = await run_in_thread(_largest, scores, limit)
    rows = await run_in_thread(dictionary.rows, features)
    _, promoted = await run_in_thread(_largest, await unembedding.unembed(rows), PROMOTED)
    text = engine.tokenizer.token_text
    tokens = await run_in_thread(lambda: [[ReadToken(id=i, text=text(i)) for i in ids] for ids in promoted])
    outputs: Sequence[float | None] = [None] * len(features)
    if min_output_score is not None:
        outputs = await output_scores(engine, dictionary.layer, rows, promoted)
    found = [
        FeatureAnswer(feature=feature, score=score, promoted=listed, output_score=output)
        for feature, score, listed, output in zip(features, values, tokens, outputs, strict=True)
        if output is None or output >= (min_output_score or 0.0)
    ]
    return found[:top]


def _largest(values: Tensor, count: int) -> tuple[list[Any], list[Any]]:
    """Returns the largest values of each row and their indices, largest first."""
    found = values.topk(min(count, values.shape[-1]), dim=-1)
    return found.values.tolist(), found.indices.tolist()


async def _activity(engine: Engine, layer: int, encoder: Encoder, texts: Sequence[Prompt]) -> Float[Tensor, "feature"]:
    """Returns the mean activation of every feature over the tokens of the texts but the first of each."""
    total, count = torch.zeros_like(encoder.bias), 0
    for text in texts:  # one at a time, so that the residuals of one text are held
        (read,) = await engine.capture([CapturePrompt(text)], CaptureSpec((layer,), "all"))
        rows = read.activations[0][1:] if read.activations.shape[1] > 1 else read.activations[0]
        total += await run_in_thread(encoder.total, rows)
        count += len(rows)
    return total / max(count, 1)


async def output_scores(
    engine: Engine, layer: int, rows: Float[Tensor, "feature d_model"], promoted: Sequence[Sequence[int]]
) -> list[float]:
    """Returns how far each feature makes the model say what it promotes, after Arad et al., arXiv 2505.20063: the rise
    of the most probable of its promoted tokens, times the share of the vocabulary below it, when the feature is added
    at the last position of a neutral prompt at relative dose DOSE."""
    info, spec = engine.info, CaptureSpec((), logits=True)
    ids = engine.tokenizer.encode(PROBE_PROMPT)
    (plain,) = await engine.capture([CapturePrompt(ids)], spec)
    found = []
    for row, tokens in zip(rows, promoted, strict=True):
        at = {layer: LayerDirection(torch.nn.functional.normalize(row, dim=0), scale=1.0)}
        vector = ConceptVector("feature", info.name, info.fingerprint, info.d_model, "given", at, version=1)
        item = InterventionSpec(
            vector="feature", strength=DOSE, unit="relative", layers=(layer,), scope=TokenScope(tokens="last")
        )
        plan = await planned(info, vector, item)
        (steered,) = await engine.capture([CapturePrompt(ids, plan)], spec)
        found.append(await run_in_thread(_output_score, plain, steered, tokens))
    return found


def _output_score(plain: Capture, steered: Capture, tokens: Sequence[int]) -> float:
    assert plain.logits is not None
    assert steered.logits is not None
    before, after = plain.logits[-1].softmax(-1), steered.logits[-1].softmax(-1)
    best = max(tokens, key=lambda token: float(after[token]))
    rank = int((after > after[best]).sum())
    return max(float(after[best] - before[best]), 0.0) * (1.0 - rank / len(after))
