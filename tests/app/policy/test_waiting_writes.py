"""A write of the policy or of the default steering that waits for the database holds up no read of what other servers wrote."""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from steering.spec import SteeringSpec
from steering.store.store import NamespaceStore
from tests.app.changed_store import ChangedStore, changed
from tests.app.conftest import Server
from tests.app.policy.conftest import put_policy
from tests.app.policy.test_refresh import OTHER, PUSH


class Hanging:
    """A write that waits as for a database that does not answer."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()

    async def __call__(self, *_: object, **__: object) -> None:
        """Waits."""
        self.reached.set()
        await asyncio.Event().wait()


async def changed_elsewhere_during(
    write: Coroutine[Any, Any, Any],
    hanging: Hanging,
    elsewhere: Coroutine[Any, Any, Any],
    refresh: Coroutine[Any, Any, None],
) -> None:
    """Reads a topic again after a change by another server, while a write of this one waits for the database."""
    writing = asyncio.create_task(write)
    async with asyncio.timeout(30):
        await hanging.reached.wait()
        await elsewhere
        await refresh
    writing.cancel()
    await asyncio.wait({writing})


async def test_a_policy_that_waits_to_be_written_holds_up_no_read_of_it(tiny: Server) -> None:
    state, real, hanging = tiny.state, tiny.state.store, Hanging()
    state.jobs.store = changed(real, documents=changed(real.documents, put=hanging))
    elsewhere = real.documents.put("policy", {"mandatory": [OTHER]})
    refresh = state.policy.refresh(real, state.engine)
    await changed_elsewhere_during(put_policy(tiny, mandatory=[PUSH]), hanging, elsewhere, refresh)
    assert [one["vector"] for one in (await tiny.client.get("/v1/policy")).json()["mandatory"]] == ["other@1"]


async def test_a_default_that_waits_to_be_written_holds_up_no_read_of_it(tiny: Server) -> None:
    state, real, hanging = tiny.state, tiny.state.store, Hanging()

    def unwritten(found: NamespaceStore) -> NamespaceStore:
        return replace(found, profiles=changed(found.profiles, set_default=hanging))

    state.jobs.store = ChangedStore(real, unwritten)
    put = tiny.client.put("/v1/steering", json={"interventions": [PUSH]})
    elsewhere = real.shared.profiles.set_default(SteeringSpec.model_validate({"interventions": [OTHER]}))
    await changed_elsewhere_during(put, hanging, elsewhere, state.default_steering.refresh(real, state.engine))
    assert state.default_steering.by_namespace["shared"].pinned.interventions[0].vector == "other@1"
