"""Measures pairs per second from texts to a direction at every layer, against steering-vectors and repeng."""

from functools import partial

from benchmarks.bench import Bench, Result, Task, metric_of
from benchmarks.contenders.process import Contender, ContenderFailed
from benchmarks.contenders.registry import ENGINE, EXTRACTION
from steering.concepts.loader import load_concept
from steering.pairs import Text

CONCEPTS = ("sentiment", "formality")
PEERS = ("steering-vectors", "repeng")
SPEED = "pairs_per_second"


def run(bench: Bench) -> None:
    """Measures ours with and without the quality card, and each peer at its fastest batch size."""
    engine = bench.contender(ENGINE)
    if engine is None:
        return
    pairs = _pairs(bench.profile.pairs)
    bench.log(f"extraction from {len(pairs)} pairs")
    tasks: dict[tuple[str, str], Task] = {
        (ENGINE, "extraction"): partial(_speed, engine, "read_and_fit", pairs),
        (ENGINE, "extraction with card"): partial(_speed, engine, "extract", pairs),
    }
    peers = bench.contender(EXTRACTION)
    if peers is not None:
        try:
            tasks |= {(EXTRACTION, name): _best(bench, peers, name, pairs) for name in PEERS}
        except ContenderFailed as error:
            bench.drop(EXTRACTION, str(error))
    results = bench.run_rounds(tasks, bench.profile.rounds)
    bench.record(results, rows=len(pairs), prompt=0)
    found = [speeds for name in PEERS if (speeds := metric_of(results, EXTRACTION, name, SPEED))]
    faster = max(found, key=lambda speeds: sorted(speeds)[len(speeds) // 2], default=None)
    for work in ("extraction", "extraction with card"):
        bench.compare(work, metric_of(results, ENGINE, work, SPEED), faster)


def _best(bench: Bench, peers: Contender, name: str, pairs: list[list[str]]) -> Task:
    """Returns the task of a peer at its fastest batch size. Each size runs twice; the first run warms it up."""
    speeds: dict[int, float] = {}
    for batch in bench.profile.batch_sizes:
        for _ in range(2):
            speeds[batch] = _speed(peers, name, pairs, 0, batch=batch)[SPEED]
    bench.facts.setdefault("batch sizes tried", {})[name] = speeds
    return partial(_speed, peers, name, pairs, batch=max(speeds, key=lambda batch: speeds[batch]))


def _speed(contender: Contender, task: str, pairs: list[list[str]], _seed: int, **options: int) -> Result:
    result = contender.request(task, pairs=pairs, **options)
    return {**result, **options, SPEED: len(pairs) / result["seconds"]}


def _pairs(count: int) -> list[list[str]]:
    """Returns starter concepts as plain texts, so that every contender reads the same tokens."""
    sets = [load_concept(name) for name in CONCEPTS]
    every = [[_plain(positive), _plain(negative)] for pairs in sets for positive, negative in pairs]
    return every[:count]


def _plain(text: Text) -> str:
    return text if isinstance(text, str) else "\n".join(message.content for message in text)
