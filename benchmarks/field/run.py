"""What every part uses: the server, the counts, calibrated vectors, random directions, and vectors that the peers' own code fits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders.process import Contender
from benchmarks.contenders.registry import start_extraction_peers
from steering.client import ApiError, Client
from steering.concepts.loader import load_neutral
from steering.lab.calibration import FIRST, NEUTRAL

Conversation = list[dict[str, str]]
PEERS = ("steering-vectors", "repeng", "activation-steering", "steering-lite", "axbench-diffmean")
"""Methods that the peers' code fits. The last three are imported from clones in the folder of the data."""
METHODS = (*PEERS, "prompt")
OTHERS = FIRST + NEUTRAL
"""The first of the neutral prompts on which the KL of calibrated vectors is measured again."""
Sides = tuple[float | None, float | None]
"""Below and above 0."""
SAME = 0.999
"""A direction with at least this cosine with ours is not measured again."""
Arms = Mapping[str, tuple[Sequence[str], Any]]
"""By name the texts that are answered, and the steering."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How much is measured: of CAA pairs, validation questions, test questions, and questions each of MMLU and TruthfulQA; of AxBench
    texts a side and characters of one; of refusal instructions a side to fit, choose and test, and tokens of an answer. random: directions.
    depths: of the layers that are tried. neutral: prompts of a calibration, and tokens of their answers. following: prompts of IFEval, and
    tokens of their answers."""

    pairs: int = 60
    validation: int = 16
    test: int = 50
    known: int = 100
    texts: int = 24
    characters: int = 260
    fit: int = 64
    choose: int = 12
    judge: int = 48
    tokens: int = 24
    random: int = 8
    depths: tuple[float, ...] = (0.4, 0.5, 0.6, 0.7)
    neutral: tuple[int, int] = (8, 32)
    following: tuple[int, int] = (100, 256)


SMALL = Counts(40, 6, 24, 24, 16, 200, 64, 8, 24, 24, 3, (0.5, 0.6), (8, 24), (24, 256))
"""For a processor that is shared, or a larger model. With fewer neutral tokens, their 95th percentile jumps from one token to the next."""


class Uncalibrated(ValueError):
    """No layer of a vector has a strength of 1 nat in both directions."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A vector's layer, chosen on validation. strengths: by layer, those of 1 nat below and above 0. kl: at the layer, see `Run.kl`.
    tried: by layer."""

    layer: int
    strengths: Mapping[int, Sides]
    kl: Mapping[str, Sides]
    tried: Mapping[int, float]

    def facts(self) -> dict[str, Any]:
        """Returns what a result keeps of the choice."""
        return {
            "layer": self.layer,
            "strengths": self.strengths[self.layer],
            "kl": self.kl,
            "validation": self.tried,
        }


