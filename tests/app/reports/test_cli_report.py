"""`steer report` as a person runs it: the verdict in the terminal, and the documents."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from steering.client import Client
from steering.engine.api import GenerationRequest
from steering.errors import NonfiniteActivations, SteeringError
from tests.app.cli.conftest import Steer
from tests.app.running import running
from tests.steering.workflows.linear import GAIN, LinearEngine


def out_of_range(request: GenerationRequest, _: int) -> SteeringError | None:
    """Fails beyond strength 5."""
    beyond = any(one.spec.strength > 5.0 for one in request.plan.interventions)
    return NonfiniteActivations("out of range") if beyond else None


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    engine = LinearEngine(fails=out_of_range)
    with running(engine) as found:
        with Client(found) as client:
            client.register_vector("mood", {"2": engine.concept.tolist()}, scale={"2": GAIN})
        yield found


@pytest.fixture
def steer(address: str, capsys: pytest.CaptureFixture[str]) -> Steer:
    return Steer(address, capsys)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"the {word}"}) + "\n" for word in ("road", "river", "house")))
    return path


def test_a_report_is_shown_and_written(steer: Steer, prompts: Path, tmp_path: Path) -> None:
    given = ["report", "mood", "--strength", "0.8", "--prompts", str(prompts), "--seeds", "0", "--side-effects", "mood"]
    written = {}
    for suffix in ("json", "md", "html"):
        out = tmp_path / f"report.{suffix}"
        items = tmp_path / "items.jsonl"
        printed, _ = steer(*given, "--out", str(out), "--items", str(items))
        written[suffix] = out.read_text(encoding="utf-8")
        assert all(
            word in printed for word in ("control", "anti_steered", "robustness", "margin", "not shown", "mood@1")
        )
    rows = [json.loads(line) for line in items.read_text(encoding="utf-8").splitlines()]
    assert {row["arm"] for row in rows} == {"unsteered", "steered", "random"}
    assert {row["seed"] for row in rows} == {0}
    assert len({row["direction"] for row in rows if row["arm"] == "random"}) == 8
    found = json.loads(written["json"])
    text = found["seeds"][0]["texts"][0]["steered"]
    assert text in written["md"]
    assert text in written["html"]


def test_a_seed_of_which_nothing_was_judged_says_why(steer: Steer, prompts: Path, tmp_path: Path) -> None:
    given = ["report", "mood", "--strength", "8", "--prompts", str(prompts), "--seeds", "3", "--side-effects", "mood"]
    for suffix in ("md", "html"):
        out = tmp_path / f"report.{suffix}"
        printed, _ = steer(*given, "--out", str(out))
        assert "seed 3: FAIL. The activations became non-finite." in printed
        written = out.read_text(encoding="utf-8")
        assert "The activations became non-finite." in written
        assert "<table" not in written


@pytest.mark.parametrize("arguments", [("--out", "report.pdf"), ("--seeds", "one")])
def test_wrong_usage_is_reported(steer: Steer, arguments: tuple[str, ...]) -> None:
    _, error = steer("report", "mood", *arguments, code=2)
    assert error


def test_one_seed_agrees_with_none(steer: Steer, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.md"
    given = ["report", "mood", "--strength", "0.8", "--prompts", str(prompts), "--side-effects", "mood"]
    for seeds, named in (("0", False), ("0,1", True)):
        shown, _ = steer(*given, "--seeds", seeds, "--out", str(out))
        assert ("the seeds" in shown) is named
        assert ("the seeds" in out.read_text(encoding="utf-8")) is named
