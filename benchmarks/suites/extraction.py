"""Pairs a second from texts to a direction at every layer, beside steering-vectors and repeng at their best batch sizes."""

from functools import partial

from benchmarks.bench import Answer, Bench, Turn, figures_of
from benchmarks.contenders.process import Side, SideFailed
from benchmarks.contenders.registry import ENGINE, EXTRACTION
from steering.concepts.loader import load_concept
from steering.pairs import Text

CONCEPTS = ("sentiment", "formality")
PEERS = ("steering-vectors", "repeng")
SPEED = "pairs_per_second"


def run(bench: Bench) -> None:
    """Ours with and without the quality card; each peer at the batch size that suits it best."""
    engine = bench.side(ENGINE)
    if engine is None:
        return
    pairs = _pairs(bench.effort.pairs)
    bench.tell(f"extraction from {len(pairs)} pairs")
    turns: dict[tuple[str, str], Turn] = {
        (ENGINE, "extraction"): partial(_speed, engine, "read_and_fit", pairs),
        (ENGINE, "extraction with card"): partial(_speed, engine, "extract", pairs),
    }
    peers = bench.side(EXTRACTION)
    if peers is not None:
        try:
            turns |= {(EXTRACTION, name): _best(bench, peers, name, pairs) for name in PEERS}
        except SideFailed as error:
            bench.lose(EXTRACTION, str(error))
    answers = bench.take_turns(turns, bench.effort.rounds)
    bench.keep(answers, rows=len(pairs), prompt=0)
    found = [speeds for name in PEERS if (speeds := figures_of(answers, EXTRACTION, name, SPEED))]
    faster = max(found, key=lambda speeds: sorted(speeds)[len(speeds) // 2], default=None)
    for work in ("extraction", "extraction with card"):
        bench.compare(work, figures_of(answers, ENGINE, work, SPEED), faster)


def _best(bench: Bench, peers: Side, name: str, pairs: list[list[str]]) -> Turn:
    """The peer at its best batch size, each tried twice: the first time warms it up."""
    speeds: dict[int, float] = {}
    for batch in bench.effort.batch_sizes:
        for _ in range(2):
            speeds[batch] = _speed(peers, name, pairs, 0, batch=batch)[SPEED]
    bench.facts.setdefault("batch sizes tried", {})[name] = speeds
    return partial(_speed, peers, name, pairs, batch=max(speeds, key=lambda batch: speeds[batch]))


def _speed(side: Side, task: str, pairs: list[list[str]], _seed: int, **options: int) -> Answer:
    answer = side.ask(task, pairs=pairs, **options)
    return {**answer, **options, SPEED: len(pairs) / answer["seconds"]}


def _pairs(count: int) -> list[list[str]]:
    """Starter concepts as plain texts, so that every side reads the same tokens."""
    sets = [load_concept(name) for name in CONCEPTS]
    every = [[_plain(positive), _plain(negative)] for pairs in sets for positive, negative in pairs]
    return every[:count]


def _plain(text: Text) -> str:
    return text if isinstance(text, str) else "\n".join(message.content for message in text)
