"""The Python on the pages that no other test runs: it is executed as it stands and does what the page says."""

import asyncio
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steering.client import Client
from steering.operations import Edit
from steering.spec import InterventionSpec
from steering.store import open_store
from steering.vectors import LayerDirection
from tests.app.running import running
from tests.docs.execution import executed
from tests.docs.pages import DOCS
from tests.docs.test_bodies import LAYERS
from tests.fakes import ScriptedEngine
from tests.scripted_model import SCRIPTED_MODEL
from tests.steering.workflows.linear import LinearEngine
from tests.steering.workflows.vectors import planted_vector


def program(page: str, words: str) -> str:
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks: list[str] = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if words in block]
    return found


@pytest.mark.parametrize(("words", "printed"), [("safetensors", r"\(1, 8\)\n"), ("TokenPiece", r"( [a-z]+){12}")])
def test_the_programs_of_the_api_page(words: str, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    info = replace(SCRIPTED_MODEL, layer_count=LAYERS, typical_norms=(20.0,) * LAYERS)
    with running(ScriptedEngine(info=info)) as address:
        with Client(address) as client:
            client.register_vector("sentiment", {"12": [1.0] * SCRIPTED_MODEL.d_model})
        source = (
            program("api.md", words)
            .replace('"http://127.0.0.1:8000", api_key=None', "")
            .replace("Client()", f"Client({address!r})")
        )
        executed(source, "api.md")
    assert re.fullmatch(printed, capsys.readouterr().out)


def test_the_program_of_the_storage_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fill() -> None:
        store = await open_store("sqlite:///steering.sqlite3")
        await store.shared.vectors.put(replace(planted_vector(LinearEngine()), name="sentiment", tags=("mood",)))
        await store.close()

    monkeypatch.chdir(tmp_path)
    asyncio.run(fill())
    asyncio.run(executed(program("storage.md", "async def look"), "storage.md")["look"]())
    assert (tmp_path / "steering.sqlite3").exists()


def test_the_operation_of_the_extending_page_reflects() -> None:
    mirror = executed(program("extending.md", "class Mirror"), "extending.md")["Mirror"]
    residual, direction = torch.randn(5, 8), torch.nn.functional.normalize(torch.randn(8), dim=0)

    def mirrored(residual: torch.Tensor, strength: float) -> torch.Tensor:
        spec = InterventionSpec(vector="mood", strength=strength)
        edit: Edit = mirror.edits(spec, LayerDirection(direction, scale=2.0), None)[0]
        assert edit.read is not None
        return residual + edit.weight * ((residual @ edit.read) + edit.bias)[:, None] * edit.write

    reflected = mirrored(residual, 1.0)
    torch.testing.assert_close(reflected @ direction, -(residual @ direction))
    torch.testing.assert_close(mirrored(reflected, 1.0), residual)
    torch.testing.assert_close(mirrored(residual, 0.0), residual)


def test_the_condition_of_the_extending_page_is_positive_on_the_positive_side() -> None:
    midpoint = executed(program("extending.md", "class Midpoint"), "extending.md")["Midpoint"]
    direction = torch.eye(4)[0]
    residual = torch.tensor([[3.0, 1.0, 0.0, 0.0], [1.0, 5.0, 0.0, 0.0]])
    scores = midpoint.score(residual, direction, torch.tensor([[3.0, 1.0], [3.0, 1.0]]))
    torch.testing.assert_close(scores, torch.tensor([1.0, -1.0]))
