"""Health checks as they are run: the script of the images and the probes of Kubernetes ask a server that lists its host names."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import yaml

from tests.app.running import running
from tests.forked_process import ForkedProcess

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "deploy" / "image" / "health.sh"
KEY = "a-key-of-this-test"
LISTED: dict[str, Any] = {"host": "0.0.0.0", "api_keys": KEY, "allowed_hosts": "steering.example.com"}
POD = "10.42.0.17:8000"


def health(port: int) -> int:
    """The exit code of the images' health check."""
    environment = {**os.environ, "STEERING_PORT": str(port)}
    done = subprocess.run(["bash", SCRIPT], env=environment, capture_output=True, timeout=30, check=False)
    return done.returncode


@contextmanager
def started(folder: Path, **options: Any) -> Iterator[int]:
    """A server process over a scripted engine on every address of the machine; yields its port."""
    process = ForkedProcess("tests.app.serve_scripted", {"settings": LISTED, **options}, log=folder / "server.log")
    try:
        yield urlsplit(process.address()).port or 0
    finally:
        process.kill()
        process.wait()


def test_the_health_check_of_the_images_follows_the_port_and_passes_where_host_names_are_listed() -> None:
    """service D, Dockerfile (5)"""
    with running(**LISTED) as url:
        port = urlsplit(url).port
        assert port
        assert health(port) == 0
    assert health(port) != 0, "nothing listens any more"


def test_the_health_check_of_the_images_fails_while_the_model_is_loading(tmp_path: Path) -> None:
    with started(tmp_path, load_seconds=600) as port:
        assert httpx2.get(f"http://127.0.0.1:{port}/health/live").status_code == 200
        assert health(port) != 0


def test_the_dockerfile_runs_the_script() -> None:
    text = (REPOSITORY / "Dockerfile").read_text()
    assert "COPY deploy/image/health.sh /usr/local/lib/steering/health.sh\n" in text
    assert 'CMD ["bash", "/usr/local/lib/steering/health.sh"]\n' in text


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_the_probes_of_kubernetes_pass_where_host_names_are_listed(probe: str) -> None:
    """service D2: kubelet sends the address of the pod as Host. The settings are those of the ConfigMap."""
    documents = list(yaml.safe_load_all((REPOSITORY / "deploy" / "kubernetes" / "steering.yaml").read_text()))
    (configuration,) = [one["data"] for one in documents if one["kind"] == "ConfigMap"]
    (deployment,) = [one for one in documents if one["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    settings = {name.removeprefix("STEERING_").lower(): value for name, value in configuration.items()}
    with running(**{**settings, **LISTED}) as url:
        path = container[probe]["httpGet"]["path"]
        assert httpx2.get(url + path, headers={"host": POD}).status_code == 200
        refused = httpx2.get(f"{url}/v1/models", headers={"host": POD, "authorization": f"Bearer {KEY}"})
        assert refused.json()["error"]["code"] == "host_refused"
