"""`steer keys` and `steer audit` against a server with a key."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.cli.conftest import Steer
from tests.app.running import running

ADMIN = "sk-admin-key-of-tests-0123456789"


@pytest.fixture
def steer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Steer]:
    """Runs commands with the admin's key."""
    monkeypatch.setenv("STEERING_KEY", ADMIN)
    with running(api_keys=ADMIN) as address:
        yield Steer(address, capsys)


def test_a_key_is_created_listed_and_deleted(steer: Steer) -> None:
    options = ["--scope", "generate", "--scope", "read", "--limit", "requests_per_minute=5"]
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
    assert "204" in shown, "a change with 499 or 5xx may not have been made"
    assert "name=team a" in shown


def test_a_key_of_a_namespace_sees_its_own_vectors(
    steer: Steer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = [
        "--scope",
        "read",
        "--scope",
        "write",
        "--namespace",
        "team-a",
        "--limit",
        "rows=4",
        "--limit",
        "storage_bytes=100000",
    ]
    secret = steer("keys", "create", "team a", *options)[0].strip()
    (listed,) = json.loads(steer("keys", "list", "--json")[0])
    assert (listed["namespace"], listed["limits"]["rows"], listed["limits"]["storage_bytes"]) == ("team-a", 4, 100000)
    file = tmp_path / "vector.json"
    file.write_text(json.dumps({"name": "mood", "directions": {"1": [1.0] * 8}}))
    monkeypatch.setenv("STEERING_KEY", secret)
    steer("vectors", "import", str(file))
    assert "mood" in steer("vectors", "list")[0]
    monkeypatch.setenv("STEERING_KEY", ADMIN)
    assert "mood" not in steer("vectors", "list")[0]
    monkeypatch.setenv("STEERING_NAMESPACE", "team-a")
    assert "mood" in steer("vectors", "list")[0]
    assert "team a" in steer("keys", "list")[0]
    assert "POST /v1/vectors" in steer("audit")[0]


def test_an_id_is_on_one_line_of_the_list(steer: Steer) -> None:
    scopes = ["--scope", "generate", "--scope", "read", "--scope", "write"]
    steer("keys", "create", "team a", "--expires-at", "2090-01-02T03:04:05+01:00", *scopes)
    assert "2090-01-02 02:04" in steer("keys", "list")[0]
    steer("keys", "create", "a key with a long name that takes two lines", *scopes)
    ids = [one["id"] for one in json.loads(steer("keys", "list", "--json")[0])]
    shown = steer("keys", "list")[0]
    assert all(one in shown for one in ids)


def test_every_limit_of_a_key_is_set_changed_and_removed(steer: Steer) -> None:
    limits: dict[str, object] = {
        "requests_per_minute": 5,
        "tokens_per_minute": 6,
        "concurrency": 2,
        "rows": 3,
        "jobs": 1,
        "storage_bytes": 9,
    }
    limits |= {"max_relative_dose": 0.5, "own_steering": "profiles"}
    options = [text for name, value in limits.items() for text in ("--limit", f"{name}={value}")]
    steer("keys", "create", "team", "--scope", "generate", *options, "--limit", "vectors=mood,other@2")
    (key,) = json.loads(steer("keys", "list", "--json")[0])
    assert key["limits"] == {**limits, "vectors": ["mood", "other@2"]}
    steer("keys", "change", key["id"], "--limit", "rows=4", "--limit", "jobs=", "--name", "others")
    (changed,) = json.loads(steer("keys", "list", "--json")[0])
    assert changed["name"] == "others"
    assert changed["limits"] == {**{n: v for n, v in key["limits"].items() if n != "jobs"}, "rows": 4}


def test_the_expiry_of_a_key_is_removed(steer: Steer) -> None:
    steer("keys", "create", "team", "--scope", "read", "--expires-at", "2090-01-02T03:04:05Z", "--limit", "rows=4")
    (key,) = json.loads(steer("keys", "list", "--json")[0])
    both = ("--never-expires", "--expires-at", "2091-01-02T03:04:05Z")
    assert "not both" in steer("keys", "change", key["id"], *both, code=2)[1]
    steer("keys", "change", key["id"], "--name", "others")
    (kept,) = json.loads(steer("keys", "list", "--json")[0])
    steer("keys", "change", key["id"], "--never-expires")
    (changed,) = json.loads(steer("keys", "list", "--json")[0])
    assert ("expires_at" in kept, "expires_at" in changed, changed["limits"]["rows"]) == (True, False, 4)


@pytest.mark.parametrize("limits", [("vectors=",), ("rows=3", "vectors=mood", "vectors=other")])
def test_a_limit_that_is_empty_or_given_twice_makes_no_key(steer: Steer, limits: tuple[str, ...]) -> None:
    """As of a variable that is not set: the key could steer with every vector."""
    options = [text for limit in limits for text in ("--limit", limit)]
    assert "vectors" in steer("keys", "create", "team", "--scope", "generate", *options, code=2)[1]
    assert json.loads(steer("keys", "list", "--json")[0]) == []


def test_a_key_is_rotated(steer: Steer, monkeypatch: pytest.MonkeyPatch) -> None:
    old = steer("keys", "create", "team", "--scope", "read")[0].strip()
    (key,) = json.loads(steer("keys", "list", "--json")[0])
    new = steer("keys", "rotate", key["id"], "--old-valid-seconds", "60")[0].strip()
    assert new not in ("", old)
    for secret in (old, new):
        monkeypatch.setenv("STEERING_KEY", secret)
        assert "no vectors yet" in steer("vectors", "list")[0]
