"""The files in deploy/ match their schemas, and the settings, routes, metrics and containers that they name."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.core.settings import Settings
from steering import __version__
from tests.app.document import DOCUMENT

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
BIN = Path(sys.executable).parent
MANIFESTS = ("steering.yaml", "autoscaling.yaml", "network.yaml")
KUBERNETES = "1.34"
COMPOSE: dict[str, Any] = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
SETTINGS = {f"STEERING_{name.upper()}" for name in Settings.model_fields}
PORT = 8000


def resources() -> dict[str, dict[str, Any]]:
    """The Kubernetes resources by kind."""
    documents = [one for name in MANIFESTS for one in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text())]
    return {one["kind"]: one for one in documents}


def container() -> dict[str, Any]:
    found: list[dict[str, Any]] = resources()["Deployment"]["spec"]["template"]["spec"]["containers"]
    (only,) = found
    return only


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_manifests_match_the_schemas_of_kubernetes(name: str) -> None:
    command: list[str | Path] = [
        BIN / "kubernetes-validate",
        "-k",
        KUBERNETES,
        "--strict",
        DEPLOY / "kubernetes" / name,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = DEPLOY / "kubernetes" / "prometheus-adapter.yaml"  # no resource: the check would fail where it did nothing
    assert subprocess.run([*command[:-1], wrong], capture_output=True, check=False).returncode != 0


def test_the_settings_of_the_manifests_exist_and_are_accepted() -> None:
    given = resources()["ConfigMap"]["data"]
    assert given.keys() <= SETTINGS
    settings = Settings(**{name.removeprefix("STEERING_").lower(): value for name, value in given.items()})
    spec = resources()["Deployment"]["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] > settings.drain_delay_seconds + settings.drain_seconds
    secrets = re.findall(r"--from-literal=(\w+)=", (DEPLOY / "kubernetes" / "steering.yaml").read_text())
    assert secrets
    assert set(secrets) <= SETTINGS
    assert {next(iter(one.values()))["name"] for one in container()["envFrom"]} == {"steering"}


def test_no_link_to_a_service_sets_a_setting_of_the_pods() -> None:
    """Kubernetes sets STEERING_PORT for a service of the name `steering`."""
    assert f"{resources()['Service']['metadata']['name'].upper()}_PORT" in SETTINGS
    assert resources()["Deployment"]["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_the_probes_ask_routes_that_exist_on_the_port_of_the_image() -> None:
    paths = DOCUMENT["paths"]
    ports = {one["name"]: one["containerPort"] for one in container()["ports"]}
    assert ports == {"http": PORT}
    for probe, path in (
        ("startupProbe", "/health/ready"),
        ("readinessProbe", "/health/ready"),
        ("livenessProbe", "/health/live"),
    ):
        get = container()[probe]["httpGet"]
        assert (get["path"], get["port"]) == (path, "http")
        assert path in paths
    assert resources()["Service"]["spec"]["ports"][0]["targetPort"] == "http"
    assert f"STEERING_PORT={PORT}" in (REPOSITORY / "Dockerfile").read_text()


def test_the_network_policy_lets_the_service_and_the_database_through() -> None:
    spec = resources()["NetworkPolicy"]["spec"]
    assert spec["podSelector"] == resources()["Deployment"]["spec"]["selector"]
    (rule,) = spec["ingress"]
    assert [one["port"] for one in rule["ports"]] == [one["name"] for one in container()["ports"]]
    assert {one["port"] for rule in spec["egress"] for one in rule["ports"]} >= {53, 443, 5432}


def test_prometheus_finds_the_service_with_a_key_and_names_the_job_as_the_alerts_do() -> None:
    monitor = yaml.safe_load((DEPLOY / "kubernetes" / "monitoring.yaml").read_text())
    service = resources()["Service"]
    assert monitor["spec"]["selector"]["matchLabels"] == service["metadata"]["labels"]
    assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "steering"
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in [one["name"] for one in service["spec"]["ports"]]
    assert endpoint["path"] in DOCUMENT["paths"]
    assert endpoint["authorization"]["credentials"] == {"name": "steering-metrics", "key": "key"}
    annotations = resources()["Deployment"]["spec"]["template"]["metadata"].get("annotations", {})
    assert not any(name.startswith("prometheus.io") for name in annotations), "they cannot carry the key"


def test_the_image_has_a_tag_and_the_pods_share_what_they_compile() -> None:
    assert re.fullmatch(r"steering-server:\d+\.\d+\.\d+", container()["image"])
    assert container()["image"].endswith(f":{__version__}")
    claim = resources()["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    volumes = {one["name"]: one for one in resources()["Deployment"]["spec"]["template"]["spec"]["volumes"]}
    assert volumes["cache"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_the_autoscaler_scales_the_deployment() -> None:
    target = resources()["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", resources()["Deployment"]["metadata"]["name"])


def test_the_pods_are_confined_and_found_by_their_service() -> None:
    spec = resources()["Deployment"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"] == labels
    assert resources()["Service"]["spec"]["selector"] == labels
    assert resources()["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    pod = spec["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert f"USER {pod['securityContext']['runAsUser']}:" in (REPOSITORY / "Dockerfile").read_text()
    assert pod["automountServiceAccountToken"] is False
    own = container()["securityContext"]
    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    volume = re.search(r"^VOLUME (\S+)$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)
    assert volume is not None
    assert {one["mountPath"] for one in container()["volumeMounts"]} == {volume.group(1), "/tmp"}
    assert {one["name"] for one in container()["volumeMounts"]} == {one["name"] for one in pod["volumes"]}


def test_a_rolling_update_takes_no_server_away_before_another_is_ready() -> None:
    spec = resources()["Deployment"]["spec"]
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert "replicas" not in spec, "an update would undo what the autoscaler decided"
    assert resources()["HorizontalPodAutoscaler"]["spec"]["minReplicas"] >= 2


def test_prometheus_scrapes_servers_of_the_compose_file_that_answer_to_their_names() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (scrape,) = config["scrape_configs"]
    targets = scrape["static_configs"][0]["targets"]
    services = {name for name, one in COMPOSE["services"].items() if "build" in one}
    assert {target.partition(":")[0] for target in targets} == services
    assert {target.partition(":")[2] for target in targets} == {str(PORT)}
    for name in services:
        allowed = COMPOSE["services"][name]["environment"]["STEERING_ALLOWED_HOSTS"].split(",")
        assert services <= set(allowed)
    secret = scrape["authorization"]["credentials_file"].removeprefix("/run/secrets/")
    assert secret in COMPOSE["secrets"]
    assert COMPOSE["services"]["prometheus"]["secrets"] == [secret]


def test_what_the_services_mount_exists_where_their_files_expect_it() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            source, target = volume.split(":")[:2]
            if source.startswith("."):
                assert (REPOSITORY / source).exists(), source
                assert volume.endswith(":ro")
            else:
                assert source in COMPOSE["volumes"]
            assert target.startswith("/")
    provider = yaml.safe_load((DEPLOY / "grafana" / "provisioning" / "dashboards" / "steering.yml").read_text())
    path = provider["providers"][0]["options"]["path"]
    assert f"./deploy/grafana/dashboards:{path}:ro" in COMPOSE["services"]["grafana"]["volumes"]
    source = yaml.safe_load((DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    dashboard = (DEPLOY / "grafana" / "dashboards" / "steering.json").read_text()
    assert set(re.findall(r'"uid": "(\w+)"', dashboard)) == {source["datasources"][0]["uid"]}


def test_the_cluster_is_two_servers_that_only_the_proxy_publishes() -> None:
    services = {name: one for name, one in COMPOSE["services"].items() if "cluster" in one.get("profiles", [])}
    assert services.keys() == {"server-1", "server-2", "proxy", "postgres"}
    assert [name for name, one in services.items() if "ports" in one] == ["proxy"]
    assert services["proxy"]["environment"]["SERVERS"] == f"server-1:{PORT} server-2:{PORT}"


def test_no_secret_lies_in_a_file() -> None:
    for file in DEPLOY.rglob("*.y*ml"):
        for name, value in re.findall(r"(\w*(?:KEY|TOKEN|SECRET|PASSWORD)\w*)\s*[=:]\s*(\S+)", file.read_text()):
            assert value.startswith(("${", "<")), f"{file.name}: {name} has a value"
