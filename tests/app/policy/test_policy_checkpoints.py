"""Finished parts of a job are found under the policy under which they were made, and in `shared` by the key that made them."""

from app.api.jobs import StoredCheckpoints
from app.api.policy import ActivePolicy, Policy
from app.core.settings import Settings
from steering.plan.resolve import RecentPlans
from steering.schemas.governance import PolicySpec
from steering.store.database import UNLIMITED, Writer
from steering.store.store import Store


async def test_parts_belong_to_the_policy_under_which_they_were_made(memory: Store) -> None:
    policy = Policy(Settings(), RecentPlans())
    strict = ActivePolicy(PolicySpec.model_validate({"limits": {"max_relative_dose": 0.1}}))
    kept = StoredCheckpoints(memory, "shared", UNLIMITED, policy)
    await policy.put(ActivePolicy(), memory)
    assert await kept.load("part") is None
    await kept.save("part", "found")
    await policy.put(strict, memory)
    assert await kept.load("part") is None
    await policy.put(ActivePolicy(), memory)
    assert await kept.load("part") == "found"
    assert await StoredCheckpoints(memory, "team", UNLIMITED, policy).load("part") is None
    assert await kept.load("other") is None
    await policy.put(strict, memory)
    await kept.save("other", "made under both")
    assert await kept.load("other") is None
    await policy.put(ActivePolicy(), memory)
    assert await kept.load("other") is None


async def test_no_key_of_shared_learns_what_another_has_evaluated(memory: Store) -> None:
    policy = Policy(Settings(), RecentPlans())
    await policy.put(ActivePolicy(), memory)

    async def found_by_another(namespace: str) -> str | None:
        mine, other = (StoredCheckpoints(memory, namespace, Writer(key), policy) for key in ("key-a", "key-b"))
        assert await mine.load("part") is None
        await mine.save("part", "found")
        assert await mine.load("part") == "found"
        return await other.load("part")

    assert await found_by_another("shared") is None
    assert await found_by_another("team") == "found", "its keys see each other's jobs"
