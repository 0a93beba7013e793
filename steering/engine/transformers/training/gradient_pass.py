"""Computes what an added direction does to the likelihoods of texts, and the gradient with respect to the direction."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from steering.engine.transformers.unembedding import Unembedding
from steering.errors import NonfiniteActivations, UnsupportedParameter
from steering.model.hooks import ResidualHooks, StopForward
from steering.model.layout import residual_of
from steering.shapes import Bool, Direction, Float, Residual, Tensor


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


Measured: TypeAlias = tuple[Float[Tensor, "text"], Float[Tensor, "text d_model"]]
"""A number for each text, and its gradient with respect to the direction; float32, on the host."""
Pieces: TypeAlias = Generator[None, None, Measured]
"""Yields after each piece of the work; returns the result."""
Objective: TypeAlias = Callable[[Tensor], Tensor]
"""Log-probabilities (scored, vocab) -> a number for each text."""


class _Rows:
    """Texts in rows, padded on the right. token_ids (text, position); predicting (text, position): positions whose
    predictions count; targets (scored,): the tokens there, row by row; owner (scored,): their texts."""

    def __init__(self, texts: Sequence[ScoredText], device: torch.device) -> None:
        longest = max(len(text.ids) for text in texts)
        token_ids = torch.zeros(len(texts), longest, dtype=torch.int64)
        predicting = torch.zeros(len(texts), longest, dtype=torch.bool)
        for row, text in enumerate(texts):
            token_ids[row, : len(text.ids)] = torch.tensor(text.ids)
            predicting[row, text.start - 1 : len(text.ids) - 1] = True
        self.token_ids = token_ids.to(device)
        self.predicting: Bool[Tensor, "text position"] = predicting.to(device)
        self.targets = self.token_ids[:, 1:][self.predicting[:, :-1]]
        self.owner = self.predicting.nonzero()[:, 0]

    def summed(self, values: Float[Tensor, "scored"]) -> Float[Tensor, "text"]:
        """Adds up the values of each text's tokens."""
        return values.new_zeros(len(self.token_ids)).index_add(0, self.owner, values)


@dataclass(slots=True, eq=False)
class _Recorded:
    """What a forward pass leaves for the backward pass: the call of each block after the steered one, and the last
    residuals (text, position, d_model), empty until the pass has ended."""

    calls: list[Callable[[Tensor], Tensor]]
    inputs: list[Float[Tensor, "text position d_model"]]
    last: Tensor
    storage: int = 0
    """Address of the residual that left the last block, which must be what arrives at the next."""