@dataclass(frozen=True, slots=True)
class Run:
    """One server, its model's layers and width, the folder of the data, how much is measured, the seed of every sample, and the process
    that fits with the peers' code. directions: by layer the names of random ones. reached: by vector and layer the KL that the search of
    its newest calibration ended with. random_reached: by layer, see `random_kl`."""

    client: Client
    layer_count: int
    d_model: int
    folder: Path
    counts: Counts
    seed: int
    peers: Contender | None = None
    directions: dict[int, list[str]] = field(default_factory=dict)
    reached: dict[tuple[str, int], Sides] = field(default_factory=dict)
    random_reached: dict[int, list[dict[str, Sides]]] = field(default_factory=dict)

    @property
    def layers(self) -> list[int]:
        """Returns the layers that are tried."""
        return sorted({round(depth * (self.layer_count - 1)) for depth in self.counts.depths})

    def neutral(self, first: int) -> list[Conversation]:
        """Returns as many neutral prompts as a calibration reads, from `first` on."""
        return [asked(text) for text in load_neutral()[first : first + self.counts.neutral[0]]]

    def calibrated(self, name: str, layers: Sequence[int]) -> dict[int, Sides]:
        """Calibrates a vector. Returns by layer the strengths below and above 0 of 1 nat."""
        _, tokens = self.counts.neutral
        found = self.client.calibrate(
            name, layers=list(layers), neutral=self.neutral(FIRST), max_tokens=tokens, seed=self.seed, save=True
        )
        self.reached.update({(name, point.layer): (point.kl_negative, point.kl_positive) for point in found.points})
        return {point.layer: (point.negative, point.positive) for point in found.points}

    def kl(self, name: str, layer: int) -> dict[str, Sides]:
        """Returns the 95th percentile of the token KL at a vector's strengths of 1 nat below and above 0, in nats: on the prompts of the
        calibration, and on as many others. It is None where activations are non-finite."""
        known = self.reached.get((name, layer))  # None: a run that was stopped calibrated it
        return {
            "calibration": self._kl(name, layer, FIRST) if known is None else known,
            "others": self._kl(name, layer, OTHERS),
        }

    def _kl(self, name: str, layer: int, first: int) -> Sides:
        """Measures the KL on the neutral prompts from `first` on: that of a layer sweep of one strength, which needs two prompts."""
        neutral, (_, tokens) = self.neutral(first), self.counts.neutral
        found = []
        for strength in self.strengths(name, layer):
            assert strength is not None, "calibrated in both directions"
            sweep = self.client.layer_sweep(
                name,
                layers=[layer],
                reading_layer=layer,
                strengths=[strength],
                prompts=neutral[:2],
                neutral=neutral,
                max_tokens=tokens,
                seed=self.seed,
            )
            found.append(next((point.kl for point in sweep.points), None))
        below, above = found
        return below, above

    def random_kl(self, layer: int) -> list[dict[str, Sides]]:
        """Returns the KL of each random direction at a layer, which is measured once."""
        if layer not in self.random_reached:
            self.random_reached[layer] = [self.kl(name, layer) for name in self.random(layer)]
        return self.random_reached[layer]

    def chosen(self, name: str, measure: Callable[[int], float]) -> Chosen:
        """Calibrates a vector and chooses the layer at which `measure` is largest. Raises Uncalibrated."""
        strengths = self.calibrated(name, self.layers)
        tried = {layer: measure(layer) for layer in self.layers if None not in strengths[layer]}
        if not tried:
            raise Uncalibrated(
                f"none of the layers {self.layers} has strengths of 1 nat in both directions: {strengths}"
            )
        layer = max(tried, key=lambda layer: tried[layer])
        return Chosen(layer, strengths, self.kl(name, layer), tried)

    def random(self, layer: int) -> list[str]:
        """Returns the names of random directions at a layer, calibrated to equal KL. They are made once, and found again on a server that
        has them from a run that was stopped."""
        counts = "x".join(map(str, self.counts.neutral))
        for number in range(self.counts.random) if layer not in self.directions else ():
            name = f"field-random-{counts}-{self.seed}-{layer}-{number}"
            direction = np.random.default_rng((self.seed, number)).standard_normal(self.d_model)
            numbers = (direction / np.linalg.norm(direction)).tolist()
            if None in self.strengths(name, layer):
                self.client.register_vector(name, directions={str(layer): numbers})
                self.calibrated(name, [layer])
            if None not in self.strengths(name, layer):
                self.directions.setdefault(layer, []).append(name)
        return self.directions.setdefault(layer, [])

    def has(self, name: str) -> bool:
        """Returns whether the server has a vector."""
        try:
            self.client.get_vector(name)
        except ApiError as error:
            if error.code != "vector_not_found":
                raise
            return False
        return True

    def strengths(self, name: str, layer: int) -> Sides:
        """Returns the strengths below and above 0 of 1 nat that the server has of a vector at a layer, None for one it has not."""
        return self.client.get_vector(name).kl.get(str(layer), (None, None)) if self.has(name) else (None, None)

    def answers(self, arms: Arms, tokens: int) -> dict[str, list[str]]:
        """Answers the texts of all arms greedily as one job. tokens: of an answer at most. Returns the answers by arm."""
        lines = [
            {"messages": asked(text), "steering": steering, "max_tokens": tokens, "temperature": 0.0}
            for texts, steering in arms.values()
            for text in texts
        ]
        job = self.client.start_batch(lines)
        self.client.wait_for_job(job)
        found = []
        for line in self.client.job_output(job.id):
            assert line.response is not None, "no line of the batch fails"
            found.append(line.response.choices[0].text)
        rest = iter(found)
        return {arm: [next(rest) for _ in texts] for arm, (texts, _) in arms.items()}

    def fitted(self, pairs: Sequence[tuple[Conversation, Conversation]], methods: Sequence[str]) -> dict[str, str]:
        """Fits the pairs with those of the methods that are peers' code, and stores the vectors. Returns their names by method."""
        assert self.peers is not None, "a part that compares peers runs with them"
        chosen = [method for method in methods if method in PEERS]
        found = self.peers.request("fit", pairs=pairs, layers=self.layers, methods=chosen)
        for method in chosen:
            self.client.register_vector(f"field-{method}", directions=found[method])
        return {method: f"field-{method}" for method in chosen}

    def cosine(self, name: str, other: str, layer: int) -> float:
        """Returns the cosine of two vectors at a layer."""
        one, two = (np.array(self.client.get_directions(each)[str(layer)]) for each in (name, other))
        return float(one @ two)


@contextmanager
def peers_of(model: Path | None, data: Path) -> Iterator[Contender | None]:
    """Runs the peers' code over a model folder for the length of a block. data: has the clones of those that are imported from one."""
    process = None if model is None else start_extraction_peers(model, data)
    try:
        yield process
    finally:
        if process is not None:
            process.close()


def asked(instruction: str) -> Conversation:
    """Returns the conversation of one message."""
    return [{"role": "user", "content": instruction}]


def at(name: str, layer: int, strength: float) -> list[dict[str, Any]]:
    """Returns the steering of a calibrated vector, at every token: 1 is the strength of 1 nat."""
    return [{"vector": name, "layers": [layer], "strength": strength, "unit": "kl", "scope": {"tokens": "all"}}]
