"""`steer policy` and `steer monitors` against a server."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from steering.client import Client
from tests.app.cli.conftest import Steer
from tests.app.running import running

DIRECTIONS = {"1": [1.0] * 8}


@pytest.fixture
def address() -> Iterator[str]:
    with running() as found:
        yield found


def test_a_policy_is_set_from_a_file_shown_and_cleared(steer: Steer, address: str, tmp_path: Path) -> None:
    with Client(address) as client:
        client.register_vector("mood", DIRECTIONS)
        file = tmp_path / "policy.json"
        monitor = {"name": "watch", "vector": "mood", "above": 0.4, "action": "flag"}
        file.write_text(json.dumps({"mandatory": [{"vector": "mood", "strength": 0.1}], "monitors": [monitor]}))
        steer("policy", "set", str(file))
        shown = json.loads(steer("policy", "show")[0])
        assert shown["mandatory"] == [{"vector": "mood@1", "strength": 0.1}]
        assert shown["monitors"] == [{**monitor, "vector": "mood@1"}]
        again = tmp_path / "again.json"
        again.write_text(json.dumps(shown))
        steer("policy", "set", str(again))
        assert json.loads(steer("policy", "show")[0]) == shown
        answer = client.generate("a", steering=[], max_tokens=4)
        assert answer.steering.mandatory is not None
        assert answer.choices[0].flags is not None
        assert answer.choices[0].flags[0].monitor == "watch"
        table, detail = steer("monitors")[0], steer("monitors", "watch")[0]
        assert "above 0.4" in table
        assert "token 0" in detail
        assert json.loads(steer("monitors", "watch", "--json")[0])["answers"] == 1
        again.write_text(json.dumps({**shown, "limits": None}))
        assert "limits is null" in steer("policy", "set", str(again), code=2)[1]
        assert json.loads(steer("policy", "show")[0]) == shown
        steer("policy", "clear")
        assert client.get_policy().mandatory == ()
        assert "none" in steer("monitors")[0]


def test_a_raised_monitor_is_shown_with_the_answer(steer: Steer, address: str) -> None:
    with Client(address) as client:
        client.register_vector("mood", DIRECTIONS)
        for action, reported in (("count", None), ("flag", "was raised"), ("stop", "ended the answer")):
            client.set_policy(monitors=[{"name": "watch", "vector": "mood", "above": -99, "action": action}])
            _, notes = steer("generate", "a", "--max-tokens", "4")
            shown = [line for line in notes.splitlines() if "monitor" in line]
            assert len(shown) == (reported is not None)
            assert reported is None or f"monitor watch {reported}: mood@1 above -99, score " in shown[0]
