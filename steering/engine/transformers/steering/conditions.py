"""ConditionEvaluator: which thresholds hold for each token of a pass. Scored on the device; what a row decided stays in its slot."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch

from steering.conditions import CONDITIONS
from steering.engine.transformers.batch import Batch
from steering.engine.transformers.segment import Segment
from steering.plan.types import ConditionTree, ResolvedThreshold
from steering.rowwise import dot
from steering.shapes import Bool, Float, Int, Residual, Tensor


@dataclass(slots=True, eq=False)
class _Tests:
    """All tests of one score at one layer: token, column, and what is compared. For a packed pass, `carried`: tests with
    hysteresis, and `lasting`: decisions at a prompt's end, which hold for the rest of the segment."""

    score: str
    tokens: Int[Tensor, "test"]
    columns: Int[Tensor, "test"]
    directions: Float[Tensor, "test d_model"]
    parameters: Float[Tensor, "test n"]
    signs: Float[Tensor, "test"]
    bounds: Float[Tensor, "test"]
    until: Float[Tensor, "test"]
    carried: tuple[tuple[slice, int, int], ...]
    lasting: tuple[tuple[int, slice, int], ...]


class ConditionEvaluator:
    """holds (token, column): whether each threshold of the token's plan holds there, as 0 or 1.

    In a decode pass the board is the slots' own state: a threshold read at layer c is renewed when the pass reaches c,
    so an earlier layer still sees the decision of the token before. In a packed pass it starts at 0 and the decision
    at each segment's last token becomes the slot's state.
    """

    def __init__(self, batch: Batch, state: Float[Tensor, "slot column"], device: torch.device) -> None:
        self._batch, self._state, self._device = batch, state, device
        width = max((len(s.sequence.plan.thresholds) for s in batch.segments), default=0)
        self.width = width
        self.holds = state[: batch.tokens, :width] if batch.decode else self._carried_in(width)
        self._tests = self._collect()
        self.layers = frozenset(layer for layer, _ in self._tests)

    def _carried_in(self, width: int) -> Float[Tensor, "token column"]:
        """Zeros, but for segments of generated positions: they know what was decided before them."""
        holds = self._state.new_zeros(self._batch.tokens, width)
        for segment in self._batch.segments:
            if width and segment.first >= segment.sequence.prompt_length:
                holds[segment.start : segment.end] = self._state[segment.sequence.slot, :width]
        return holds

    def _collect(self) -> dict[tuple[int, str], _Tests]:
        members: dict[tuple[int, str], list[tuple[Segment, int, ResolvedThreshold, range]]] = {}
        for segment in self._batch.segments:
            for column, threshold in enumerate(segment.sequence.plan.thresholds):
                tokens = self._tokens(segment, threshold)
                if len(tokens):
                    members.setdefault((threshold.layer, threshold.score), []).append(
                        (segment, column, threshold, tokens)
                    )
        return {key: self._stack(key[1], found) for key, found in members.items()}

    def _tokens(self, segment: Segment, threshold: ResolvedThreshold) -> range:
        """Flat rows at which the test is made: every token, or the prompt's last alone."""
        if threshold.at == "token":
            return range(segment.start, segment.end)
        flat = segment.start + (segment.sequence.prompt_length - 1 - segment.first)
        return range(flat, flat + 1) if segment.start <= flat < segment.end else range(0)

    def _stack(self, score: str, members: Rows[tuple[Segment, int, ResolvedThreshold, range]]) -> _Tests:
        tokens: list[int] = []
        columns: list[int] = []
        spread: list[int] = []
        carried: list[tuple[slice, int, int]] = []
        lasting: list[tuple[int, slice, int]] = []
        for index, (segment, column, threshold, where) in enumerate(members):
            if threshold.until is not None and not self._batch.decode:
                carried.append((slice(len(tokens), len(tokens) + len(where)), segment.sequence.slot, column))
            if threshold.at == "prompt":
                lasting.append((len(tokens), slice(where.start, segment.end), column))
            tokens.extend(where)
            columns.extend([column] * len(where))
            spread.extend([index] * len(where))
        pick = torch.tensor(spread, device=self._device)

        def column_of(values: list[float]) -> Tensor:
            return torch.tensor(values, device=self._device)[pick]

        thresholds = [threshold for _, _, threshold, _ in members]
        signs = [1.0 if t.above else -1.0 for t in thresholds]
        return _Tests(
            score=score,
            tokens=torch.tensor(tokens, device=self._device),
            columns=torch.tensor(columns, device=self._device),
            directions=torch.stack([t.direction for t in thresholds]).to(self._device)[pick],
            parameters=torch.tensor([list(t.parameters) for t in thresholds], device=self._device)[pick],
            signs=column_of(signs),
            bounds=column_of([s * t.bound for s, t in zip(signs, thresholds, strict=True)]),
            until=column_of(
                [s * (t.bound if t.until is None else t.until) for s, t in zip(signs, thresholds, strict=True)]
            ),
            carried=tuple(carried),
            lasting=tuple(lasting),
        )

    def read(self, layer: int, residual: Residual) -> None:
        """residual (token, d_model) float32, as it arrives at the layer: renews the columns that are tested there."""
        for (at, _), tests in self._tests.items():
            if at != layer:
                continue
            rows = residual.index_select(0, tests.tokens)
            score = CONDITIONS[tests.score].score(rows, tests.directions, tests.parameters) * tests.signs
            on, off = score > tests.bounds, score < tests.until
            before = self.holds[tests.tokens, tests.columns] > 0.0
            # without hysteresis `until` equals the bound; at exactly the bound the test does not hold
            keep = before & (tests.until < tests.bounds)
            held = on | (~off & keep)
            for where, slot, column in tests.carried:
                held[where] = _latched(on[where], off[where], self._state[slot, column] > 0.0)
            self.holds[tests.tokens, tests.columns] = held.to(self.holds.dtype)
            for test, where, column in tests.lasting:
                self.holds[where, column] = held[test].to(self.holds.dtype)

    def settle(self) -> None:
        """After a packed pass: the decision at each segment's last token stays with its slot."""
        if self._batch.decode or self.width == 0:
            return
        for segment in self._batch.segments:
            count = len(segment.sequence.plan.thresholds)
            self._state[segment.sequence.slot, :count] = self.holds[segment.end - 1, :count]


