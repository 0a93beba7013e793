"""Every query of the dashboard, the alert rules and the autoscaler's adapter parses, and is about series of a running server."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import promql_parser
import pytest
import yaml
from promql_parser import Expr, MatrixSelector, VectorSelector

import app.core.errors  # noqa: F401 - defines more errors
from steering.errors import SteeringError
from tests.app.running import running

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
PANELS: list[dict[str, Any]] = [
    panel
    for panel in json.loads((DEPLOY / "grafana" / "dashboards" / "steering.json").read_text())["panels"]
    if panel["type"] != "row"
]
ADDED = {"job", "instance", "namespace", "pod"}
"""Labels that Prometheus adds to every series."""
ENDINGS = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
KEY = "a-key-for-metrics"


@dataclass(frozen=True)
class Series:
    """What a server exports. labels: by series, of those that have samples."""

    names: set[str]
    labels: dict[str, set[str]]


@pytest.fixture(scope="module")
def exported() -> Series:
    """The series of a running server that has answered, refused and failed."""
    with running(api_keys=KEY) as url, httpx2.Client(base_url=url) as client:
        client.get("/v1/models")
        client.headers["authorization"] = f"Bearer {KEY}"
        client.post("/v1/generate", json={"prompt": "a", "max_tokens": 3, "stream": True})
        text = client.get("/metrics").text
    names = {
        name + ending
        for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE)
        for ending in ENDINGS.get(kind, ("",))
    }
    samples = re.findall(r"^(\w+)\{(.*)\} \S+$", text, re.MULTILINE)
    labels: dict[str, set[str]] = {}
    for name, pairs in samples:
        labels.setdefault(name, set()).update(re.findall(r'(\w+)="', pairs))
    return Series(names | {"up"}, labels)


def selectors(query: Expr) -> Iterator[VectorSelector]:
    """The series that a query reads."""
    if isinstance(query, VectorSelector):
        yield query
    elif isinstance(query, MatrixSelector):
        yield query.vector_selector
    else:
        parts = [getattr(query, name, None) for name in ("lhs", "rhs", "expr", "args")]
        for part in parts:
            for child in part if isinstance(part, list) else [part]:
                if isinstance(child, Expr):
                    yield from selectors(child)


def check(text: str, exported: Series) -> None:
    """Asserts that a query parses and reads series that exist, by labels that they have."""
    found = list(selectors(promql_parser.parse(text)))
    assert found, text
    for selector in found:
        assert selector.name in exported.names, f"{selector.name} in {text}"
        if (labels := exported.labels.get(selector.name)) is not None:
            assert {matcher.name for matcher in selector.matchers.matchers} <= labels | ADDED, text


def codes() -> set[str]:
    """The codes of all errors."""
    kinds, found = [SteeringError], set[str]()
    while kinds:
        kind = kinds.pop()
        found.add(kind.code)
        kinds += kind.__subclasses__()
    return found


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_is_about_series_that_exist_and_has_a_paragraph(rule: dict[str, Any], exported: Series) -> None:
    check(rule["expr"], exported)
    assert set(re.findall(r'code="(\w+)"', rule["expr"])) <= codes()
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
    assert rule["annotations"]["summary"]
    assert f"\n### {rule['alert']}\n" in (REPOSITORY / "docs" / "monitoring.md").read_text()


def test_no_paragraph_is_about_an_alert_that_is_gone() -> None:
    described = re.findall(r"^### (Steering\w+)$", (REPOSITORY / "docs" / "monitoring.md").read_text(), re.MULTILINE)
    assert described == [rule["alert"] for rule in ALERTS]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_is_about_series_that_exist(panel: dict[str, Any], exported: Series) -> None:
    for target in panel["targets"]:
        check(target["expr"].replace("$__rate_interval", "1m"), exported)


def test_the_dashboard_has_panels_for_monitors_and_a_variable_of_a_series_that_exists(exported: Series) -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "steering.json").read_text())
    assert len(PANELS) >= 24
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    asked = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
    shown = set(re.findall(r"steering_monitor_\w+", asked))
    assert shown == {
        f"steering_monitor_{name}" for name in ("score_bucket", "scores_total", "raised_total", "answers_total")
    }
    (variable,) = dashboard["templating"]["list"]
    assert set(re.findall(r"steering_\w+", variable["definition"])) <= exported.names


def test_the_autoscaler_reads_a_metric_that_the_adapter_makes_of_series_that_exist(exported: Series) -> None:
    autoscaler = yaml.safe_load((DEPLOY / "kubernetes" / "autoscaling.yaml").read_text())
    (rule,) = yaml.safe_load((DEPLOY / "kubernetes" / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert [one["pods"]["metric"]["name"] for one in autoscaler["spec"]["metrics"]] == [rule["name"]["as"]]
    check(rule["seriesQuery"], exported)
    check(rule["metricsQuery"].replace("<<.LabelMatchers>>", 'pod="a"').replace("<<.GroupBy>>", "pod"), exported)


def test_prometheus_reads_the_rules_that_compose_mounts_beside_its_configuration() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    compose = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
    mounted = [volume.split(":")[0] for volume in compose["services"]["prometheus"]["volumes"]]
    for name in config["rule_files"]:
        assert f"./deploy/prometheus/{name}" in mounted
    assert {group["job_name"] for group in config["scrape_configs"]} == {"steering"}, "the alerts name it"
