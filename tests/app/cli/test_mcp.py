"""`steer mcp`: the official client of the Model Context Protocol calls its tools, which ask a running server."""

import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client as McpClient
from transformers import PreTrainedTokenizerFast

from app.cli.mcp_server import server_of
from steering.client import AsyncClient, Client
from steering.engine.transformers.engine import TransformersEngine
from steering.model.loading import opened
from tests.app.policy.conftest import directions
from tests.app.running import running
from tests.docs.execution import executed
from tests.families import FAMILIES

ROOT = Path(__file__).resolve().parents[3]
ASKED: dict[str, Any] = {"prompt": "How was it?", "max_tokens": 6, "temperature": 0.0, "seed": 3}


@pytest.fixture(scope="module")
def address(hf_byte_tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    engine = TransformersEngine(opened(FAMILIES["llama"](), hf_byte_tokenizer, name="tiny"))
    with running(engine) as found, Client(found) as client:
        client.register_vector("mood", directions(engine.info.d_model, 1), description="a good mood", tags=["one"])
        client.register_vector("other", directions(engine.info.d_model, 2))
        client.put_profile("cheerful", [{"vector": "mood", "strength": 4.0}])
        yield found


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[McpClient]:
    """Yields a client of the tools: in the task of the test, since the package leaves its scopes in the task that entered them."""
    async with AsyncClient(address) as client, McpClient(server_of(client)) as tools:
        yield tools


async def called(tools: McpClient, name: str, **arguments: Any) -> dict[str, Any]:
    result = await tools.call_tool(name, arguments)
    assert not result.is_error, result.content
    found: dict[str, Any] = result.structured_content
    return found


async def test_the_tools_are_described_and_vectors_are_found(address: str) -> None:
    async with connected(address) as tools:
        listed = {tool.name: tool for tool in (await tools.list_tools()).tools}
        assert set(listed) == {"list_vectors", "generate", "compare", "read"}
        schema = listed["generate"].input_schema
        assert schema["required"] == ["prompt"]
        assert all("description" in str(field) for field in schema["properties"].values())
        assert "strengths" in (listed["list_vectors"].description or "")
        found = await called(tools, "list_vectors")
        assert (found["model"], [one["id"] for one in found["vectors"]], found["more"]) == ("tiny", ["mood@1", "other@1"], False)  # fmt: skip
        assert found["vectors"][0]["description"] == "a good mood"
        assert [one["id"] for one in (await called(tools, "list_vectors", tag="one"))["vectors"]] == ["mood@1"]
        assert (await called(tools, "list_vectors", limit=1))["more"]


async def test_what_a_tool_returns_is_what_the_server_says(address: str) -> None:
    async with connected(address) as tools:
        with Client(address) as client:
            asked: dict[str, Any] = {"messages": [{"role": "user", "content": "How was it?"}], "max_tokens": 6, "temperature": 0.0, "seed": 3}  # fmt: skip
            steering = [{"vector": "mood", "strength": 4.0}]
            expected = client.generate(**asked, steering=steering)
            compared = client.compare(**asked, steering=steering, readout=["mood"])
            read = client.readout(["the road"], vectors=["mood"])
        for steered in ({"strengths": {"mood": 4.0}}, {"profile": "cheerful"}):
            answer = await called(tools, "generate", **ASKED, **steered)
            assert (answer["text"], answer["seed"]) == (expected.choices[0].text, 3)
            assert answer["relative_dose"] == pytest.approx(expected.steering.relative_dose_total)
        plain = await called(tools, "generate", **ASKED)
        assert plain["relative_dose"] == 0.0
        found = await called(tools, "compare", **ASKED, strengths={"mood": 4.0})
        base, arm = compared.arms
        assert (found["unsteered"], found["steered"]) == (base.choices[0].text, arm.choices[0].text)
        assert found["unsteered"] == plain["text"] != found["steered"]
        assert base.metrics is not None
        assert found["scores"]["unsteered"]["mood"] == pytest.approx(base.metrics.readout["mood"].mean)
        (scores,) = (await called(tools, "read", texts=["the road"], vectors=["mood"], tokens=True))["texts"]
        layer = read.texts[0].readout["mood"][str(scores["mood"]["layer"])]
        assert scores["mood"]["mean"] == pytest.approx(layer.mean)
        assert [one["score"] for one in scores["mood"]["tokens"]] == pytest.approx(layer.scores)
        (one,) = (await called(tools, "read", texts=["the road"], vectors=["mood"], layer=1))["texts"]
        assert (one["mood"]["layer"], one["mood"]["tokens"]) == (1, None)


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("generate", {"prompt": "a", "strengths": {"moood": 1.0}}, "mood"),
        ("generate", {"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ("generate", {"prompt": "a", "steering": [{"vector": "mood"}]}, "steering"),
        ("compare", {"prompt": "a"}, "nothing to compare"),
        ("read", {"texts": ["a"], "vectors": ["nothing"]}, "vector_not_found"),
    ],
)
async def test_an_error_tells_the_model_what_to_change(
    address: str, name: str, arguments: dict[str, Any], says: str
) -> None:
    async with connected(address) as tools:
        result = await tools.call_tool(name, arguments)
        assert result.is_error
        assert says in str(result.content)


def test_the_program_of_the_page_starts_the_command(address: str, capfd: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
    programs = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    (program,) = [one for one in programs if '"mcp"' in one]
    started = f'command={sys.executable!r}, cwd={str(ROOT)!r}, args=["-m", "app.cli.main", "mcp"'
    executed(program.replace('command="steer", args=["mcp"', started).replace("http://127.0.0.1:8000", address), "page")
    printed = capfd.readouterr().out
    assert "['list_vectors', 'generate', 'compare', 'read']" in printed
    assert printed.rstrip().endswith("0.0")
