"""A profile whose row was damaged in a real database is left out by name, through the API, the client and the commands."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from steering.client import ApiError, Client
from tests.app.cli.conftest import Steer
from tests.app.conftest import D_MODEL
from tests.app.running import running
from tests.steering.store.concurrent_writer import opened_behind_its_back

WARNING = "left out, because their stored bytes are damaged: b; restore or delete them"


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A server with profiles `a`, `b` and `c`, of which `b` is damaged."""
    file = tmp_path / "store.sqlite3"
    with running(database=f"sqlite:///{file}") as address, Client(address) as client:
        client.register_vector("v", {"1": [1.0] * D_MODEL})
        for name in "abc":
            client.put_profile(name, [{"vector": "v", "strength": 0.1}])
        with opened_behind_its_back(file) as other:
            assert other.execute("UPDATE profiles SET steering = '{' WHERE name = 'b'").rowcount == 1
        yield address


def test_a_listing_names_what_it_leaves_out_until_that_is_stored_again_or_deleted(address: str) -> None:
    with Client(address) as client:
        found = client.list_profiles()
        assert ([one.name for one in found.data], found.warnings) == (["a", "c"], (WARNING,))
        with pytest.raises(ApiError, match="profile 'b'") as refusal:
            client.get_profile("b")
        assert refusal.value.code == "store_corrupt"
        client.put_profile("b", [{"vector": "v", "strength": 0.1}])
        found = client.list_profiles()
        assert ([one.name for one in found.data], found.warnings) == (["a", "b", "c"], ())


def test_a_damaged_profile_is_deleted_as_any_other(address: str) -> None:
    with Client(address) as client:
        client.delete_profile("b")
        found = client.list_profiles()
        assert ([one.name for one in found.data], found.warnings) == (["a", "c"], ())


def test_a_missing_profile_is_not_found_although_another_is_damaged(address: str) -> None:
    with Client(address) as client:
        with pytest.raises(ApiError) as refusal:
            client.generate(prompt="a", max_tokens=1, steering={"profile": "aa"})
        assert refusal.value.code == "profile_not_found"
        assert "did you mean 'a'" in refusal.value.message


def test_models_are_listed_by_name_and_the_damaged_one_is_refused_when_it_is_used(address: str) -> None:
    models = httpx2.get(f"{address}/v1/models").json()["data"]
    assert [one.get("profile") for one in models] == [None, "a", "b", "c"]
    body = {"model": models[2]["id"], "prompt": "a", "max_tokens": 1}
    refused = httpx2.post(f"{address}/v1/completions", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (500, "store_corrupt")


def test_a_vector_that_the_damaged_profile_does_not_name_is_deleted_as_any_other(address: str) -> None:
    with Client(address) as client:
        client.register_vector("w", {"1": [1.0] * D_MODEL})
        client.delete_vector("w")


def test_the_command_shows_what_is_left_out_on_standard_error(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    steer = Steer(address, capsys)
    shown, error = steer("profiles", "list")
    assert "a" in shown
    assert " ".join(error.split()) == WARNING
    listed, error = steer("profiles", "list", "--json")
    assert [one["name"] for one in json.loads(listed)] == ["a", "c"]
    assert " ".join(error.split()) == WARNING
