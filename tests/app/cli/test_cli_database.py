"""`steer db` on the database of a running server."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from steering.client import Client
from tests.app.cli.conftest import Steer
from tests.app.running import running

DIRECTIONS = {"1": [1.0] * 8}


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The database that STEERING_DATABASE names."""
    url = f"sqlite:///{tmp_path}/served.sqlite3"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    monkeypatch.setenv("STEERING_DATABASE", url)
    return url


@pytest.fixture
def client(database: str) -> Iterator[Client]:
    """A client of a server on the database."""
    with running(database=database) as address, Client(address) as found:
        yield found


@pytest.fixture
def steer(capsys: pytest.CaptureFixture[str]) -> Steer:
    return Steer("", capsys)


def names(client: Client) -> list[str]:
    return [vector.name for vector in client.list_vectors().data]


def test_a_backup_is_taken_and_restored_while_the_server_writes(client: Client, steer: Steer, tmp_path: Path) -> None:
    client.register_vector("before", DIRECTIONS)
    client.set_default_steering([{"vector": "before", "strength": 0.5}])
    stop = threading.Event()
    written: list[str] = []

    def write() -> None:
        while not stop.is_set():
            written.append(client.register_vector(f"during-{len(written)}", DIRECTIONS).name)

    writer = threading.Thread(target=write)
    writer.start()
    file = tmp_path / "backup"
    wrote, _ = steer("db", "backup", str(file), local=True)
    stop.set()
    writer.join()
    assert written
    assert str(file) in wrote.replace("\n", "")
    client.clear_default_steering()
    client.register_vector("after", DIRECTIONS)
    _, refused = steer("db", "restore", str(file), local=True, code=1)
    assert "not empty" in refused
    restored, _ = steer("db", "restore", str(file), "--replace", local=True)
    assert "rows of vectors" in restored
    found = names(client)
    assert "before" in found
    assert "after" not in found
    assert client.get_default_steering().interventions is not None


def test_everything_moves_to_another_database_by_one_command(
    client: Client, steer: Steer, database: str, tmp_path: Path, postgresql_url: str
) -> None:
    for number in range(3):
        client.register_vector("mood", DIRECTIONS, description=f"version {number}")
    client.put_profile("cheerful", [{"vector": "mood@2", "strength": 0.5}])
    target = f"sqlite:///{tmp_path}/moved.sqlite3" if database.startswith("postgresql") else postgresql_url
    moved, _ = steer("db", "migrate-to", target, local=True)
    assert "copied 3 rows of vectors" in moved
    with running(database=target) as address, Client(address) as other:
        assert other.get_vector("mood").version == 3
        assert other.get_profile("cheerful") == client.get_profile("cheerful")
        assert other.register_vector("mood", DIRECTIONS).version == 4
    assert client.get_vector("mood").version == 3


def test_old_rows_and_versions_are_pruned_while_the_server_runs(client: Client, steer: Steer) -> None:
    for _ in range(4):
        client.register_vector("mood", DIRECTIONS)
    client.put_profile("cheerful", [{"vector": "mood@2", "strength": 0.5}])
    shown, _ = steer("db", "prune", "--keep-versions", "1", "--dry-run", local=True)
    assert "would delete 2 versions" in shown
    pruned, _ = steer("db", "prune", "--keep-versions", "1", "--jobs", "1", "--audit", "1", local=True)
    assert "deleted 0 rows of jobs" in pruned
    assert "deleted 2 versions of vectors\n  mood@1\n  mood@3" in pruned
    assert client.get_vector("mood@2").version == 2
    assert client.get_vector("mood").version == 4
    assert "database: 0" in steer("db", "current", local=True)[0]


@pytest.mark.parametrize("option", ["--jobs", "--audit", "--links"])
def test_ages_beyond_a_century_are_refused(steer: Steer, option: str) -> None:
    _, refused = steer("db", "prune", option, "400000", local=True, code=2)
    assert option in refused
    assert "less than or equal to 36500" in refused
