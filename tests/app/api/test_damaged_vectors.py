"""Vectors whose rows were damaged in a real database are left out by name, through the API, the client and the commands."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.core.answers import SHOWN_DAMAGED, damage_warnings
from steering.client import ApiError, Client
from tests.app.cli.conftest import Steer
from tests.app.conftest import D_MODEL
from tests.app.running import running
from tests.steering.store.concurrent_writer import opened_behind_its_back

ADMIN, TEAM = "sk-admin-key-0123456789", "sk-team-key-0123456789"
KEYS = f"{ADMIN},{TEAM}:generate+read+write@team"
NUMBERS, METADATA = "content = x'00'", "metadata_json = substr(metadata_json, 2)"


def left_out(*ids: str) -> tuple[str, ...]:
    """The warning about vectors."""
    return (f"left out, because their stored bytes are damaged: {', '.join(ids)}; restore or delete them",)


@dataclass
class Running:
    """A server on a database file, and the client of its admin."""

    address: str
    file: Path
    client: Client

    def damage(self, change: str, name: str, version: int = 1) -> None:
        """Changes a row of the database as another program would."""
        with opened_behind_its_back(self.file) as other:
            done = other.execute(f"UPDATE vectors SET {change} WHERE name = ? AND version = ?", (name, version))
            assert done.rowcount == 1


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """`a`, `b`, `c` and `d`, all alike."""
    file = tmp_path / "store.sqlite3"
    with (
        running(database=f"sqlite:///{file}", api_keys=KEYS) as address,
        Client(address, api_key=ADMIN) as client,
    ):
        for name in "abcd":
            client.register_vector(name, {"1": [1.0] * D_MODEL})
        yield Running(address, file, client)


@pytest.fixture
def steer(server: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Steer:
    monkeypatch.setenv("STEERING_KEY", ADMIN)
    return Steer(server.address, capsys)


def one_line(text: str) -> str:
    """Text as it was before it was wrapped."""
    return " ".join(text.split())


def test_a_listing_names_what_it_leaves_out_of_each_page_until_that_is_deleted(server: Running) -> None:
    server.damage(METADATA, "b")
    first = server.client.list_vectors(limit=2)
    assert ([one.id for one in first.data], first.warnings) == (["a@1"], left_out("b@1"))
    assert first.next_cursor is not None
    second = server.client.list_vectors(limit=2, cursor=first.next_cursor)
    assert ([one.id for one in second.data], second.warnings) == (["c@1", "d@1"], ())
    assert server.client.list_vectors(search="c").warnings == (), "what was not asked for is not missing"
    whole = server.client.export_vector("b")  # its numbers are not damaged
    server.client.delete_vector("b")
    assert server.client.list_vectors().warnings == ()
    assert server.client.import_vector(whole).id == "b@2"
    assert [one.id for one in server.client.list_vectors().data] == ["a@1", "b@2", "c@1", "d@1"]


def test_a_listing_reads_no_numbers_and_what_reads_them_says_that_they_are_damaged(server: Running) -> None:
    server.damage(NUMBERS, "b")
    page = server.client.list_vectors()
    assert ([one.id for one in page.data], page.warnings) == (["a@1", "b@1", "c@1", "d@1"], ())
    with pytest.raises(ApiError, match="b@1 do not match their SHA-256") as refusal:
        server.client.get_vector("b")
    assert refusal.value.code == "store_corrupt"


def test_similar_names_vectors_of_either_damage_and_never_the_one_it_compares(server: Running) -> None:
    assert server.client.similar_vectors("a").warnings == ()
    server.client.register_vector("e", {"1": [1.0, *[0.0] * (D_MODEL - 1)]})  # no known pair: a cosine is computed once
    server.damage(METADATA, "a")
    server.damage(METADATA, "b")
    server.damage(NUMBERS, "e")
    found = server.client.similar_vectors("a")
    assert ([one.id for one in found.data], found.warnings) == (["c@1", "d@1"], left_out("b@1", "e@1"))
    server.client.delete_vector("b")
    server.client.delete_vector("e")
    assert server.client.similar_vectors("a").warnings == ()


def test_versions_name_what_they_leave_out_and_older_ones_are_reached(server: Running) -> None:
    for _ in range(3):
        server.client.register_vector("a", {"1": [1.0] * D_MODEL})
    server.damage(METADATA, "a", 3)
    server.damage(METADATA, "a", 1)
    newest = server.client.list_versions("a", limit=2)
    assert ([one.id for one in newest.data], newest.next_before) == (["a@4"], 3)
    assert newest.warnings == left_out("a@3")
    older = server.client.list_versions("a", limit=2, before=newest.next_before)
    assert ([one.id for one in older.data], older.next_before) == (["a@2"], None)
    assert older.warnings == left_out("a@1")
    for version in (1, 3):
        server.client.delete_vector("a", version=version)
    assert server.client.list_versions("a").warnings == ()


def test_a_damaged_vector_of_shared_is_not_unknown_to_a_key_that_may_not_delete_it(server: Running) -> None:
    server.damage(METADATA, "b")
    with Client(server.address, api_key=TEAM) as team:
        assert team.list_vectors().warnings == left_out("b@1")
        with pytest.raises(ApiError, match="'shared'") as refusal:
            team.delete_vector("b")
    assert refusal.value.code == "insufficient_scope"


def test_a_default_steering_that_is_not_applied_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "store.sqlite3"
    database = f"sqlite:///{file}"
    with running(database=database) as address, Client(address) as client:
        client.register_vector("a", {"1": [1.0] * D_MODEL})
        (warning,) = client.set_default_steering([{"vector": "a"}]).warnings
        assert "beyond the bound" in warning, "what requests under it are warned of"
        assert client.set_default_steering([{"vector": "a", "strength": 0.1}]).warnings == ()
        assert client.get_default_steering().warnings == ()
        Running(address, file, client).damage(NUMBERS, "a")
    with running(database=database) as address, Client(address) as client:
        found = client.get_default_steering()
        (warning,) = found.warnings
        assert "not applied: the bytes of vector a@1 do not match their SHA-256" in warning
        assert client.generate(prompt="a", max_tokens=2).steering.warnings == [warning]
        shown, error = Steer(address, capsys)("default", "show")
        assert "a@1" in shown
        assert one_line(error) == warning


def test_the_commands_show_what_is_left_out_on_standard_error(server: Running, steer: Steer) -> None:
    server.damage(METADATA, "b")
    (warning,) = left_out("b@1")
    for command in (("list",), ("similar", "a")):
        shown, error = steer("vectors", *command)
        assert "c@1" in shown
        assert one_line(error) == warning
        listed, error = steer("vectors", *command, "--json")
        assert {one["id"] for one in json.loads(listed)} - {"a@1"} == {"c@1", "d@1"}
        assert one_line(error) == warning
    steer("vectors", "delete", "b")
    assert steer("vectors", "list")[1] == ""


def test_a_warning_names_some_and_counts_the_others() -> None:
    ids = [f"v{number}@1" for number in range(SHOWN_DAMAGED + 2)]
    assert damage_warnings(ids[:SHOWN_DAMAGED]) == left_out(*ids[:SHOWN_DAMAGED])
    (warning,) = damage_warnings(ids)
    assert f"{ids[SHOWN_DAMAGED - 1]} and 2 more;" in warning
    assert ids[SHOWN_DAMAGED] not in warning
    assert damage_warnings(()) == ()
