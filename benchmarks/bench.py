"""Defines Bench, one run: it starts contenders when they are needed, runs them in turns and records their results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, TypeAlias

from benchmarks.contenders.process import Contender, ContenderFailed
from benchmarks.profile import Profile
from benchmarks.targets import TARGETS

Result: TypeAlias = dict[str, Any]
Task: TypeAlias = Callable[[int], Result]
"""Called with the number of a round, which seeds the prompts."""
Results: TypeAlias = Mapping[tuple[str, str], list[Result]]
"""(contender, work) -> the result of every round."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """The results of one contender for one piece of work, one per round."""

    contender: str
    work: str
    rows: int
    prompt: int
    results: list[Result]

    def median(self, metric: str) -> float | None:
        """Returns the median over rounds, or None if the contender does not report the metric."""
        values = [result[metric] for result in self.results if result.get(metric) is not None]
        return median(values) if values else None


@dataclass(slots=True)
class Ratio:
    """The ratio of two contenders. Both run within seconds in each round, so `value` is the median of the rounds' ratios."""

    key: str
    ours: float
    other: float
    rounds: list[float]

    @property
    def value(self) -> float:
        """The median over rounds."""
        return median(self.rounds)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target."""
        return TARGETS[self.key].met(self.value)


@dataclass(slots=True)
class Bench:
    """One run. starters: name -> how a contender is started. absent: contenders that failed or do not exist, and why."""

    profile: Profile
    starters: Mapping[str, Callable[[], Contender]]
    log: Callable[[str], None]
    model: Mapping[str, Any] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    ratios: dict[str, Ratio] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    _contenders: dict[str, Contender] = field(default_factory=dict)

    def contender(self, name: str) -> Contender | None:
        """Returns a contender, started at the first call, or None when it is absent."""
        if name not in self._contenders and name not in self.absent:
            self.log(f"starting {name}")
            try:
                self._contenders[name] = self.starters[name]()
                self.facts[name] = self._contenders[name].facts
            except (ContenderFailed, OSError) as error:
                self.drop(name, str(error))
        return self._contenders.get(name)

    def drop(self, name: str, reason: str) -> None:
        """Removes a contender that failed from the rest of the run."""
        self.absent[name] = reason
        self.log(f"{name} is absent: {reason.strip().splitlines()[-1]}")
        if name in self._contenders:
            self._contenders.pop(name).close()

    def run_rounds(self, tasks: Mapping[tuple[str, str], Task], rounds: int) -> dict[tuple[str, str], list[Result]]:
        """Runs every task once per round, starting with another one each round. tasks: (contender, work) -> task."""
        order = list(tasks)
        results: dict[tuple[str, str], list[Result]] = {key: [] for key in order}
        for number in range(-1 if self.profile.warm_round else 0, rounds):
            start = number % len(order)
            for key in order[start:] + order[:start]:
                if key[0] in self.absent:
                    continue
                try:
                    result = tasks[key](number)
                except ContenderFailed as error:
                    self.drop(key[0], str(error))
                    continue
                if number >= 0:
                    results[key].append(result)
        return {key: found for key, found in results.items() if len(found) == rounds}

    def record(self, results: Results, *, rows: int, prompt: int) -> None:
        """Adds measurements."""
        self.measurements.extend(
            Measurement(contender, work, rows, prompt, found) for (contender, work), found in results.items()
        )

    def compare(self, key: str, ours: list[float] | None, other: list[float] | None) -> None:
        """Adds the ratio ours / other of each round, unless either is missing."""
        if ours and other:
            rounds = [a / b for a, b in zip(ours, other, strict=True)]
            self.ratios[key] = Ratio(key, median(ours), median(other), rounds)

    def close(self) -> None:
        """Stops every contender."""
        for process in self._contenders.values():
            process.close()
        self._contenders.clear()

    def as_json(self) -> dict[str, Any]:
        """Returns the raw results."""
        return {
            "ratios": [{**asdict(ratio), "value": ratio.value, "met": ratio.met} for ratio in self.ratios.values()],
            "measurements": [asdict(measurement) for measurement in self.measurements],
            "contenders": self.facts,
            "absent": self.absent,
        }


def metric_of(results: Results, contender: str, work: str, metric: str = "tokens_per_second") -> list[float] | None:
    """Returns one metric of every round, or None if it was not measured."""
    found = [result.get(metric) for result in results.get((contender, work), [])]
    values = [value for value in found if value is not None]
    return values if found and len(values) == len(found) else None


def fastest(speeds: Sequence[list[float] | None]) -> list[float] | None:
    """Returns the series with the greatest median; None when all are None."""
    return max((series for series in speeds if series), key=median, default=None)


def shortest(times: Sequence[list[float] | None]) -> list[float] | None:
    """Returns the series with the smallest median; None when all are None."""
    return min((series for series in times if series), key=median, default=None)
