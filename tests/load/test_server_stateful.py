"""Whatever clients do in whatever order, a server on a real socket answers as a small model of it says."""

import time
from contextlib import ExitStack
from typing import Any

import httpx2
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.app.running import running
from tests.fakes import ScriptedEngine

ADMIN = "sk-of-the-state-machine"
NAMES = st.sampled_from(["mood", "tone"])
PROFILES = st.sampled_from(["one", "two"])
SHORT = {"prompt": "a", "max_tokens": 2}


class ServerMachine(RuleBasedStateMachine):
    """versions: of each vector. profiles: the vector that each names. default, mandatory: one version, or none."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.versions: dict[str, list[int]] = {}
        self.profiles: dict[str, str] = {}
        self.keys: dict[str, str] = {}
        self.default: str | None = None
        self.mandatory: str | None = None

    @initialize()
    def start(self) -> None:
        self.engine = ScriptedEngine(length=50)
        url = self.stack.enter_context(running(self.engine, api_keys=ADMIN))
        headers = {"authorization": f"Bearer {ADMIN}"}
        self.client = self.stack.enter_context(httpx2.Client(base_url=url, headers=headers, timeout=30))

    def teardown(self) -> None:
        self.stack.close()

    def ask(self, method: str, path: str, expected: int, body: Any = None, key: str = ADMIN) -> Any:
        """Sends a request and checks its status."""
        answer = self.client.request(method, path, json=body, headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == expected, (method, path, body, answer.text)
        return answer.json() if answer.content else None

    def latest(self, name: str) -> str | None:
        """`name@version` of the newest version."""
        return f"{name}@{max(self.versions[name])}" if self.versions.get(name) else None

    def needed(self, name: str, version: int | None) -> bool:
        """Whether a profile, the default or the policy needs a vector, or one version of it."""
        pinned = [used for used in (self.default, self.mandatory) if used]
        if version is None:
            return name in self.profiles.values() or any(used.startswith(f"{name}@") for used in pinned)
        return f"{name}@{version}" in pinned or (self.versions[name] == [version] and name in self.profiles.values())

    @rule(name=NAMES, number=st.integers(1, 3))
    def register(self, name: str, number: int) -> None:
        body = {"name": name, "directions": {"1": [float(number), *[1.0] * 7]}}
        version = self.ask("POST", "/v1/vectors", 201, body)["version"]
        known = self.versions.setdefault(name, [])
        assert version > max(known, default=0)
        known.append(version)

    @rule(name=NAMES, data=st.data())
    def delete(self, name: str, data: st.DataObject) -> None:
        known = self.versions.get(name, [])
        if not known:
            self.ask("DELETE", f"/v1/vectors/{name}", 404)
            return
        version = data.draw(st.none() | st.sampled_from(known))
        query = "" if version is None else f"?version={version}"
        needed = self.needed(name, version)
        self.ask("DELETE", f"/v1/vectors/{name}{query}", 409 if needed else 204)
        if not needed:
            self.versions[name] = [one for one in known if version not in (None, one)]

    @rule(profile=PROFILES, name=NAMES)
    def put_profile(self, profile: str, name: str) -> None:
        body = {"interventions": [{"vector": name, "strength": 0.1}]}
        found = self.latest(name) is not None
        self.ask("PUT", f"/v1/profiles/{profile}", 200 if found else 404, body)
        if found:
            self.profiles[profile] = name

    @rule(profile=PROFILES)
    def delete_profile(self, profile: str) -> None:
        self.ask("DELETE", f"/v1/profiles/{profile}", 204 if self.profiles.pop(profile, None) else 404)

    @rule(name=st.none() | NAMES)
    def set_default(self, name: str | None) -> None:
        if name is None:
            self.ask("DELETE", "/v1/steering", 204)
            self.default = None
            return
        found = self.latest(name)
        body = {"interventions": [{"vector": name, "strength": 0.1}]}
        self.ask("PUT", "/v1/steering", 200 if found else 404, body)
        self.default = found or self.default

    @rule(name=st.none() | NAMES)
    def set_policy(self, name: str | None) -> None:
        if name is None:
            self.ask("DELETE", "/v1/policy", 204)
            self.mandatory = None
            return
        found = self.latest(name)
        body = {"mandatory": [{"vector": name, "strength": 0.2}]}
        self.ask("PUT", "/v1/policy", 200 if found else 404, body)
        self.mandatory = found or self.mandatory

    @rule()
    def create_key(self) -> None:
        made = self.ask("POST", "/v1/keys", 201, {"name": "a", "scopes": ["generate"]})
        self.keys[made["id"]] = made["key"]

    @precondition(lambda self: self.keys)
    @rule()
    def revoke_key(self) -> None:
        name, key = self.keys.popitem()
        self.ask("POST", "/v1/generate", 200, SHORT, key)
        self.ask("POST", "/v1/vectors", 403, {}, key)
        self.ask("DELETE", f"/v1/keys/{name}", 204)
        self.ask("POST", "/v1/generate", 401, SHORT, key)

    @rule(name=st.none() | NAMES, profile=st.none() | PROFILES)
    def generate(self, name: str | None, profile: str | None) -> None:
        if profile is not None:
            named = self.profiles.get(profile)
            wanted = named and self.latest(named)
            body = {**SHORT, "steering": {"profile": profile}}
        elif name is not None:
            wanted = self.latest(name)
            body = {**SHORT, "steering": [{"vector": name, "strength": 0.1}]}
        else:
            wanted, body = self.default or "", SHORT
        if wanted is None:
            self.ask("POST", "/v1/generate", 404, body)
            return
        steering = self.ask("POST", "/v1/generate", 200, body)["steering"]
        assert [one["vector"] for one in steering["applied"]] == ([wanted] if wanted else [])
        assert [one["vector"] for one in steering.get("mandatory") or []] == (
            [self.mandatory] if self.mandatory else []
        )

    @rule()
    def hang_up(self) -> None:
        body = {"prompt": "a", "max_tokens": 50, "stream": True}
        with self.client.stream("POST", "/v1/generate", json=body) as answer:
            assert answer.status_code == 200
            next(answer.iter_text())

    @invariant()
    def what_is_listed_is_what_was_made(self) -> None:
        listed = {one["id"] for one in self.ask("GET", "/v1/vectors", 200)["data"]}
        assert listed == {self.latest(name) for name, known in self.versions.items() if known}
        assert {one["name"] for one in self.ask("GET", "/v1/profiles", 200)["data"]} == set(self.profiles)
        models = {one["id"] for one in self.ask("GET", "/v1/models", 200)["data"]}
        assert models == {"scripted", *(f"scripted@{profile}" for profile in self.profiles)}
        assert {one["id"] for one in self.ask("GET", "/v1/keys", 200)["data"]} == set(self.keys)

    @invariant()
    def no_row_is_left(self) -> None:
        until = time.monotonic() + 20
        while self.engine.stats().running:
            assert time.monotonic() < until
            time.sleep(0.005)


TestServerMachine = ServerMachine.TestCase
TestServerMachine.settings = settings(
    max_examples=6, stateful_step_count=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
