"""Bench: one run. Starts sides when they are needed, takes turns between them, keeps what they answered."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, TypeAlias

from benchmarks.contenders.process import Side, SideFailed
from benchmarks.profile import Effort
from benchmarks.targets import BARS

Answer: TypeAlias = dict[str, Any]
Turn: TypeAlias = Callable[[int], Answer]
"""The number of a round, which seeds its prompts, to what was measured."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One side doing one piece of work, once a round."""

    side: str
    work: str
    rows: int
    prompt: int
    answers: list[Answer]

    def median(self, figure: str) -> float | None:
        """Over rounds; None where the side does not know it."""
        values = [answer[figure] for answer in self.answers if answer.get(figure) is not None]
        return median(values) if values else None


@dataclass(slots=True)
class Ratio:
    """One line of the table: the two medians, and the ratio of every round, since both sides of a round ran within seconds
    of each other. `value` is the median of those."""

    key: str
    ours: float
    other: float
    rounds: list[float]

    @property
    def value(self) -> float:
        return median(self.rounds)

    @property
    def met(self) -> bool | None:
        return BARS[self.key].met(self.value)


@dataclass(slots=True)
class Bench:
    """starters: how each side is started, by name. subject: the model and the device, as sides take
    them. absent: sides that are not there, or no longer, and why."""

    effort: Effort
    starters: Mapping[str, Callable[[], Side]]
    tell: Callable[[str], None]
    subject: Mapping[str, Any] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    ratios: dict[str, Ratio] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    _sides: dict[str, Side] = field(default_factory=dict)

    def side(self, name: str) -> Side | None:
        """Started at the first call; None when it is absent."""
        if name not in self._sides and name not in self.absent:
            self.tell(f"starting {name}")
            try:
                self._sides[name] = self.starters[name]()
                self.facts[name] = self._sides[name].facts
            except (SideFailed, OSError) as error:
                self.lose(name, str(error))
        return self._sides.get(name)

    def lose(self, name: str, reason: str) -> None:
        """A side that failed takes no further part."""
        self.absent[name] = reason
        self.tell(f"{name} is absent: {reason.strip().splitlines()[-1]}")
        if name in self._sides:
            self._sides.pop(name).close()

    def take_turns(self, turns: Mapping[tuple[str, str], Turn], rounds: int) -> dict[tuple[str, str], list[Answer]]:
        """turns: (side, work) -> what to ask. Every round asks everybody once, and begins with another each time."""
        order = list(turns)
        answers: dict[tuple[str, str], list[Answer]] = {key: [] for key in order}
        for number in range(-1 if self.effort.warm_round else 0, rounds):
            start = number % len(order)
            for key in order[start:] + order[:start]:
                if key[0] in self.absent:
                    continue
                try:
                    answer = turns[key](number)
                except SideFailed as error:
                    self.lose(key[0], str(error))
                    continue
                if number >= 0:
                    answers[key].append(answer)
        return {key: found for key, found in answers.items() if len(found) == rounds}

    def keep(self, answers: Mapping[tuple[str, str], list[Answer]], *, rows: int, prompt: int) -> None:
        """Notes what was measured."""
        self.measurements.extend(
            Measurement(side, work, rows, prompt, found) for (side, work), found in answers.items()
        )

    def compare(self, key: str, ours: list[float] | None, other: list[float] | None) -> None:
        """Notes a ratio, ours over the other's, round by round; nothing where either is missing."""
        if ours and other:
            rounds = [a / b for a, b in zip(ours, other, strict=True)]
            self.ratios[key] = Ratio(key, median(ours), median(other), rounds)

    def close(self) -> None:
        """Ends every side."""
        for process in self._sides.values():
            process.close()
        self._sides.clear()

    def as_json(self) -> dict[str, Any]:
        """Everything, raw."""
        return {
            "ratios": [{**asdict(ratio), "value": ratio.value, "met": ratio.met} for ratio in self.ratios.values()],
            "measurements": [asdict(measurement) for measurement in self.measurements],
            "sides": self.facts,
            "absent": self.absent,
        }


def figures_of(
    answers: Mapping[tuple[str, str], list[Answer]], side: str, work: str, figure: str = "tokens_per_second"
) -> list[float] | None:
    """One figure of every round; None where it was not measured."""
    found = [answer.get(figure) for answer in answers.get((side, work), [])]
    values = [value for value in found if value is not None]
    return values if found and len(values) == len(found) else None