def _latched(on: Bool[Tensor, "token"], off: Bool[Tensor, "token"], before: Tensor) -> Bool[Tensor, "token"]:
    """z_t = 1 where on, 0 where off, else z_(t-1): the newest event before each token decides."""
    index = torch.arange(on.shape[0], device=on.device)
    newest = torch.cummax(torch.where(on | off, index, -1), dim=0).values
    return torch.where(newest >= 0, on[newest.clamp_min(0)], before)


class Circuit:
    """ConditionTree trees of many rows as one small circuit of linear thresholds, evaluated without a loop over rows.

    Node j of a row holds where weights[row, j] . v >= needs[row, j], v being the row's columns followed by its nodes:
    all of k is weights 1 and need k, any is need 1, not is weight -1 and need 0. The last node is the answer.
    """

    def __init__(
        self, decisions: Rows[ConditionTree | None], spread: Rows[int], width: int, device: torch.device
    ) -> None:
        """spread: which tree each row follows."""
        nodes = [_postorder(decision, width) for decision in decisions]
        self._depth, self._width = max(len(row) for row in nodes), width
        weights = torch.zeros(len(nodes), self._depth, width + self._depth)
        needs = torch.full((len(nodes), self._depth), 1.0)
        for row, found in enumerate(nodes):
            # shorter trees pass their answer along, so that every row's answer stands in the last node
            padded = found + [({width + node - 1: 1.0}, 1.0) for node in range(len(found), self._depth)]
            for node, (inputs, need) in enumerate(padded):
                needs[row, node] = need
                for column, weight in inputs.items():
                    weights[row, node, column] = weight
        single = self._only_thresholds(weights[spread])
        self._single = None if single is None else single.to(device)
        self._weights, self._needs = weights[spread].to(device), needs[spread].to(device)

    def _only_thresholds(self, weights: Float[Tensor, "row node column"]) -> Int[Tensor, "row 1"] | None:
        """The column that decides each row, where no row has a tree: the common case, and one lookup."""
        first = weights[:, 0, : self._width]
        # a threshold that is written twice stands once, with weight 2: that is a tree
        plain = self._depth == 1 and self._width > 0 and bool((first.abs().sum(dim=1) <= 1.0).all())
        return first.argmax(dim=1, keepdim=True) if plain and bool((first >= 0.0).all()) else None

    def evaluate(self, holds: Float[Tensor, "row column"]) -> Bool[Tensor, "row"]:
        """holds: each row's columns, 0 or 1."""
        if self._single is not None:
            return holds.gather(1, self._single)[:, 0] >= self._needs[:, 0]
        values = torch.cat([holds, holds.new_zeros(holds.shape[0], self._depth)], dim=1)
        for node in range(self._depth):
            reached = dot(self._weights[:, node], values) >= self._needs[:, node]
            values[:, self._width + node] = reached.to(values.dtype)
        return values[:, -1] > 0.0


def _postorder(decision: ConditionTree | None, width: int) -> list[tuple[dict[int, float], float]]:
    nodes: list[tuple[dict[int, float], float]] = []

    def visit(tree: ConditionTree) -> int:
        if tree.kind == "threshold":
            return tree.threshold
        inputs: dict[int, float] = {}
        for child in tree.children:
            column = visit(child)
            inputs[column] = inputs.get(column, 0.0) + (-1.0 if tree.kind == "not" else 1.0)
        need = {"all": float(len(tree.children)), "any": 1.0, "not": 0.0}[tree.kind]
        nodes.append((inputs, need))
        return width + len(nodes) - 1

    if decision is None:
        return [({}, 0.0)]
    answer = visit(decision)
    if answer < width:
        nodes.append(({answer: 1.0}, 1.0))
    return nodes