class GradientPass:
    """Passes without a cache over padded texts, where causality hides the padding.

    The forward pass keeps the residual at every block boundary; the backward pass computes one block at a time again,
    with gradients (checkpointing: Chen et al., arXiv 1604.06174). So a piece of work is one block, memory is one block's
    activations, and every forward pass, steered or not, runs the same kernels. The weights are constants.
    """

    def __init__(self, unembedding: Unembedding, hooks: ResidualHooks, device: torch.device) -> None:
        self._model, self._layout, self._head = unembedding.model, unembedding.layout, unembedding
        self._hooks, self._device = hooks, device

    def score(self, texts: Sequence[ScoredText], layer: int, direction: Direction) -> Pieces:
        """Computes the sum of log p over each text's scored tokens, and its gradient.

        direction (d_model,) is added after block `layer`. Without any amount the gradient is zero and not computed.
        Raises NonfiniteActivations.
        """
        rows = _Rows(texts, self._device)

        def likelihood(logprobs: Tensor) -> Tensor:
            return rows.summed(logprobs.gather(1, rows.targets[:, None])[:, 0])

        return (yield from self._measured(rows, texts, layer, direction, likelihood))

    def diverge(self, texts: Sequence[ScoredText], layer: int, direction: Direction) -> Pieces:
        """Computes the mean of KL(steered || unsteered), in nats, over the predictions of each text's scored tokens, and
        its gradient. Otherwise as `score`."""
        rows = _Rows(texts, self._device)
        recorded = self._forward(rows, layer, None)
        yield
        with torch.enable_grad():  # by the kernels of the steered pass
            plain = self._logprobs(recorded.last[rows.predicting].requires_grad_()).detach()
        yield
        counts = torch.tensor([float(text.scored) for text in texts], device=self._device)

        def divergence(steered: Tensor) -> Tensor:
            return rows.summed((steered.exp() * (steered - plain)).sum(1)) / counts

        return (yield from self._measured(rows, texts, layer, direction, divergence))

    def _measured(
        self, rows: _Rows, texts: Sequence[ScoredText], layer: int, direction: Direction, objective: Objective
    ) -> Pieces:
        amounts = torch.tensor([text.amount for text in texts])[:, None]
        recorded = self._forward(rows, layer, (amounts * direction).to(self._device))
        yield
        last = recorded.last[rows.predicting]
        with torch.enable_grad():
            values = objective(self._logprobs(last.requires_grad_()))
            (slope,) = torch.autograd.grad(values.sum(), last)
        gradient = torch.zeros(len(texts), direction.shape[0])
        if bool(amounts.any()):
            yield
            slopes = yield from self._backward(recorded, rows.predicting, slope)
            gradient = slopes.sum(1).to(torch.float32).cpu() * amounts
        values = values.detach().to(torch.float32).cpu()
        if not bool(torch.isfinite(values).all() and torch.isfinite(gradient).all()):
            raise NonfiniteActivations("the direction drove the activations out of range; fit it at lower strengths")
        return values, gradient

    def _forward(self, rows: _Rows, layer: int, added: Float[Tensor, "text d_model"] | None) -> _Recorded:
        """Runs all blocks without gradients, with a vector added after block `layer` at every position."""
        recorded = _Recorded([], [], torch.empty(0))
        last = self._layout.layer_count - 1

        def apply(index: int, residual: Residual) -> Residual | None:
            if index == layer and added is not None:
                shown = residual.to(torch.float32).reshape(*rows.token_ids.shape, -1)
                residual = (shown + added[:, None].to(residual.device)).to(residual.dtype).reshape(residual.shape)
            if index == last:
                recorded.last = residual.reshape(*rows.token_ids.shape, -1).clone()
                raise StopForward
            recorded.storage = residual.data_ptr()
            return residual

        handles = [
            block.register_forward_pre_hook(_recorder(block, recorded), with_kwargs=True)
            for block in self._layout.blocks[layer + 1 :]
        ]
        try:
            with torch.no_grad(), self._hooks.step(apply, range(layer, last + 1)):
                self._model(**self._arguments(rows))
        except StopForward:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return recorded

    def _arguments(self, rows: _Rows) -> dict[str, Any]:
        arguments: dict[str, Any] = {"input_ids": rows.token_ids, "use_cache": False}
        if self._layout.attention == "own":
            arguments["attention_mask"] = torch.ones_like(rows.token_ids)
        else:
            positions = torch.arange(rows.token_ids.shape[1], device=self._device)
            arguments["position_ids"] = positions[None].expand(len(rows.token_ids), -1)
        return arguments

    def _backward(
        self, recorded: _Recorded, predicting: Bool[Tensor, "text position"], slope: Float[Tensor, "scored d_model"]
    ) -> Generator[None, None, Float[Tensor, "text position d_model"]]:
        """Returns the gradient with respect to the residuals after the steered block, a block at a time."""
        gradient = torch.zeros_like(recorded.last)
        gradient[predicting] = slope.to(gradient.dtype)
        while recorded.calls:
            call, arriving = recorded.calls.pop(), recorded.inputs.pop().requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(call(arriving), arriving, gradient)
            yield
        return gradient

    def _logprobs(self, residual: Float[Tensor, "scored d_model"]) -> Float[Tensor, "scored vocab"]:
        logits = self._head.logits(residual).to(self._device)
        return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=1)


def _recorder(block: Any, recorded: _Recorded) -> Callable[..., None]:
    """Returns a hook that notes how a block was called. Blocks can be called again: gradient checkpointing does so."""

    def record(_block: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if arguments:
            hidden, *rest = arguments
            recorded.calls.append(lambda arriving: residual_of(block(arriving, *rest, **named)))
        else:
            hidden = named["hidden_states"]
            recorded.calls.append(lambda arriving: residual_of(block(**{**named, "hidden_states": arriving})))
        if hidden.data_ptr() != recorded.storage:
            raise UnsupportedParameter(
                "this architecture changes the residual stream between its blocks, so no direction can be trained",
                param="method",
            )
        recorded.inputs.append(hidden.detach().clone())

    return record
