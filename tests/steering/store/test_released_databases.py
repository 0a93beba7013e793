"""The database of every release, made by its own code, opens with all that it had. See tests/data/databases/README.md."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from steering.spec import SteeringSpec
from steering.store.migrate import schema_known
from steering.store.store import Store, open_sql_store
from steering.store.tables import Base

DATABASES = Path(__file__).parents[2] / "data" / "databases"
FILES = sorted(DATABASES.glob("*.sqlite3"))


def rows(file: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(query).fetchall()


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def released(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a released database."""
    copy = tmp_path / "released.sqlite3"
    shutil.copyfile(request.param, copy)
    return copy


@pytest.fixture
def before(released: Path) -> dict[str, object]:
    """What is in it, read without our code."""
    tables = [name for (name,) in rows(released, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    known = {table.name for table in Base.metadata.sorted_tables} & set(map(str, tables))
    found: dict[str, object] = {name: rows(released, f"SELECT count(*) FROM {name}") for name in sorted(known)}
    vectors = (
        "SELECT name, version, description, created_at, sha256, content FROM vectors ORDER BY name, version, sha256"
    )
    return found | {"content of vectors": rows(released, vectors)}


async def test_everything_is_there_after_the_upgrade(released: Path, before: dict[str, object]) -> None:
    await (await open_sql_store(f"sqlite:///{released}")).close()
    for name, content in before.items():
        if name == "content of vectors":
            vectors = "SELECT name, version, description, created_at, sha256, content FROM vectors ORDER BY name, version, sha256"
            assert rows(released, vectors) == content
        else:
            assert rows(released, f"SELECT count(*) FROM {name}") == content, name
    assert rows(released, "SELECT version_num FROM alembic_version") == [(schema_known(),)]
    assert rows(released, "PRAGMA integrity_check") == [("ok",)]


async def test_every_vector_and_profile_can_be_read(released: Path) -> None:
    stored = {str(sha256): content for sha256, content in rows(released, "SELECT sha256, content FROM vectors")}
    texts = {str(text) for (text,) in rows(released, "SELECT steering FROM profiles")}
    store = await open_sql_store(f"sqlite:///{released}")
    read: list[str] = []
    for namespace in ("shared", "team"):
        place = store.in_namespace(namespace)
        for name in await place.vectors.names():
            for one in (await place.vectors.versions(name)).versions:
                vector = await place.vectors.get(name, one.version)
                assert vector.sha256 == one.sha256
                content = stored[vector.sha256]
                assert isinstance(content, bytes)
                for key, direction in load(content).items():
                    assert torch.equal(vector.layers[int(key.removeprefix("layer."))].direction, direction)
        page = await place.profiles.find()
        assert page.damaged == ()
        read += [one.steering.model_dump_json(exclude_unset=True, by_alias=True) for one in page.items]
    assert texts <= set(read)
    await store.close()


async def opened(name: str, folder: Path) -> Store:
    copy = folder / "copy.sqlite3"
    shutil.copyfile(DATABASES / name, copy)
    return await open_sql_store(f"sqlite:///{copy}")


def steering(*interventions: dict[str, object]) -> SteeringSpec:
    return SteeringSpec.model_validate({"interventions": list(interventions)})


async def test_the_release_before_sizes_of_profiles_has_namespaces_keys_jobs_and_links(tmp_path: Path) -> None:
    store = await opened("0006-9ed3b8d9.sqlite3", tmp_path)
    team = store.in_namespace("team")
    assert [(one.namespace, one.id) for one in (await team.vectors.find()).items] == [
        ("shared", "plain@1"), ("team", "warmth@1"),
    ]  # fmt: skip
    assert await store.defaults() == {
        "shared": steering({"vector": "plain@1", "strength": 0.2, "layers": [0]}),
        "team": steering({"vector": "warmth@1"}),
    }
    (key,) = await store.keys.all()
    assert (key.scopes, dict(key.limits), key.namespace) == (
        ("read", "generate"),
        {"jobs": 3, "vectors": ["warmth"]},
        "team",
    )
    assert {one.id: one.status for one in (await team.jobs.find()).items} == {"job-1": "succeeded", "job-2": "failed"}
    assert (await store.shared.jobs.get("job-1")).result == {"vector": "mood@1"}
    assert (await store.shared.links.get("abcdefghijklmnop")).state == {"prompt": "a"}
    assert await store.documents.get("policy") == {"mandatory": [{"vector": "plain@1", "strength": -0.5}]}
    assert await store.outputs.read("out-1", 0) == '{"index":0}\n'
    await store.close()
    sizes = rows(tmp_path / "copy.sqlite3", "SELECT size, length(steering) FROM profiles")
    assert all(size == length for size, length in sizes)
