"""`steer keys` and `steer audit` against a server with a key."""

import json
from collections.abc import Iterator

import pytest

from tests.app.cli.test_cli import Steer
from tests.app.running import running

ADMIN = "sk-admin-key-of-tests-0123456789"


@pytest.fixture
def steer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Steer]:
    """Runs commands with the admin's key."""
    monkeypatch.setenv("STEERING_KEY", ADMIN)
    with running(api_keys=ADMIN) as address:
        yield Steer(address, capsys)


def test_a_key_is_created_listed_and_deleted(steer: Steer) -> None:
    options = ["--scope", "generate", "--scope", "read", "--requests-per-minute", "5"]
    secret = steer("keys", "create", "team a", *options)[0].strip()
    assert secret.startswith("sk-")
    listed = json.loads(steer("keys", "list", "--json")[0])
    assert (listed[0]["name"], listed[0]["scopes"]) == ("team a", ["generate", "read"])
    assert listed[0]["limits"]["requests_per_minute"] == 5
    assert secret not in steer("keys", "list")[0]
    steer("keys", "delete", listed[0]["id"])
    assert "none" in steer("keys", "list")[0]
    shown = steer("audit")[0]
    assert "DELETE /v1/keys/{key_id}" in shown
    assert "name=team a" in shown
