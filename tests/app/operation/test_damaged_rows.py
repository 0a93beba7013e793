"""One damaged row damages one thing, which a warning names."""

from pathlib import Path
from typing import Any

import httpx2
import pytest

from steering.store.records import JobRecord
from steering.store.store import open_sql_store
from tests.app.conftest import D_MODEL, Server, StartServer
from tests.steering.store.concurrent_writer import opened_behind_its_back

ASK = {"prompt": "a", "max_tokens": 2}
DEFAULT = {"interventions": [{"vector": "mood", "strength": 0.01}]}
KEYS = "sk-admin-0123456789abcdef,sk-team-x-0123456789abcdef:read+write+generate@team-x"
NOT_APPLIED = "the default steering is not applied: the steering stored in the default steering of namespace 'team-x' cannot be read"


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer sk-{name}-0123456789abcdef"}


async def applied(client: httpx2.AsyncClient, key: str) -> tuple[list[str], list[str]]:
    """The vectors and the warnings of a request without steering."""
    answer = await client.post("/v1/generate", json=ASK, headers=bearer(key))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["steering"]
    return [one["vector"] for one in found["applied"]], found["warnings"]


async def steered_by_both(server: Server) -> None:
    """Sets a default steering of `shared` and one of `team-x`."""
    for key in ("admin", "team-x"):
        body = {"name": "mood", "directions": {"1": [1.0] * D_MODEL}}
        assert (await server.client.post("/v1/vectors", json=body, headers=bearer(key))).status_code == 201
        assert (await server.client.put("/v1/steering", json=DEFAULT, headers=bearer(key))).status_code == 200


async def test_a_damaged_default_of_one_namespace_unsteers_no_other_one(start: StartServer, tmp_path: Path) -> None:
    file = tmp_path / "store.sqlite3"
    url = f"sqlite:///{file}"
    await steered_by_both(await start(database=url, api_keys=KEYS))
    with opened_behind_its_back(file) as other:
        damaged = other.execute("UPDATE default_steering SET steering = '{' WHERE namespace = 'team-x'")
        assert damaged.rowcount == 1
    restarted = await start(database=url, api_keys=KEYS)
    client = restarted.client
    assert (await client.get("/health/ready")).status_code == 200
    assert (await applied(client, "admin"))[0] == ["mood@1"]
    assert await applied(client, "team-x") == ([], [NOT_APPLIED])
    shown = (await client.get("/v1/steering", headers=bearer("team-x"))).json()
    assert (shown["namespace"], shown["interventions"], shown["warnings"]) == ("team-x", None, [NOT_APPLIED])
    changed = {"interventions": [{"vector": "mood", "strength": 0.02}]}
    assert (await client.put("/v1/steering", json=changed, headers=bearer("admin"))).status_code == 200
    assert (await applied(client, "admin"))[0] == ["mood@1"]
    assert (await client.put("/v1/steering", json=DEFAULT, headers=bearer("team-x"))).status_code == 200
    assert await applied(client, "team-x") == (["mood@1"], [])


@pytest.mark.parametrize(
    "damage", ["progress = '{'", "error = '[1]'", "status = 'odd'", 'progress = \'{"done": "x"}\'']
)
async def test_a_damaged_job_is_named_and_the_others_are_listed(
    start: StartServer, tmp_path: Path, damage: str
) -> None:
    file = tmp_path / "store.sqlite3"
    store = await open_sql_store(f"sqlite:///{file}")
    for name in ("job-a", "job-b", "job-c"):
        await store.shared.jobs.put(JobRecord(id=name, kind="extract", status="succeeded", result={"vector": "mood@1"}))
    await store.close()
    with opened_behind_its_back(file) as other:
        assert other.execute(f"UPDATE jobs SET {damage} WHERE id = 'job-b'").rowcount == 1
    server = await start(database=f"sqlite:///{file}")
    page = (await server.client.get("/v1/jobs")).json()
    assert [one["id"] for one in page["data"]] == ["job-c", "job-a"]
    assert page["warnings"] == ["left out, because their stored bytes are damaged: job-b; restore or delete them"]
    refused = await server.client.get("/v1/jobs/job-b")
    assert (refused.status_code, refused.json()["error"]["code"]) == (500, "store_corrupt")


async def test_lists_have_no_results_and_a_damaged_result_is_no_reason_to_leave_a_job_out(
    start: StartServer, tmp_path: Path
) -> None:
    file = tmp_path / "store.sqlite3"
    store = await open_sql_store(f"sqlite:///{file}")
    await store.shared.jobs.put(JobRecord(id="job-a", kind="extract", status="succeeded", result={"vector": "mood@1"}))
    await store.shared.jobs.put(JobRecord(id="job-b", kind="extract", status="succeeded", result={"vector": "mood@1"}))
    await store.close()
    with opened_behind_its_back(file) as other:
        other.execute("UPDATE jobs SET result = '{' WHERE id = 'job-b'")
    client = (await start(database=f"sqlite:///{file}")).client
    page = (await client.get("/v1/jobs?limit=1")).json()
    assert ([one["id"] for one in page["data"]], page["warnings"]) == (["job-b"], [])
    rest = (await client.get("/v1/jobs", params={"cursor": page["next_cursor"]})).json()
    assert [("result" in one, "request" in one) for one in (*page["data"], *rest["data"])] == [(False, False)] * 2
    assert (await client.get("/v1/jobs/job-a")).json()["result"] == {"vector": "mood@1"}
