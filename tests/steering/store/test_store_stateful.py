"""Whatever is done to them, the database and the plain dictionaries of the reference give the same answers."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from steering.errors import SteeringError
from steering.spec import SteeringSpec
from steering.store import open_store
from steering.store.base import JobRecord, Profile, Store, VectorFilter, VersionPage
from steering.vectors import VectorSummary
from tests.reference_store.store import ReferenceStore
from tests.steering.store.planted import planted

NAMES = st.sampled_from(["a", "a-b", "a.b", "a_b", "b", "Bad"])
TAGS = st.lists(st.sampled_from(["x", "x_y", "xzy", "y"]), max_size=3).map(tuple)
TEXTS = st.text(max_size=6) | st.sampled_from(["", "50% off", "50 off", "under_score", "ÄÖÜ", "äöü", "Straße"])
SEARCHES = TEXTS | st.sampled_from(["%", "_", "a", "STRASSE", "off"])
VERSIONS = st.none() | st.integers(min_value=-1, max_value=5)
METHODS = st.sampled_from(["pca", "probe"])


def steering_of(names: list[str]) -> SteeringSpec:
    """The first acts, the others decide when."""
    if not names:
        return SteeringSpec()
    conditions = [{"vector": f"{name}@1", "above": 0.0} for name in names[1:]]
    when = {"any": conditions} if conditions else None
    return SteeringSpec.model_validate({"interventions": [{"vector": names[0], "when": when}]})


def plainly(answer: Any) -> Any:
    """An answer without its dates, in a form that can be compared."""
    if isinstance(answer, VectorSummary):
        return answer.namespace, answer.id, answer.sha256, answer.description, answer.tags, answer.method
    if isinstance(answer, Profile | JobRecord):
        return replace(answer, created_at="", updated_at="")
    if isinstance(answer, VersionPage):
        return answer.namespace, plainly(answer.versions), answer.next_before, answer.damaged
    if isinstance(answer, tuple):
        return tuple(plainly(part) for part in answer)
    return answer


class TwoStores(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.reference: Store = ReferenceStore()
        self.sqlite = self.runner.run(open_store(f"sqlite:///{Path(self.folder.name) / 'store.sqlite3'}"))

    def teardown(self) -> None:
        self.runner.run(self.sqlite.close())
        self.runner.close()
        self.folder.cleanup()

    def agree(self, call: Callable[[Store], Awaitable[Any]]) -> None:
        """The same answer, or the same error with the same words."""

        async def outcome(store: Store) -> Any:
            try:
                return plainly(await call(store))
            except SteeringError as error:
                return type(error), error.message

        assert self.runner.run(outcome(self.sqlite)) == self.runner.run(outcome(self.reference))

    @rule(name=NAMES.filter(str.islower), seed=st.integers(0, 3), method=METHODS, description=TEXTS, tags=TAGS)
    def put(self, name: str, seed: int, method: str, description: str, tags: tuple[str, ...]) -> None:
        vector = replace(planted(name, seed), method=method, description=description, tags=tags)
        self.agree(lambda store: store.shared.vectors.put(vector))

    @rule(name=NAMES, version=VERSIONS)
    def get(self, name: str, version: int | None) -> None:
        self.agree(lambda store: store.shared.vectors.get(name, version))

    @rule(
        tag=st.none() | st.sampled_from(["x", "x_y", "y", "%"]),
        method=st.none() | METHODS,
        search=st.none() | SEARCHES,
        limit=st.integers(0, 3),
    )
    def find(self, tag: str | None, method: str | None, search: str | None, limit: int) -> None:
        async def walk(store: Store) -> Any:
            seen: list[Any] = []
            cursor = None
            while True:
                page = await store.shared.vectors.find(VectorFilter(tag, method, search), limit, cursor)
                seen.append((page.vectors, cursor := page.next_cursor))
                if cursor is None:
                    return tuple(seen)

        self.agree(walk)

    @rule(name=NAMES, description=st.none() | TEXTS, tags=st.none() | TAGS)
    def describe(self, name: str, description: str | None, tags: tuple[str, ...] | None) -> None:
        self.agree(lambda store: store.shared.vectors.describe(name, description, tags))

    @rule(name=NAMES, force=st.booleans(), version=VERSIONS)
    def delete(self, name: str, force: bool, version: int | None) -> None:
        self.agree(lambda store: store.shared.vectors.delete(name, force, version))

    @rule(name=NAMES, limit=st.integers(0, 3), before=VERSIONS)
    def versions(self, name: str, limit: int, before: int | None) -> None:
        self.agree(lambda store: store.shared.vectors.versions(name, limit, before))

    @rule(name=NAMES, names=st.lists(NAMES, max_size=3), description=TEXTS)
    def put_profile(self, name: str, names: list[str], description: str) -> None:
        self.agree(lambda store: store.shared.profiles.put(Profile(name, steering_of(names), description)))

    @rule(name=NAMES)
    def delete_profile(self, name: str) -> None:
        self.agree(lambda store: store.shared.profiles.delete(name))

    @rule(names=st.none() | st.lists(NAMES, max_size=2))
    def set_default(self, names: list[str] | None) -> None:
        self.agree(lambda store: store.shared.profiles.set_default(None if names is None else steering_of(names)))

    @rule(number=st.integers(0, 4), status=st.sampled_from(["queued", "running", "succeeded", "odd"]), text=TEXTS)
    def put_job(self, number: int, status: str, text: str) -> None:
        job = JobRecord(f"job-{number}", "extract", status, request={"text": text}, result={"n": number / 3})
        self.agree(lambda store: store.shared.jobs.put(job))

    @rule()
    def interrupt(self) -> None:
        self.agree(lambda store: store.servers.renew("server", 1000, {}))

    @invariant()
    def everything_small_is_the_same(self) -> None:
        self.agree(lambda store: store.shared.profiles.all())
        self.agree(lambda store: store.shared.profiles.default())
        self.agree(lambda store: store.shared.jobs.find(3))


TestTwoStores = TwoStores.TestCase
TestTwoStores.settings = settings(max_examples=15, stateful_step_count=25, suppress_health_check=[HealthCheck.too_slow])
