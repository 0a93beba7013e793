"""Maps: clouds that were planted apart are drawn apart, in another process, and a caller who leaves kills it."""

import asyncio
import os
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from steering.errors import InvalidRequest, OutOfMemory
from steering.projection import Points
from steering.schemas.latent_space import LatentSpaceAnswer, LatentSpaceRequest, LayerMapAnswer
from steering.vectors import LayerDirection
from steering.workflows.latent_space import latent_space, segment
from steering.workflows.worker_process import NICENESS, draw, run_in_worker
from tests.narrowing import present
from tests.steering.workflows.linear import GAIN, LinearEngine
from tests.steering.workflows.texts import planted_pairs
from tests.steering.workflows.vectors import planted_vector

PAIRS = planted_pairs(16, 4)
TEXTS = PAIRS.positive + PAIRS.negative
LABELS = ("good",) * 16 + ("bad",) * 16


@pytest.fixture
def mapped() -> LatentSpaceRequest:
    return LatentSpaceRequest(texts=TEXTS, labels=LABELS, layers=(0, 1), position="mean", vectors=("mood",), path=3)


def changed(request: LatentSpaceRequest, **changes: Any) -> LatentSpaceRequest:
    return LatentSpaceRequest.model_validate({**request.model_dump(exclude_unset=True), **changes})


async def drawn(engine: LinearEngine, request: LatentSpaceRequest, **options: Any) -> LatentSpaceAnswer:
    vectors = {name: planted_vector(engine) for name in request.vectors}
    texts = [text for text in request.texts if isinstance(text, str)]
    assert len(texts) == len(request.texts)
    return await latent_space(engine, request, texts, vectors, **options)


def silhouette(layer: LayerMapAnswer) -> float:
    return present(present(layer.separability).silhouette)


async def test_what_was_planted_apart_is_drawn_apart(engine: LinearEngine, mapped: LatentSpaceRequest) -> None:
    found = await drawn(engine, mapped)
    surface, meaning = found.layers
    assert (surface.layer, meaning.layer) == (0, 1)
    assert len(meaning.points) == 32
    good, bad = np.array(meaning.points[:16]), np.array(meaning.points[16:])
    assert abs(good[:, 0].mean() - bad[:, 0].mean()) > 4 * max(good[:, 0].std(), bad[:, 0].std())
    assert present(meaning.separability).auroc == 1.0
    assert silhouette(meaning) > silhouette(surface)
    assert 0.0 < sum(present(meaning.explained_variance)) <= 1.0


async def test_the_vector_lies_between_the_clouds_and_fills_the_page(
    engine: LinearEngine, mapped: LatentSpaceRequest
) -> None:
    meaning = (await drawn(engine, mapped)).layers[1]
    (line,) = meaning.segments
    start, end = np.array(line.start), np.array(line.end)
    good, bad = (np.array(part).mean(axis=0) for part in (meaning.points[:16], meaning.points[16:]))
    assert line.visible > 0.95
    assert np.dot(end - start, good - bad) > 0.0
    assert np.linalg.norm(end - start) == pytest.approx(GAIN * line.visible, rel=1e-4)
    assert (await drawn(engine, mapped)).layers[0].segments == [], "the vector has no layer 0"


async def test_a_path_follows_one_text(engine: LinearEngine, mapped: LatentSpaceRequest) -> None:
    path = present((await drawn(engine, changed(mapped, layers="all"))).path)
    assert path.layers == [0, 1, 2, 3]
    assert len(path.text) == len(path.mean) == 4
    assert path.text[1] == pytest.approx(path.text[2], abs=1e-5), "block 2 changes nothing"
    assert np.linalg.norm(np.subtract(path.text[0], path.text[1])) > 0.1


async def test_the_mean_beside_a_path_is_that_of_all_texts(engine: LinearEngine) -> None:
    """Also of many, sorted by label: each of these texts comes as often, so their mean is that of one of each."""
    one_of_each = LatentSpaceRequest(texts=TEXTS[:4] + TEXTS[16:20], layers=(0, 1), position="mean", path=0)
    many = changed(one_of_each, texts=tuple(text for text in one_of_each.texts for _ in range(50)))
    distances = []
    for request in (one_of_each, many):
        path = present((await drawn(engine, request)).path)
        distances.append(np.linalg.norm(np.subtract(path.text, path.mean), axis=1))  # axes may be turned
    assert distances[1] == pytest.approx(distances[0], abs=0.02)
    assert distances[0].min() > 0.2


async def test_same_seed_same_map_in_three_dimensions(engine: LinearEngine, mapped: LatentSpaceRequest) -> None:
    request = changed(mapped, method="tsne", dims=3, layers=(1,), path=None)
    first, second = [await drawn(engine, request) for _ in range(2)]
    assert first == second
    assert {len(point) for point in first.layers[0].points} == {3}
    assert (first.layers[0].explained_variance, first.layers[0].segments) == (None, [])


async def test_labels_are_not_needed(engine: LinearEngine, mapped: LatentSpaceRequest) -> None:
    assert (await drawn(engine, changed(mapped, labels=None, path=None))).layers[0].separability is None
    assert (await drawn(engine, changed(mapped, labels=("x",) * 32, path=None))).layers[0].separability is None


async def test_a_layer_that_cannot_be_drawn_is_named(engine: LinearEngine) -> None:
    """All texts end in one word, so block 0 has them all in one place."""
    texts = tuple(f"{text} day" for text in TEXTS)
    found = await drawn(engine, LatentSpaceRequest(texts=texts, layers=(0, 1)))
    assert [one.layer for one in found.layers] == [1]
    assert "layer 0 is left out" in found.warnings[0]


