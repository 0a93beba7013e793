"""Fits a direction by gradient against the frozen model, in pieces that run between the passes of live requests."""

import random
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.nn.functional import normalize, softplus

from steering.engine.api import FitTask, FittedDirection
from steering.engine.transformers.unembedding import Unembedding
from steering.errors import NonfiniteActivations, UnsupportedParameter
from steering.model.hook_points import residual_of
from steering.model.hooks import ResidualHooks, StopForward
from steering.shapes import Direction, Float, Int, Residual, Tensor
from steering.uploads import uploaded

MAX_BATCH_TOKENS = 256  # positions of a batch of texts, padding included; a longer text is a batch by itself
BETA = 0.1  # scale of the log-likelihood ratios, as in DPO (Rafailov et al., arXiv 2305.18290)
LIKELIHOOD_WEIGHT = 0.3  # weight of the mean log-likelihood of the preferred text, which keeps it fluent
BETAS = (0.9, 0.99)
Measured: TypeAlias = tuple[Float[Tensor, "text"], Float[Tensor, "text d_model"]]
"""A number for each text, and its gradient with respect to the direction; float32, on the host."""
Pieces: TypeAlias = Generator[None, None, Measured]  # yields after each piece of the work; returns the result
Predicting: TypeAlias = tuple[Int[Tensor, "scored"], Int[Tensor, "scored"]]
Objective: TypeAlias = Callable[[Tensor], Tensor]  # log-probabilities (scored, vocab) -> a number for each text


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


Measure: TypeAlias = Callable[[Sequence[ScoredText], int, Direction], Pieces]


class _Rows:
    """Texts in rows, padded on the right.

    token_ids (text, position).
    predicting: the texts and the positions whose predictions count, row by row.
    targets (scored,): the tokens there. owner (scored,): their texts.
    """

    def __init__(self, texts: Sequence[ScoredText], device: torch.device) -> None:
        longest = max(len(text.ids) for text in texts)
        token_ids = torch.zeros(len(texts), longest, dtype=torch.int64)
        for row, text in enumerate(texts):
            token_ids[row, : len(text.ids)] = torch.tensor(text.ids)
        self.token_ids = uploaded(token_ids, device)
        # numbers and no mask, whose positions the host would have to wait for
        places = [(row, at) for row, text in enumerate(texts) for at in range(text.start - 1, len(text.ids) - 1)]
        self.owner, positions = uploaded(places, device, torch.int64).view(-1, 2).unbind(1)
        self.predicting: Predicting = (self.owner, positions)
        self.targets = self.token_ids[self.owner, positions + 1]

    def summed(self, values: Float[Tensor, "scored"]) -> Float[Tensor, "text"]:
        """Adds up the values of each text's tokens."""
        return values.new_zeros(len(self.token_ids)).index_add(0, self.owner, values)


@dataclass(slots=True, eq=False)
class _Recorded:
    """What a forward pass leaves for the backward pass: the call of each block after the steered one, its input, and the last
    residuals (text, position, d_model). storage: address of what left the last block and must arrive at the next."""

    calls: list[Callable[[Tensor], Tensor]]
    inputs: list[Float[Tensor, "text position d_model"]]
    last: Tensor
    storage: int = 0

    def predictions(self, rows: _Rows) -> Float[Tensor, "scored d_model"]:
        """Returns the last residuals at the positions whose predictions count."""
        owner, positions = rows.predicting
        return self.last[owner.to(self.last.device), positions.to(self.last.device)]


