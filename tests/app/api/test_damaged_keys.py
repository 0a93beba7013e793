"""Keys whose rows were damaged in a real database are named where an admin lists them."""

import json
from pathlib import Path

import pytest

from steering.client import Client
from tests.app.cli.conftest import Steer
from tests.app.running import running
from tests.steering.store.concurrent_writer import opened_behind_its_back

ADMIN = "sk-admin-key-0123456789"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("limits = '{'", "its limits cannot be read"),
        ("limits = json_object('rows', 'many')", "its limits cannot be read"),
        ("digest = 'no digest'", "its digest cannot be read"),
        ("digest = substr(digest, 3)", "its digest cannot be read"),
    ],
)
def test_a_key_that_may_do_nothing_is_named_until_it_is_deleted(
    change: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERING_KEY", ADMIN)
    file = tmp_path / "store.sqlite3"
    with running(database=f"sqlite:///{file}", api_keys=ADMIN) as address, Client(address, api_key=ADMIN) as client:
        one, other = (client.create_key(name, scopes=["read"]) for name in ("one", "other"))
        assert client.list_keys().warnings == ()
        with opened_behind_its_back(file) as changing:
            assert changing.execute(f"UPDATE api_keys SET {change} WHERE id = ?", (one.id,)).rowcount == 1
        (warning,) = client.list_keys().warnings
        assert warning == f"key {one.id} may do nothing: {reason}; restore or delete it"
        shown, error = Steer(address, capsys)("keys", "list", "--json")
        assert [key["id"] for key in json.loads(shown)] == [one.id, other.id]
        assert " ".join(error.split()) == warning
        client.delete_key(one.id)
        assert client.list_keys().warnings == ()