async def test_input_embeddings_are_drawn_next_to_the_layers(engine: LinearEngine, mapped: LatentSpaceRequest) -> None:
    """A word's own embedding knows no polarity: only block 1 pulls the labels apart."""
    found = await drawn(engine, changed(mapped, layers=(0, 1), embeddings=True))
    assert [one.layer for one in found.layers] == [0, 1]
    embedding = present(found.embedding)
    assert embedding.layer is None
    assert len(embedding.points) == 32
    assert embedding.points == found.layers[0].points, "block 0 writes the embedding, as it is"
    assert silhouette(embedding) < silhouette(found.layers[1])
    assert embedding.segments == []
    assert found.path is not None
    assert [len(found.path.layers), (await drawn(engine, mapped)).embedding] == [2, None]


async def test_embeddings_that_are_all_alike_are_named(engine: LinearEngine) -> None:
    """All texts end in one word: one embedding for all of them, and for block 0 as well."""
    texts = tuple(f"{text} day" for text in TEXTS)
    found = await drawn(engine, LatentSpaceRequest(texts=texts, layers=(1,), embeddings=True))
    assert found.embedding is None
    assert "the input embedding is left out" in found.warnings[0]
    with pytest.raises(InvalidRequest, match="all alike"):
        await drawn(engine, LatentSpaceRequest(texts=texts, layers=(0,), embeddings=True))


async def test_too_few_texts_for_any_layer_are_refused(engine: LinearEngine) -> None:
    with pytest.raises(InvalidRequest, match="at least 4 texts"):
        await drawn(engine, LatentSpaceRequest(texts=TEXTS[:3]))


async def test_the_loop_goes_on_while_a_worker_draws(engine: LinearEngine, mapped: LatentSpaceRequest) -> None:
    """The worker is stopped meanwhile, so that it cannot have ended before."""
    drawing = asyncio.Event()

    def watch(done: int, total: int, message: str) -> None:
        if "drawing" in message:
            drawing.set()

    worker = await run_in_worker(os.getpid)  # an idle one is taken again
    os.kill(worker, signal.SIGSTOP)
    try:
        task = asyncio.ensure_future(drawn(engine, mapped, progress=watch))
        await drawing.wait()
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not task.done()
    finally:
        os.kill(worker, signal.SIGCONT)
    assert len((await task).layers) == 2


async def test_a_caller_who_leaves_kills_the_worker(engine: LinearEngine, mapped: LatentSpaceRequest) -> None:
    drawing = asyncio.Event()
    request = changed(mapped, method="tsne", texts=TEXTS * 30, labels=None, path=None)

    def watch(done: int, total: int, message: str) -> None:
        if "drawing" in message:
            drawing.set()

    task = asyncio.ensure_future(drawn(engine, request, progress=watch))
    await drawing.wait()
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    found = await drawn(engine, changed(mapped, path=None))
    assert len(found.layers) == 2, "the next caller gets a fresh worker"


async def test_progress_runs_to_its_total(engine: LinearEngine, mapped: LatentSpaceRequest) -> None:
    seen = []
    await drawn(engine, mapped, progress=lambda *message: seen.append(message))
    done = [one[0] for one in seen]
    assert done == sorted(done)
    assert seen[-1] == (34, 34, "done")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "star chart"}, "unknown method 'star chart'; known: pca"),
        ({"labels": ("a",)}, "one label per text"),
        ({"path": 32}, "index of a text"),
        ({"layers": (9,)}, "layer 9 does not exist"),
    ],
)
async def test_maps_that_cannot_be(
    engine: LinearEngine, mapped: LatentSpaceRequest, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        await drawn(engine, changed(mapped, **change))
    assert engine.captured == 0


@pytest.mark.parametrize("change", [{"dims": 4}, {"texts": ()}, {"position": "all"}, {"path": -1}])
def test_requests_for_maps_that_cannot_be(mapped: LatentSpaceRequest, change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(change))):
        changed(mapped, **change)


def test_a_vector_across_the_page_is_hardly_visible() -> None:
    points = Points(np.zeros((4, 2), np.float32), (0.6, 0.4), np.eye(2, 3, dtype=np.float32))
    entry = planted_vector(LinearEngine()).at(1)
    out = LayerDirection(entry.direction[:3] * 0 + entry.direction.new_tensor([0.0, 0.0, 1.0]), scale=2.0)
    assert segment("out", out, points).visible == 0.0
    along = LayerDirection(entry.direction.new_tensor([1.0, 0.0, 0.0]), scale=2.0)
    assert segment("along", along, points).end == [1.0, 0.0]


def test_a_worker_needs_no_torch() -> None:
    message = (
        "import sys, steering.workflows.worker_process; print([m for m in ('torch', 'sklearn') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", message], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


async def test_a_worker_has_a_low_priority_and_its_caller_keeps_its_own() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    draw(np.eye(4, dtype=np.float32), "pca", 2, 0, None)
    assert await run_in_worker(os.getpriority, os.PRIO_PROCESS, 0) == max(before, NICENESS)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


@pytest.mark.parametrize(("work", "size"), [(signal.raise_signal, signal.SIGKILL), (bytearray, 1 << 60)])
async def test_a_worker_that_memory_ends_is_said_to_be_out_of_memory(work: Any, size: int) -> None:
    with pytest.raises(OutOfMemory, match="send fewer texts"):
        await run_in_worker(work, size)
    assert await run_in_worker(abs, -1) == 1, "another worker comes"


async def test_errors_come_back_from_a_worker_whole() -> None:
    """The field they are about must not be lost on the way."""
    with pytest.raises(InvalidRequest) as refusal:
        await run_in_worker(draw, np.zeros((4, 3), dtype=np.float32), "pca", 5, 0, None)
    error = refusal.value
    assert (error.message, error.param, error.code) == ("dims must be 2 or 3, got 5", "dims", "invalid_request")
