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

    verdicts: (threshold,) by position, as `ConditionEvaluator` left them. strengths: (column,) of the controllers, by
    position from the last of the prompt on, as they acted there.
    """

    prompt_length: int
    verdicts: list[Int[Tensor, "threshold"]] = field(default_factory=list)
    strengths: list[Float[Tensor, "column"]] = field(default_factory=list)

    def verdicts_before(self, first: int, count: int) -> Int[Tensor, "token threshold"]:
        """What was decided when each of some neighbouring positions began: nothing in the prompt, then what the position
        before it had decided."""
        undecided = torch.zeros_like(self.verdicts[0])
        return torch.stack([
            self.verdicts[at - 1] if at >= self.prompt_length else undecided for at in range(first, first + count)
        ])  # fmt: skip

    def verdicts_at(self, first: int, count: int) -> Int[Tensor, "token threshold"]:
        """What was decided at each of some neighbouring positions in the end."""
        return torch.stack(self.verdicts[first : first + count])

    def strengths_at(self, column: int, first: int, count: int) -> Float[Tensor, "token"]:
        """The strength of a controller at each of some neighbouring positions, from the last of the prompt on."""
        start = first - (self.prompt_length - 1)
        return torch.stack([one[column] for one in self.strengths[start : start + count]])
