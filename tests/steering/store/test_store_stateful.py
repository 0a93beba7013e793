"""Whatever is done to it, the store answers as a table of what was done says."""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from steering.errors import InvalidRequest, SteeringError, VectorInUse, VectorNotFound
from steering.spec import SteeringSpec
from tests.memory_store import memory_store
from tests.steering.store.planted import planted

NAMES = st.sampled_from(["a", "a-b", "a.b", "a_b", "b"])
TAGS = st.sets(st.sampled_from(["x", "x_y", "xzy", "y"]), max_size=3).map(sorted).map(tuple)
TEXTS = st.sampled_from(["", "50% off", "50 off", "under_score", "ÄÖÜ", "äöü", "Straße"])
SEARCHES = TEXTS | st.sampled_from(["%", "_", "a", "STRASSE", "off"])
VERSIONS = st.none() | st.integers(min_value=1, max_value=5)
METHODS = st.sampled_from(["pca", "probe"])


@dataclass
class Expected:
    """One version as it was stored."""

    seed: int
    method: str
    description: str
    tags: tuple[str, ...]


@dataclass
class Table:
    """What is in the store: versions by name, the last number of each name, and the vectors that profiles name."""

    vectors: dict[str, dict[int, Expected]] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)
    profiles: dict[str, tuple[str, int | None]] = field(default_factory=dict)

    def newest(self, name: str) -> int | None:
        return max(self.vectors.get(name, {}), default=None)

    def needs(self, name: str, version: int | None) -> bool:
        """Whether a profile needs what is deleted."""
        only = len(self.vectors.get(name, {})) == 1
        used = [pinned for base, pinned in self.profiles.values() if base == name]
        return any(version is None or (only if pinned is None else pinned == version) for pinned in used)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = self.runner.run(memory_store())
        self.table = Table()

    def teardown(self) -> None:
        self.runner.run(self.store.close())
        self.runner.close()

    def outcome(self, call: Any) -> Any:
        """Returns what a call returns, or the class of its error."""

        async def awaited() -> Any:
            try:
                return await call
            except SteeringError as error:
                return type(error)

        return self.runner.run(awaited())

    @rule(name=NAMES, seed=st.integers(0, 3), method=METHODS, description=TEXTS, tags=TAGS)
    def put(self, name: str, seed: int, method: str, description: str, tags: tuple[str, ...]) -> None:
        vector = replace(planted(name, seed), method=method, description=description, tags=tags)
        number = self.table.last[name] = self.table.last.get(name, 0) + 1
        assert self.outcome(self.store.shared.vectors.put(vector)).version == number
        self.table.vectors.setdefault(name, {})[number] = Expected(seed, method, description, tags)

    @rule(name=NAMES, version=VERSIONS)
    def get(self, name: str, version: int | None) -> None:
        found = self.outcome(self.store.shared.vectors.get(name, version))
        expected = self.table.vectors.get(name, {}).get(version or self.table.newest(name) or 0)
        if expected is None:
            assert found is VectorNotFound
            return
        assert (found.method, found.description, found.tags) == (expected.method, expected.description, expected.tags)
        assert found.layers[0].scale == expected.seed + 0.5

    @rule(tag=st.none() | st.sampled_from(["x", "x_y", "y"]), method=st.none() | METHODS, search=st.none() | SEARCHES,
          limit=st.integers(0, 3))  # fmt: skip
    def find(self, tag: str | None, method: str | None, search: str | None, limit: int) -> None:
        found, cursor = list[str](), None
        while True:
            vectors = self.store.shared.vectors
            page = self.outcome(vectors.find(limit, cursor, tag=tag, method=method, search=search))
            if limit == 0:
                assert page is InvalidRequest
                return
            found += [one.id for one in page.items]
            if (cursor := page.next_cursor) is None:
                break
        assert found == [
            f"{name}@{number}" for name, number, one in self.newest() if matches(name, one, tag, method, search)
        ]

    def newest(self) -> list[tuple[str, int, Expected]]:
        """The newest version of each name, by name."""
        return [(name, max(of), of[max(of)]) for name, of in sorted(self.table.vectors.items()) if of]

    @rule(name=NAMES, description=st.none() | TEXTS, tags=st.none() | TAGS)
    def describe(self, name: str, description: str | None, tags: tuple[str, ...] | None) -> None:
        found = self.outcome(self.store.shared.vectors.describe(name, description, tags))
        versions = self.table.vectors.get(name, {})
        assert (found is VectorNotFound) == (not versions)
        for one in versions.values():
            one.description = one.description if description is None else description
            one.tags = one.tags if tags is None else tags

    @rule(name=NAMES, force=st.booleans(), version=VERSIONS)
    def delete(self, name: str, force: bool, version: int | None) -> None:
        found = self.outcome(self.store.shared.vectors.delete(name, force, version))
        versions = self.table.vectors.get(name, {})
        if not force and self.table.needs(name, version):
            assert found is VectorInUse
        elif not versions or (version is not None and version not in versions):
            assert found is VectorNotFound
        else:
            assert found is None
            self.table.vectors[name] = {} if version is None else {n: v for n, v in versions.items() if n != version}

    @rule(name=NAMES, vector=NAMES, version=VERSIONS)
    def put_profile(self, name: str, vector: str, version: int | None) -> None:
        written = vector if version is None else f"{vector}@{version}"
        steering = SteeringSpec.model_validate({"interventions": [{"vector": written}]})
        found = self.outcome(self.store.shared.profiles.put(name, steering))
        versions = self.table.vectors.get(vector, {})
        if not versions or (version is not None and version not in versions):
            assert found is VectorNotFound
        else:
            self.table.profiles[name] = (vector, version)

    @rule(name=NAMES)
    def delete_profile(self, name: str) -> None:
        self.outcome(self.store.shared.profiles.delete(name))
        self.table.profiles.pop(name, None)

    @invariant()
    def names_are_those_that_have_a_version(self) -> None:
        names = self.runner.run(self.store.shared.vectors.names())
        assert list(names) == [name for name, _, _ in self.newest()]
        assert [one.name for one in self.runner.run(self.store.shared.profiles.names())] == sorted(self.table.profiles)


def matches(name: str, one: Expected, tag: str | None, method: str | None, search: str | None) -> bool:
    text = None if search is None else search.casefold()
    return (
        (tag is None or tag in one.tags)
        and (method is None or method == one.method)
        and (text is None or text in name or text in one.description.casefold())
    )


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=15, stateful_step_count=25, suppress_health_check=[HealthCheck.too_slow])
