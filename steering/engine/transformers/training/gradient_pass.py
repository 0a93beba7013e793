"""GradientPass: what an added direction does to texts, and which way it would have to turn to do more or less of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

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


class _Rows:
    """Texts side by side. token_ids (text, position), padded on the right; `targets` (scored,) are the tokens that count,
    row by row, and `owner` (scored,) whose they are; logits are wanted at positions `first` and after."""

    def __init__(self, texts: Sequence[ScoredText], device: torch.device) -> None:
        self.first = min(text.start for text in texts) - 1
        self.longest = max(len(text.ids) for text in texts)
        token_ids = torch.zeros(len(texts), self.longest, dtype=torch.int64)
        scored = torch.zeros(len(texts), self.longest, dtype=torch.bool)
        for row, text in enumerate(texts):
            token_ids[row, : len(text.ids)] = torch.tensor(text.ids)
            scored[row, text.start : len(text.ids)] = True
        self.token_ids = token_ids.to(device)
        self.wanted = scored[:, self.first + 1 :].to(device)
        self.targets = self.token_ids[:, self.first + 1 :][self.wanted]
        self.owner = self.wanted.nonzero()[:, 0]

    def summed(self, values: Float[Tensor, "scored"]) -> Float[Tensor, "text"]:
        """The values of each text's tokens, added up."""
        return torch.zeros(len(self.token_ids), device=values.device).index_add(0, self.owner, values)


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
        rows = _Rows(texts, self._device)

        def likelihood(added: Tensor) -> Tensor:
            logprobs = self._logprobs(rows, layer, added)
            return rows.summed(logprobs.gather(1, rows.targets[:, None])[:, 0])

        return self._differentiated(likelihood, texts, direction)

    def diverge(
        self, texts: Sequence[ScoredText], layer: int, direction: Direction
    ) -> tuple[Float[Tensor, "text"], Float[Tensor, "text d_model"]]:
        """(mean of KL(steered || unsteered) in nats over the predictions of each text's scored tokens, its gradient).

        As `score` otherwise.
        """
        rows = _Rows(texts, self._device)
        with torch.no_grad():
            plain = self._logprobs(rows, layer, None)
        counts = torch.tensor([float(text.scored) for text in texts], device=self._device)

        def divergence(added: Tensor) -> Tensor:
            steered = self._logprobs(rows, layer, added)
            return rows.summed((steered.exp() * (steered - plain)).sum(1)) / counts

        return self._differentiated(divergence, texts, direction)

    def _differentiated(
        self, measure: Callable[[Tensor], Tensor], texts: Sequence[ScoredText], direction: Direction
    ) -> tuple[Float[Tensor, "text"], Float[Tensor, "text d_model"]]:
        """What `measure` says of added (text, d_model), a number a text, and its gradient by the direction itself."""
        amounts = torch.tensor([text.amount for text in texts])[:, None]
        added = (amounts * direction).to(self._device)
        if bool(amounts.any()):
            with torch.enable_grad():
                values = measure(added.requires_grad_())
                (gradient,) = torch.autograd.grad(values.sum(), added)
        else:
            with torch.no_grad():
                values, gradient = measure(added), torch.zeros_like(added)
        values, gradient = values.detach().cpu(), gradient.cpu() * amounts
        if not bool(torch.isfinite(values).all() and torch.isfinite(gradient).all()):
            raise NonfiniteActivations("the direction drove the activations out of range; fit it at lower strengths")
        return values, gradient

    def _logprobs(
        self, rows: _Rows, layer: int, added: Float[Tensor, "text d_model"] | None
    ) -> Float[Tensor, "scored vocab"]:
        """The predictions of the scored tokens; a function of `added` where it wants a gradient. None adds nothing."""

        def apply(_layer: int, residual: Residual) -> Residual | None:
            if added is None:
                return None
            shown = residual.to(torch.float32).reshape(*rows.token_ids.shape, -1)
            return (shown + added[:, None].to(residual.device)).reshape(residual.shape)

        arguments: dict[str, Any] = {
            "input_ids": rows.token_ids,
            "use_cache": False,
            "logits_to_keep": torch.arange(rows.first, rows.longest - 1, device=self._device),
        }
        if self._own:
            arguments["attention_mask"] = torch.ones_like(rows.token_ids)
        else:
            positions = torch.arange(rows.longest, device=self._device)
            arguments["position_ids"] = positions[None].expand(len(rows.token_ids), -1)
        with self._hooks.step(apply, {layer}):
            logits = self._model(**arguments).logits.to(self._device)
        return torch.log_softmax(logits[rows.wanted].float(), dim=1)
