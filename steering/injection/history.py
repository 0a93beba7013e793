"""SteeringHistory: what decided the steering of one request at each position, so that positions can be computed again.

An engine that preempts a request and computes its positions again one at a time needs no history. One that computes them
together, as vLLM does, cannot decide again what depends on the token before: a held readout, or a condition that is read
behind the layer at which it acts. It replays what was decided.
"""

from dataclasses import dataclass, field

import torch

from steering.shapes import Float, Int, Tensor


@dataclass(slots=True, eq=False)
class SteeringHistory:
    """What was decided at the positions that were computed so far.

    What a pass adds is one copy of its own, so that it does not keep the tensors of the pass, which hold all requests.
    """

    prompt_length: int
    _verdicts: list[Int[Tensor, "token threshold"]] = field(default_factory=list)
    _strengths: list[Float[Tensor, "token column"]] = field(default_factory=list)

    def add_verdicts(self, verdicts: Int[Tensor, "token threshold"]) -> None:
        """Adds the next positions, as `ConditionEvaluator` left them."""
        self._verdicts.append(verdicts.clone())

    def add_strengths(self, strengths: Float[Tensor, "token column"]) -> None:
        """Adds what the controllers acted with at the next positions, the first of which is the last of the prompt."""
        self._strengths.append(strengths.clone())

    def verdicts_before(self, first: int, count: int) -> Int[Tensor, "token threshold"]:
        """What was decided when each of some neighbouring positions began: nothing in the prompt, then what the position
        before it had decided."""
        verdicts = _joined(self._verdicts)
        at = torch.arange(first, first + count, device=verdicts.device)
        return verdicts[(at - 1).clamp_min(0)] * (at >= self.prompt_length)[:, None]

    def verdicts_at(self, first: int, count: int) -> Int[Tensor, "token threshold"]:
        """What was decided at each of some neighbouring positions in the end."""
        return _joined(self._verdicts)[first : first + count]

    def strengths_at(self, column: int, first: int, count: int) -> Float[Tensor, "token"]:
        """The strength of a controller at each of some neighbouring positions, from the last of the prompt on."""
        start = first - (self.prompt_length - 1)
        return _joined(self._strengths)[start : start + count, column]


def _joined(pieces: list[Tensor]) -> Tensor:
    """Returns the rows of all pieces, which are one piece from then on."""
    if len(pieces) > 1:
        pieces[:] = [torch.cat(pieces)]
    return pieces[0]
