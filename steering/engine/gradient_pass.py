"""GradientPass: how likely texts are under an added direction, and which way the direction would have to turn to change that."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from steering.errors import NonfiniteActivations
from steering.model.hooks import ResidualHooks
from steering.model.layout import Layout
from steering.shapes import Direction, Float, Residual, Tensor


@dataclass(frozen=True, slots=True)
class ScoredText:
    """A text whose tokens from `start` on are scored while amount * direction is added at every position."""

    ids: tuple[int, ...]
    start: int
    amount: float

    @property
    def scored(self) -> int:
        """How many tokens count."""
        return len(self.ids) - self.start


class GradientPass:
    """Short passes without slots: texts side by side, padded on the right, where causality hides the padding.

    The weights are constants: the graph begins at the added direction, so blocks up to the layer leave none, and
    gradients are asked for by name, so that none is ever kept on a parameter.
    """

    def __init__(self, model: Any, layout: Layout, hooks: ResidualHooks, device: torch.device) -> None:
        self._model, self._hooks, self._device = model, hooks, device
        self._own = layout.attention == "own"

    def score(
        self, texts: Sequence[ScoredText], layer: int, direction: Direction
    ) -> tuple[Float[Tensor, "text"], Float[Tensor, "text d_model"]]:
        """(sum of log p over each text's scored tokens, its gradient with respect to the direction), float32, on the host.

        direction (d_model,) is added after block `layer`. Without any amount there is no gradient and none is computed:
        zeros. Raises NonfiniteActivations.
        """
        amounts = torch.tensor([text.amount for text in texts])[:, None]
        added = (amounts * direction).to(self._device)
        if not bool(amounts.any()):
            with torch.no_grad():
                likelihoods, gradient = self._likelihoods(texts, layer, added), torch.zeros_like(added)
        else:
            with torch.enable_grad():
                likelihoods = self._likelihoods(texts, layer, added.requires_grad_())
                (gradient,) = torch.autograd.grad(likelihoods.sum(), added)
        likelihoods, gradient = likelihoods.detach().cpu(), gradient.cpu() * amounts
        if not bool(torch.isfinite(likelihoods).all() and torch.isfinite(gradient).all()):
            raise NonfiniteActivations("the direction drove the activations out of range; fit it at lower strengths")
        return likelihoods, gradient

    def _likelihoods(
        self, texts: Sequence[ScoredText], layer: int, added: Float[Tensor, "text d_model"]
    ) -> Float[Tensor, "text"]:
        """Log-likelihood of each text's scored tokens; a function of `added` where it wants a gradient."""
        longest, first = max(len(text.ids) for text in texts), min(text.start for text in texts) - 1
        token_ids = torch.zeros(len(texts), longest, dtype=torch.int64)
        scored = torch.zeros(len(texts), longest, dtype=torch.bool)
        for row, text in enumerate(texts):
            token_ids[row, : len(text.ids)] = torch.tensor(text.ids)
            scored[row, text.start : len(text.ids)] = True
        token_ids, scored = token_ids.to(self._device), scored.to(self._device)

        def apply(_layer: int, residual: Residual) -> Residual:
            rows = residual.to(torch.float32).reshape(len(texts), longest, -1)
            return (rows + added[:, None].to(residual.device)).reshape(residual.shape)

        arguments: dict[str, Any] = {
            "input_ids": token_ids,
            "use_cache": False,
            "logits_to_keep": torch.arange(first, longest - 1, device=self._device),
        }
        if self._own:
            arguments["attention_mask"] = torch.ones_like(token_ids)
        else:
            arguments["position_ids"] = torch.arange(longest, device=self._device)[None].expand(len(texts), -1)
        with self._hooks.step(apply, {layer}):
            logits = self._model(**arguments).logits.to(self._device)
        wanted = scored[:, first + 1 :]
        surprise = cross_entropy(logits[wanted].float(), token_ids[:, first + 1 :][wanted], reduction="none")
        rows = wanted.nonzero()[:, 0]
        return torch.zeros(len(texts), device=self._device).index_add(0, rows, -surprise)
