"""Every example runs: the library's on the tiny model, the client's against a server with it. None is long."""

import asyncio
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from transformers import PreTrainedTokenizerFast

from steering.engine.transformers.engine import TransformersEngine
from steering.model.loading import opened
from tests.app.running import running
from tests.families import FAMILIES

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


def example(number: str) -> ModuleType:
    """The module of an example, whose file name is no name of a module."""
    (path,) = EXAMPLES.glob(f"{number}_*.py")
    found = importlib.util.spec_from_file_location(f"example_{number}", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def address(hf_byte_tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    loaded = opened(FAMILIES["llama"](), hf_byte_tokenizer, name="tiny-llama")
    with running(TransformersEngine(loaded)) as found:
        yield found


def test_an_example_fits_on_a_page() -> None:
    paths = sorted(EXAMPLES.glob("*.py"))
    assert [path.name[:2] for path in paths] == ["01", "02", "03", "04", "05"]
    for path in paths:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 50, path.name


def test_01_makes_a_vector_with_a_card(tiny_folder: Path) -> None:
    vector = asyncio.run(example("01").main(str(tiny_folder)))
    assert sorted(vector.layers) == [0, 1, 2]
    assert (vector.quality.pairs, vector.quality.holdout, vector.quality.folds) == (8, 3, 3)


def test_02_steers_and_reports_the_dose_that_was_asked(tiny_folder: Path) -> None:
    plain, steered = asyncio.run(example("02").main(str(tiny_folder)))
    assert plain.tokens != steered.tokens
    assert steered.finish.steering.doses[0][1] == pytest.approx(0.2, rel=1e-3)


def test_03_gives_each_row_of_a_batch_what_it_gets_alone(tiny_folder: Path) -> None:
    together, alone = asyncio.run(example("03").main(str(tiny_folder)))
    assert together == alone
    assert len(set(together)) > 1


def test_04_and_05_run_against_a_server(address: str) -> None:
    whole = example("04").main(address)
    assert whole.steering.applied[0].vector == "gladness@1"
    readouts = example("05").main(address, samples=2)
    assert list(readouts) == [-1.0, -0.5, 0.0, 0.5, 1.0]
    # The random model writes noise, so its texts have no order; tests/embedded asserts the order on the embedded model.
    assert all(readouts[strength] != readouts[0.0] for strength in (-1.0, -0.5, 0.5, 1.0))
