"""The second model is loaded once for all jobs that use it, and closed however they end."""

import asyncio
import threading

import pytest

from app.api.second_model import SecondModel
from app.core.settings import Settings
from steering.errors import ModelLoadFailed
from tests.fakes import ScriptedEngine
from tests.polling import until


class ClosingEngine(ScriptedEngine):
    """An engine that is closed once `closing` is set."""

    def __init__(self, closing: asyncio.Event) -> None:
        super().__init__()
        self._closing = closing

    async def close(self) -> None:
        """See Engine.close."""
        await self._closing.wait()
        await super().close()


class Load:
    """Loads engines once `opened`, unless it `fails`. loaded: all of them. closing: ends the close of each."""

    def __init__(self, fails: bool = False) -> None:
        self.loaded, self._fails = list[ScriptedEngine](), fails
        self.begun, self.opened, self.closing = threading.Event(), threading.Event(), asyncio.Event()
        self.closing.set()

    def __call__(self, _: Settings) -> ScriptedEngine:
        self.begun.set()
        assert self.opened.wait(30)
        if self._fails:
            raise ModelLoadFailed("no such folder")
        self.loaded.append(ClosingEngine(self.closing))
        return self.loaded[-1]

    @property
    def open(self) -> int:
        """How many engines are not closed."""
        return sum(one.stats().alive for one in self.loaded)


def second_model(load: Load) -> SecondModel:
    return SecondModel(Settings(scorer_model="second"), load)


async def use(model: SecondModel, end: asyncio.Event | None = None) -> bool:
    """Opens the second model, and returns whether it was open until an event."""
    async with model.opened() as engine:
        if end is not None:
            await end.wait()
        return engine.stats().alive


async def test_it_is_closed_after_its_use_and_loaded_again() -> None:
    load = Load()
    load.opened.set()
    model = second_model(load)
    for count in (1, 2):
        assert await use(model)
        assert (len(load.loaded), load.open) == (count, 0)


async def test_jobs_at_the_same_time_share_one_and_the_last_closes_it() -> None:
    load, ends = Load(), [asyncio.Event() for _ in range(4)]
    model = second_model(load)
    using = [asyncio.create_task(use(model, end)) for end in ends]
    await until(load.begun.is_set)
    load.opened.set()
    for end, job in zip(ends, using, strict=True):
        end.set()
        assert await job
        assert (len(load.loaded), load.open) == (1, int(job is not using[-1]))


async def test_a_job_that_comes_while_it_is_being_closed_waits_for_that() -> None:
    load = Load()
    load.opened.set()
    load.closing.clear()
    model = second_model(load)
    leaving = asyncio.create_task(use(model))
    await until(lambda: load.open == 1)
    coming = asyncio.create_task(use(model))
    for _ in range(9):
        await asyncio.sleep(0)
    assert load.open <= 1, "no two are in memory"
    load.closing.set()
    assert (await leaving, await coming, load.open) == (True, True, 0)


async def test_it_has_no_options_of_the_first_models_files_and_processes() -> None:
    first = Settings(
        scorer_model="second", engine="vllm", tensor_parallel_size=2, pipeline_parallel_size=2,
        quantization="bitsandbytes-4bit", weights="gguf",
    )  # fmt: skip
    engine, found = ScriptedEngine(), list[Settings]()

    def load(settings: Settings) -> ScriptedEngine:
        found.append(settings)
        return engine

    async with SecondModel(first, load).opened():
        pass
    (second,) = found
    assert (second.model, second.engine, second.quantization, second.weights) == (
        "second",
        "transformers",
        None,
        "auto",
    )
    assert (second.tensor_parallel_size, second.pipeline_parallel_size) == (1, 1)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_job_that_is_cancelled_during_the_load_closes_what_was_loaded(fails: bool) -> None:
    load = Load(fails)
    using = asyncio.create_task(use(second_model(load)))
    await until(load.begun.is_set)
    using.cancel()
    for _ in range(9):
        await asyncio.sleep(0)
    assert not using.done(), "its slot is not given to a second load"
    load.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await using
    assert (len(load.loaded), load.open) == (not fails, 0)


async def test_a_job_that_is_cancelled_during_the_load_leaves_it_to_another() -> None:
    load = Load()
    model = second_model(load)
    cancelled, other = asyncio.create_task(use(model)), asyncio.create_task(use(model))
    await until(load.begun.is_set)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    load.opened.set()
    assert await other
    assert (len(load.loaded), load.open) == (1, 0)


async def test_a_load_that_fails_raises_why() -> None:
    load = Load(fails=True)
    load.opened.set()
    with pytest.raises(ModelLoadFailed):
        await use(second_model(load))
