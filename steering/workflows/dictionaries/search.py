"""Searches a dictionary: features near a vector, or active on texts; what each promotes, and whether it steers."""

from collections.abc import Sequence
from typing import Any

import torch

from steering.concepts.loader import load_neutral_texts
from steering.engine.api import Capture, CapturePrompt, CaptureSpec, Engine, Prompt
from steering.engine.capabilities import unembedding_of
from steering.errors import InvalidRequest, VectorModelMismatch
from steering.model.info import ModelInfo
from steering.plan.resolve import resolve
from steering.schemas.latent_space import FeatureAnswer, PromotedToken
from steering.shapes import Direction, Float, Tensor
from steering.spec import InterventionSpec, SteeringSpec, TokenScope
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, LayerDirection
from steering.workflows.dictionaries.folder import Dictionary, Encoder
from steering.workflows.evaluation.setup import UNGUARDED, GivenVectors

PROMOTED = 8
"""Tokens that a feature promotes, most first."""
NEUTRAL_TEXTS = 32
"""Texts that activations are compared with where the caller gives none."""
DOSE = 0.5
"""Relative dose at which a feature's output score is measured."""
PROBE_PROMPT = "In my experience,"
MAX_SCORED = 64
"""Features whose output score one search measures: each takes a pass over the probe prompt."""


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
    """Returns features, best first, at most `top`.

    vector: a direction that decoder rows are compared with (score: the cosine); or texts, in which features are to be more
    active than in `against`, by default neutral ones (score: the difference, as a mean over tokens). min_output_score: features
    below it are left out; None: the output score is not measured.

    Raises VectorModelMismatch, UnsupportedParameter for an engine that cannot unembed.
    """
    check_dictionary(dictionary, engine.info)
    unembedding = unembedding_of(engine)
    if vector is not None:
        direction = vector[None]
        scores = await run_in_thread(lambda: torch.nn.functional.cosine_similarity(dictionary.decoder(), direction))
    else:
        scores = await _contrast(engine, dictionary, texts, against)
    limit = top if min_output_score is None else MAX_SCORED
    values, features = await run_in_thread(_largest, scores, limit)
    rows = await run_in_thread(dictionary.rows, features)
    _, promoted = await run_in_thread(_largest, await unembedding.unembed(rows), PROMOTED)
    text = engine.tokenizer.token_text
    tokens = await run_in_thread(lambda: [[PromotedToken(id=i, text=text(i)) for i in ids] for ids in promoted])
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


async def _contrast(
    engine: Engine, dictionary: Dictionary, texts: Sequence[Prompt], against: Sequence[Prompt]
) -> Float[Tensor, "feature"]:
    """How much more active every feature is in the texts than in what they are compared with."""
    if not texts:
        raise InvalidRequest("give 'vector' or 'texts' to search for", param="texts")
    encoder = await run_in_thread(dictionary.encoder)
    active = await _activity(engine, dictionary.layer, encoder, texts)
    return active - await _activity(engine, dictionary.layer, encoder, compared_texts(against))


async def _activity(engine: Engine, layer: int, encoder: Encoder, texts: Sequence[Prompt]) -> Float[Tensor, "feature"]:
    """Mean activation of every feature over the tokens of the texts but the first of each, whose norm is of its own."""
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
    """Returns how far each feature makes the model say what it promotes: the rise of the most probable of its promoted tokens, times
    the share of the vocabulary below it, when the feature is added at the last position of a neutral prompt at relative dose DOSE.

    After the output score of Arad et al., arXiv 2505.20063: features that are active on a concept often do not steer toward it.
    """
    info, spec = engine.info, CaptureSpec((), logits=True)
    ids = engine.tokenizer.encode(PROBE_PROMPT)
    (plain,) = await engine.capture([CapturePrompt(ids)], spec)
    found = []
    for row, tokens in zip(rows, promoted, strict=True):
        vector = ConceptVector(
            "feature", info.name, info.fingerprint, info.d_model, "given",
            {layer: LayerDirection(torch.nn.functional.normalize(row, dim=0), scale=1.0)}, version=1,
        )  # fmt: skip
        item = InterventionSpec(
            vector="feature", strength=DOSE, unit="relative", layers=(layer,), scope=TokenScope(tokens="last")
        )
        plan = await resolve(SteeringSpec(interventions=(item,)), GivenVectors((vector,)), info, guard=UNGUARDED)
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
