"""Two tiny models whose residual streams are one another's, turned by a known rotation: the map between them is planted."""

import itertools
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from steering.pairs import ContrastivePair, PairSet
from tests.families import D_MODEL, FAMILIES

WORDS = ("a boat on the sea", "the old road", "some bread", "her garden", "a long letter", "rain in June", "his chair")
PAIRS = PairSet.of(
    [
        ContrastivePair(f"{good}: {word}.", f"{bad}: {word}.", topic=word)
        for word in WORDS
        for good, bad in (("lovely", "gloomy"), ("sweet!!", "sour..."))
    ]
)
ANCHORS = tuple(f"{first} {second} {number * 7}" for number in range(6) for first, second in itertools.pairwise(WORDS))


@dataclass(frozen=True)
class Planted:
    """model: a tiny llama. turned: the same with residuals r @ rotation."""

    model: PreTrainedModel
    turned: PreTrainedModel
    rotation: torch.Tensor


def planted() -> Planted:
    """RMSNorm with weights of one commutes with a rotation, so the turned model computes the same logits."""
    model, turned = FAMILIES["llama"](), FAMILIES["llama"]()
    generator = torch.Generator().manual_seed(3)
    rotation = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=generator)).Q
    with torch.no_grad():
        for name, parameter in turned.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.copy_(rotation.T @ parameter)
            elif parameter.dim() == 2:
                parameter.copy_(parameter @ rotation)
    return Planted(model, turned, rotation)
