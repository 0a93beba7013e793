"""Commands for what a server stores besides vectors, for combining vectors, and for replaying a response."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from steering.client import Client
from tests.app.cli.conftest import Steer
from tests.app.conftest import D_MODEL
from tests.app.running import running


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running() as found:
        with Client(found) as client:
            client.register_vector("calm", {"1": [1.0] * D_MODEL})
            client.register_vector("warm", {"1": [1.0, -1.0] * (D_MODEL // 2)})
        yield found


def test_a_profile_is_set_listed_shown_and_deleted(steer: Steer) -> None:
    assert "nothing" not in steer("profiles", "set", "soft", "--steer", "calm=0.5", "--description", "quiet")[0]
    assert "add calm +0.5" in steer("profiles", "list")[0]
    shown = json.loads(steer("profiles", "show", "soft")[0])
    assert (shown["name"], shown["description"], shown["interventions"][0]["strength"]) == ("soft", "quiet", 0.5)
    assert json.loads(steer("profiles", "list", "--json")[0])[0]["name"] == "soft"
    assert steer("profiles", "delete", "soft")[0] == "deleted soft\n"
    assert steer("profiles", "list")[0] == "none\n"


def test_whole_lists_are_read_whatever_a_page_of_the_server_has(capsys: pytest.CaptureFixture[str]) -> None:
    with running(max_page=1) as address:
        steer = Steer(address, capsys)
        with Client(address) as client:
            for name in ("a", "b"):
                client.register_vector(name, {"1": [1.0] * D_MODEL})
                client.put_profile(name, [{"vector": name}])
        for lists in ("profiles", "vectors"):
            assert [one["name"] for one in json.loads(steer(lists, "list", "--json")[0])] == ["a", "b"]
        for page in (("audit",), ("jobs", "list"), ("links", "list")):
            assert len(json.loads(steer(*page, "--json")[0])) <= 1


def test_a_profile_without_interventions_is_wrong_usage(steer: Steer) -> None:
    assert "--steer" in steer("profiles", "set", "empty", code=2)[1]


def test_the_default_steering_is_set_shown_and_cleared(steer: Steer) -> None:
    assert steer("default", "show")[0] == "none\n"
    steer("default", "set", "--steering", '{"vector": "calm", "operation": "ablate"}')
    assert steer("default", "show")[0] == "ablate calm@1 +1\n"
    assert json.loads(steer("default", "show", "--json")[0])["interventions"][0]["operation"] == "ablate"
    for options, applied in (((), 1), (("--steering", "[]"), 0)):
        answer = json.loads(steer("generate", "x", "--max-tokens", "1", *options, "--json")[0])
        assert len(answer["steering"]["applied"]) == applied
    assert steer("default", "set", "--steering", "[]")[0] == "no steering\n", (
        "of a namespace, where shared has a default"
    )
    steer("default", "clear")
    assert steer("default", "show")[0] == "none\n"


def test_concepts_are_listed_and_shown(steer: Steer) -> None:
    assert {"sentiment", "refusal"} <= {one["name"] for one in json.loads(steer("concepts", "list", "--json")[0])}
    assert "sentiment" in steer("concepts", "list")[0]
    assert len(json.loads(steer("concepts", "show", "sentiment", "--json")[0])["data"]) == 64
    assert "positive" in steer("concepts", "show", "sentiment")[0]
    assert "concept_not_found" in steer("concepts", "show", "nothing", code=1)[1]


def test_jobs_are_listed_shown_followed_and_cancelled(steer: Steer, address: str) -> None:
    with Client(address) as client:
        pairs = [{"positive": f"good {n}", "negative": f"bad {n}", "topic": str(n)} for n in range(8)]
        job = client.start_extraction("mood", pairs=pairs)
    assert json.loads(steer("jobs", "follow", job.id)[0])["vector"]["name"] == "mood"
    listed = json.loads(steer("jobs", "list", "--json")[0])
    assert listed[0]["id"] == job.id
    assert job.id in steer("jobs", "list")[0]
    assert json.loads(steer("jobs", "show", job.id)[0])["status"] == "succeeded"
    assert steer("jobs", "cancel", job.id)[0] == "succeeded\n"


def test_links_are_listed_shown_and_deleted(steer: Steer, address: str) -> None:
    with Client(address) as client:
        link = client.save_link("read", {"text": "Hello"})
    assert f"/#/read?link={link.id}" in steer("links", "list")[0].replace("\n", "")
    assert json.loads(steer("links", "list", "--json")[0])[0]["id"] == link.id
    assert json.loads(steer("links", "show", link.id)[0])["state"] == {"text": "Hello"}
    assert steer("links", "delete", link.id)[0] == f"deleted {link.id}\n"
    assert steer("links", "list")[0] == "none\n"
    assert "link_not_found" in steer("links", "show", link.id, code=1)[1]


def test_vectors_are_combined_and_compared(steer: Steer) -> None:
    assert "both@1" in steer("vectors", "combine", "both", "calm=1", "warm=-0.5")[0]
    similar = json.loads(steer("vectors", "similar", "both", "--json")[0])
    assert similar[0]["id"] == "calm@1"
    assert "calm@1" in steer("vectors", "similar", "both")[0]
    assert "expected NAME=STRENGTH" in steer("vectors", "combine", "both", "calm=much", code=2)[1]


def test_a_response_is_replayed_from_its_file(steer: Steer, tmp_path: Path) -> None:
    response = json.loads(steer("generate", "Hello", "--steer", "calm=1", "--max-tokens", "6", "--json")[0])
    for content in (response, response["steering"]["record"]):
        (tmp_path / "record.json").write_text(json.dumps(content))
        again = json.loads(steer("replay", str(tmp_path / "record.json"), "--json")[0])
        assert again["choices"][0]["text"] == response["choices"][0]["text"]
    assert steer("replay", str(tmp_path / "record.json"))[0].strip() == response["choices"][0]["text"].strip()