class GradientPass:
    """Measures what an added direction does to the likelihoods of texts, and the gradient with respect to the direction.

    Passes have no cache and run over padded texts, where causality hides the padding. The forward pass keeps the residual at
    every block boundary; the backward pass computes one block at a time again, with gradients (checkpointing: Chen et al., arXiv
    1604.06174). So a piece of work is one block, memory is one block's activations, and every forward pass, steered or not, runs
    the same kernels. The weights are constants.
    """

    def __init__(self, unembedding: Unembedding, hooks: ResidualHooks, device: torch.device) -> None:
        self._model, self._layout, self._head = unembedding.model, unembedding.layout, unembedding
        self._hooks, self._device = hooks, device

    def score(self, texts: Sequence[ScoredText], layer: int, direction: Direction) -> Pieces:
        """Computes the sum of log p over each text's scored tokens, and its gradient; zero where no text has an amount.

        The direction is added after block `layer`. Raises NonfiniteActivations.
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
            plain = self._logprobs(recorded.predictions(rows).requires_grad_()).detach()
        yield
        counts = uploaded([float(text.scored) for text in texts], self._device)

        def divergence(steered: Tensor) -> Tensor:
            return rows.summed((steered.exp() * (steered - plain)).sum(1)) / counts

        return (yield from self._measured(rows, texts, layer, direction, divergence))

    def _measured(
        self, rows: _Rows, texts: Sequence[ScoredText], layer: int, direction: Direction, objective: Objective
    ) -> Pieces:
        amounts = torch.tensor([text.amount for text in texts])[:, None]
        recorded = self._forward(rows, layer, uploaded(amounts * direction, self._device))
        yield
        last = recorded.predictions(rows)
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

        arguments: dict[str, Any] = {"input_ids": rows.token_ids, "use_cache": False}
        if self._layout.attention == "own":
            arguments["attention_mask"] = torch.ones_like(rows.token_ids)
        else:
            positions = torch.arange(rows.token_ids.shape[1], device=self._device)
            arguments["position_ids"] = positions[None].expand(len(rows.token_ids), -1)
        handles = [
            block.register_forward_pre_hook(_recorder(block, recorded), with_kwargs=True)
            for block in self._layout.blocks[layer + 1 :]
        ]
        try:
            with torch.no_grad(), self._hooks.step(apply, range(layer, last + 1)):
                self._model(**arguments)
        except StopForward:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return recorded

    def _backward(
        self, recorded: _Recorded, predicting: Predicting, slope: Float[Tensor, "scored d_model"]
    ) -> Generator[None, None, Float[Tensor, "text position d_model"]]:
        """Returns the gradient with respect to the residuals after the steered block, a block at a time."""
        gradient = torch.zeros_like(recorded.last)
        owner, positions = (one.to(gradient.device) for one in predicting)
        gradient[owner, positions] = slope.to(gradient.device, gradient.dtype)
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


def fit(task: FitTask, passes: GradientPass, d_model: int) -> Generator[int | None, None, FittedDirection]:
    """Runs the whole fit. Yields None after a piece, the number of finished steps after a step.

    The pieces depend on the task alone, so the same task gives the same direction whatever else is served meanwhile.
    """
    rng = random.Random(task.seed)  # noqa: S311 - a reproducible draw, no secret
    start = task.initial
    if start is None:
        start = torch.randn(d_model, generator=torch.Generator().manual_seed(task.seed % 2**63))
    direction: Direction = normalize(start.detach().cpu().float(), dim=0)
    optimizer = SphereAdam(task.learning_rate, task.steps)
    texts = [ScoredText(ids, pair.start, 0.0) for pair in task.pairs for ids in (pair.positive, pair.negative)]
    plain, _ = yield from _batched(passes.score, texts, task.layer, direction)
    pairs, others, losses = _endless(len(task.pairs), rng), _endless(len(task.neutral), rng), list[float]()
    for step in range(task.steps):
        drawn = [(next(pairs), rng.uniform(*task.strengths)) for _ in range(task.batch)]
        texts, unsteered = _steered(task, drawn, plain)
        likelihoods, slopes = yield from _batched(passes.score, texts, task.layer, direction)
        lengths = torch.tensor([float(text.scored) for text in texts])
        loss, weights = _preference_loss(likelihoods, unsteered, lengths)
        gradient = weights @ slopes
        if task.neutral:
            texts = [_neutral(task, next(others), rng) for _ in range(max(1, task.batch // 2))]
            divergences, slopes = yield from _batched(passes.diverge, texts, task.layer, direction)
            loss += task.kl_coefficient * float(divergences.mean())
            gradient = gradient + task.kl_coefficient * slopes.mean(0)
        direction = optimizer.step(direction, gradient)
        losses.append(loss)
        yield step + 1
    return FittedDirection(direction, tuple(losses))


def _endless(count: int, rng: random.Random) -> Iterator[int]:
    """Yields every index once in random order, then again in another."""
    while count:
        yield from rng.sample(range(count), count)


def _steered(
    task: FitTask, drawn: Sequence[tuple[int, float]], plain: Float[Tensor, "text"]
) -> tuple[list[ScoredText], Float[Tensor, "drawn"]]:
    """Returns the texts of one step, preferred and rejected in turn, and their unsteered log-likelihoods.

    Every pair comes with both signs of its strength: added, its positive text is preferred; subtracted, its negative.
    """
    texts: list[ScoredText] = []
    rows: list[int] = []
    for index, strength in drawn:
        pair, amount = task.pairs[index], strength * task.amount
        positive, negative = 2 * index, 2 * index + 1
        texts += [ScoredText(ids, pair.start, amount) for ids in (pair.positive, pair.negative)]
        texts += [ScoredText(ids, pair.start, -amount) for ids in (pair.negative, pair.positive)]
        rows += [positive, negative, negative, positive]
    return texts, plain[rows]


def _neutral(task: FitTask, index: int, rng: random.Random) -> ScoredText:
    """Returns a neutral text with a strength of either sign."""
    neutral = task.neutral[index]
    return ScoredText(neutral.ids, neutral.start, rng.choice((-1.0, 1.0)) * rng.uniform(*task.strengths) * task.amount)


def _batched(
    measure: Measure, texts: Sequence[ScoredText], layer: int, direction: Direction
) -> Generator[None, None, Measured]:
    """Measures texts of similar length together, as many as fit into a batch; returns the results in the order of the texts."""
    batches: list[list[int]] = []
    for row in sorted(range(len(texts)), key=lambda row: (-len(texts[row].ids), row)):
        if batches and len(texts[batches[-1][0]].ids) * (len(batches[-1]) + 1) <= MAX_BATCH_TOKENS:
            batches[-1].append(row)
        else:
            batches.append([row])
    values = torch.zeros(len(texts))
    gradients = torch.zeros(len(texts), len(direction))
    for rows in batches:
        values[rows], gradients[rows] = yield from measure([texts[row] for row in rows], layer, direction)
        yield
    return values, gradients


def _preference_loss(
    steered: Float[Tensor, "text"], unsteered: Float[Tensor, "text"], scored: Float[Tensor, "text"]
) -> tuple[float, Float[Tensor, "text"]]:
    """Returns the loss and its derivative by each steered likelihood, of texts that alternate: preferred, rejected, preferred, ...

    steered, unsteered: log-likelihoods of their scored tokens in nats; scored: how many tokens those are.
    gain = (l_preferred - l0_preferred) - (l_rejected - l0_rejected);  loss = softplus(-beta gain) - lambda l_preferred / n,
    mean over the pairs.
    """
    gained = steered - unsteered
    gain = BETA * (gained[0::2] - gained[1::2])
    pull = BETA * torch.sigmoid(-gain)
    weight = LIKELIHOOD_WEIGHT / scored[0::2]
    loss = softplus(-gain) - weight * steered[0::2]
    return float(loss.mean()), torch.stack([-pull - weight, pull], dim=1).reshape(-1) / len(gain)


class SphereAdam:
    """Adam over unit directions, with a rate that falls to 0 linearly.

    Not torch.optim.Adam: its first use imports the compiler, which takes 1.1 s of the engine's thread.
    """

    def __init__(self, rate: float, steps: int) -> None:
        self._rate, self._steps, self._count = rate, steps, 0
        self._first = self._second = torch.zeros(())

    def step(self, direction: Direction, gradient: Direction) -> Direction:
        """Moves a unit direction against the part of the gradient that turns it."""
        gradient = gradient - (gradient @ direction) * direction
        self._first = BETAS[0] * self._first + (1 - BETAS[0]) * gradient
        self._second = BETAS[1] * self._second + (1 - BETAS[1]) * gradient.square()
        rate = self._rate * (1 - self._count / self._steps)
        self._count += 1
        first = self._first / (1 - BETAS[0] ** self._count)
        second = self._second / (1 - BETAS[1] ** self._count)
        return normalize(direction - rate * first / (second.sqrt() + 1e-12), dim=0)
