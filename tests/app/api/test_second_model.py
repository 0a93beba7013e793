"""The second model is closed however the job that needs it ends."""

import asyncio
import threading

import pytest

from app.api.evaluations import opened_second_model
from app.core.settings import Settings
from steering.errors import ModelLoadFailed
from tests.fakes import ScriptedEngine
from tests.polling import until


class Load:
    """Loads a scripted engine once `opened`, unless it `fails`."""

    def __init__(self, fails: bool = False) -> None:
        self.engine, self._fails = ScriptedEngine(), fails
        self.begun, self.opened = threading.Event(), threading.Event()

    def __call__(self, _: Settings) -> ScriptedEngine:
        self.begun.set()
        assert self.opened.wait(30)
        if self._fails:
            raise ModelLoadFailed("no such folder")
        return self.engine


async def use(load: Load) -> bool:
    """Opens the second model, and returns whether it was open."""
    async with opened_second_model(Settings(scorer_model="second"), load) as engine:
        return engine.stats().alive


async def test_it_is_closed_after_its_use() -> None:
    load = Load()
    load.opened.set()
    assert await use(load)
    assert not load.engine.stats().alive


async def test_it_has_no_options_of_the_first_models_files_and_processes() -> None:
    first = Settings(
        scorer_model="second", engine="vllm", tensor_parallel_size=2, pipeline_parallel_size=2,
        quantization="bitsandbytes-4bit", weights="gguf",
    )  # fmt: skip
    engine, found = ScriptedEngine(), list[Settings]()

    def load(settings: Settings) -> ScriptedEngine:
        found.append(settings)
        return engine

    async with opened_second_model(first, load):
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
    using = asyncio.create_task(use(load))
    await until(load.begun.is_set)
    using.cancel()
    await asyncio.sleep(0)
    assert not using.done(), "its slot is not given to a second load"
    load.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await using
    assert load.engine.stats().alive == fails


async def test_a_load_that_fails_raises_why() -> None:
    load = Load(fails=True)
    load.opened.set()
    with pytest.raises(ModelLoadFailed):
        await use(load)
