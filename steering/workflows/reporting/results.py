"""What a deployment report asks for, and what it says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from steering.engine.api import Prompt, SamplingParams
from steering.pairs import PairSet
from steering.plan.types import SteeringPlan
from steering.quality import Estimate
from steering.schemas.evaluation.report import ThresholdsFields
from steering.vectors import ConceptVector
from steering.workflows.evaluation.setup import WRITING
from steering.workflows.evaluation.trials import Trial
from steering.workflows.reporting.gates import Gate
from steering.workflows.reporting.reading import SideEffect


class TextScorer(Protocol):
    """Scores finished texts by other means than the vector that steers."""

    name: str

    async def score(self, instructions: Sequence[str], texts: Sequence[str]) -> list[float]:
        """Returns one score a text; more of the concept scores higher."""
        ...


@dataclass(slots=True, eq=False)
class Unsteered:
    """What the unsteered model does, for reports with the same prompts, seeds, sampling and reader: each adds what it measures.

    accuracy: share of the questions answered rightly. trials: by seed and variation.
    """

    accuracy: float | None = None
    trials: dict[tuple[int, str], Trial] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class ReportRequest:
    """What is judged. vector: whose concept is to move, and which reads the answers unless `reader` is given.

    plan: the operating point, any steering. vectors: those it names, by `name@version`. direction: 1 or -1, how the concept is
    meant to move. pairs: what the vector was extracted from, for the check with fewer of them; None: not checked. varied: prompts
    under each variation, the first ones. samples: answers to each prompt under each steering, averaged. readers: for the side
    effects. seeds: each is judged on its own.
    """

    vector: ConceptVector
    plan: SteeringPlan
    vectors: Mapping[str, ConceptVector]
    prompts: tuple[Prompt, ...]
    neutral: tuple[Prompt, ...]
    direction: int = 1
    reader: ConceptVector | None = None
    reading_layer: int | None = None
    scorer: str = "projection"
    sampling: SamplingParams = WRITING
    seeds: tuple[int, ...] = (0, 1)
    varied: int = 12
    samples: int = 1
    pairs: PairSet | None = None
    readers: Mapping[str, ConceptVector] = field(default_factory=dict)
    independent: TextScorer | None = None
    thresholds: ThresholdsFields = field(default_factory=ThresholdsFields)


@dataclass(frozen=True, slots=True)
class ReportText:
    """One prompt with its first unsteered and steered answer, and how far the score moved along the direction, mean over its answers.
    variation: `plain`, or how the prompt was changed."""

    variation: str
    prompt: str
    unsteered: str
    steered: str
    moved: float


@dataclass(frozen=True, slots=True)
class SeedReport:
    """The verdict of one seed. chance: the shift that one random steering of the same dose in twenty reaches, estimated from the
    random directions of all seeds; None: not known.
    broken: the activations became non-finite, and nothing was judged."""

    seed: int
    gates: tuple[Gate, ...]
    moved: Estimate
    chance: float | None
    side_effects: tuple[SideEffect, ...]
    texts: tuple[ReportText, ...]
    broken: bool = False

    @property
    def passed(self) -> bool:
        """Whether all gates pass."""
        return not self.broken and all(gate.passed for gate in self.gates)


@dataclass(frozen=True, slots=True)
class Report:
    """The verdicts of all seeds."""

    direction: int
    reading_layer: int
    seeds: tuple[SeedReport, ...]
    thresholds: ThresholdsFields
    warnings: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every gate passes under every seed."""
        return all(one.passed for one in self.seeds)

    @property
    def seeds_agree(self) -> bool:
        """Whether the seeds pass and fail the same gates."""
        return len({tuple((gate.name, gate.passed) for gate in one.gates) for one in self.seeds}) == 1
