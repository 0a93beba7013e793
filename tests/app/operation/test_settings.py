"""Settings: what an operator may choose, and what the server refuses to start with."""

import os
from typing import Any

import pytest
from pydantic import ValidationError

from app.core.settings import MAX_DAYS, SCOPES, Settings
from steering.plan.types import BOUND
from steering.store.pruning import days_ago
from steering.store.records import now


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.org", "127.0.0.1.example.org", ""])
def test_without_a_key_only_a_loopback_address_is_served(host: str) -> None:
    with pytest.raises(ValidationError, match="STEERING_API_KEYS"):
        Settings(host=host)
    assert Settings(host=host, api_keys="sk-0123456789").host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_loopback_needs_no_key(host: str) -> None:
    assert Settings(host=host).loopback


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERING_PORT", "9001")
    monkeypatch.setenv("STEERING_API_KEYS", "sk-0123456789, sk-abcdefghij:read+generate")
    assert Settings().port == 9001
    assert Settings().api_keys == ("sk-0123456789", "sk-abcdefghij:read+generate")
    assert os.environ["STEERING_PORT"] == "9001"


@pytest.mark.parametrize(
    "keys", ["short", "sk-0123456789:everything", "sk 0123456789", "sk-0123456789\n", "ключ-ключ-ключ"]
)
def test_keys_are_tokens_with_known_scopes(keys: str) -> None:
    if keys.endswith("\n"):
        assert Settings(api_keys=keys).api_keys == ("sk-0123456789",)
        return
    with pytest.raises(ValidationError):
        Settings(api_keys=keys)


def test_a_refused_key_is_not_repeated() -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(api_keys="sk-secret-0123456789:everything")
    assert "unknown scopes" in str(refused.value)
    assert "sk-secret" not in str(refused.value)


@pytest.mark.parametrize("field", ["port", "max_n", "drain_seconds", "max_body_bytes"])
def test_limits_are_sensible(field: str) -> None:
    for value in (-1, "x", float("nan"), float("inf")):
        given: dict[str, Any] = {field: value}
        with pytest.raises(ValidationError):
            Settings(**given)


def test_scopes_are_those_of_the_contract() -> None:
    assert set(SCOPES) == {"generate", "read", "write", "admin", "metrics"}


def test_the_bound_of_the_dose_is_that_of_the_library() -> None:
    assert Settings().dose_bound == BOUND


@pytest.mark.parametrize("folders", [("/a/sae", "/b/sae"), ("/",)])
def test_dictionaries_have_different_names(folders: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="names must differ"):
        Settings(dictionaries=folders)


@pytest.mark.parametrize("field", ["output_days", "audit_days", "job_days", "link_days"])
def test_records_are_kept_for_a_century_at_most(field: str) -> None:
    longest: dict[str, Any] = {field: MAX_DAYS}
    assert len(days_ago(getattr(Settings(**longest), field))) == len(now())
    for days in (MAX_DAYS + 1, 400_000, 10_000_000):
        given: dict[str, Any] = {field: days}
        with pytest.raises(ValidationError, match=f"less than or equal to {MAX_DAYS}"):
            Settings(**given)
