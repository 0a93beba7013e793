"""Dockerfile and docker-compose.yml agree with each other, with the Makefile, the settings, the routes and pyproject.toml."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.core.settings import Settings
from tools import lock_image

BIN = Path(sys.executable).parent
REPOSITORY = Path(__file__).resolve().parents[2]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = {name: one for name, one in COMPOSE["services"].items() if "build" in one}
"""The services of this project; the others are images of other projects."""
INSTRUCTIONS = [
    line.strip() for line in DOCKERFILE.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")
]
STAGES = [match.groups() for match in re.finditer(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)]
TARGETS = [name for _, name in STAGES]
SETTINGS = {f"STEERING_{name.upper()}": field for name, field in Settings.model_fields.items()}


def stage(name: str) -> list[str]:
    """The instructions of a stage and of all it is built from."""
    parts = re.split(r"^FROM (\S+) AS (\S+)$", DOCKERFILE.replace("\\\n", " "), flags=re.MULTILINE)
    bodies = {parts[i + 1]: (parts[i], parts[i + 2]) for i in range(1, len(parts), 3)}
    found: list[str] = []
    while name in bodies:
        name, body = bodies[name]
        found = [line for line in body.strip().splitlines() if line and not line.startswith("#")] + found
    return found


def environment_of(name: str) -> dict[str, str]:
    lines = " ".join(line.removeprefix("ENV ") for line in stage(name) if line.startswith("ENV "))
    return dict(re.findall(r"([A-Z_]+)=(\S+)", lines))


def test_the_default_target_is_the_processor_image_and_cuda_is_another() -> None:
    assert TARGETS[-1] == "cpu"
    assert "cuda" in TARGETS


def test_every_stage_is_built_from_a_stage_above_it_or_from_the_python_or_the_node_image() -> None:
    images = {"${PYTHON_IMAGE}", "${NODE_IMAGE}"}
    for number, (source, name) in enumerate(STAGES):
        assert source in TARGETS[:number] or source in images, name
    for source in re.findall(r"COPY --from=(\S+)", DOCKERFILE):
        assert source in TARGETS


def test_the_python_of_the_image_is_one_that_pyproject_allows() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    least = re.fullmatch(r">=(\d+)\.(\d+)", project["requires-python"])
    version = re.search(r"^ARG PYTHON_IMAGE=python:(\d+)\.(\d+)-slim-trixie$", DOCKERFILE, re.MULTILINE)
    assert least is not None
    assert version is not None
    assert tuple(map(int, version.groups())) >= tuple(map(int, least.groups()))
    assert ".".join(version.groups()) == lock_image.PYTHON


def test_what_is_copied_from_the_context_exists_and_is_not_ignored() -> None:
    allowed = (REPOSITORY / ".dockerignore").read_text().splitlines()
    for line in INSTRUCTIONS:
        if line.startswith("COPY ") and "--from" not in line:
            for name in line.split()[1:-1]:
                assert (REPOSITORY / name).exists()
                assert {f"!{name}", f"!{name.rpartition('/')[0]}", f"!{name.split('/')[0]}"} & set(allowed)


def test_the_code_is_copied_after_the_libraries_are_installed() -> None:
    """service D: a change of the code does not install torch again."""
    for target in ("cpu", "cuda", "vllm"):
        assert not [line for line in stage(f"libraries-{target}") if re.match(r"COPY (app|steering|\.)", line)]
        last = [line for line in stage(target) if line.startswith(("COPY --from", "RUN /opt"))][-3:]
        assert [line.split()[1] for line in last[:2]] == [f"--from=libraries-{target}", "--from=wheel"]


def locked(name: str) -> dict[str, str]:
    """The versions of a file of deploy/image by name."""
    text = (REPOSITORY / "deploy" / "image" / name).read_text()
    return dict(re.findall(r"^([\w.-]+)(?:\[\S+\])?==(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("files", "added"),
    [
        (("requirements.txt", "requirements-cpu.txt"), ()),
        (("requirements.txt", "requirements-cuda.txt"), ()),
        (("requirements-vllm.txt",), lock_image.VLLM),
    ],
)
def test_the_locked_versions_are_those_that_pyproject_allows(files: tuple[str, ...], added: tuple[str, ...]) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    versions = {canonicalize_name(name): version for file in files for name, version in locked(file).items()}
    extras = [one for extra in lock_image.EXTRAS for one in project["optional-dependencies"][extra]]
    for requirement in map(Requirement, [*project["dependencies"], *extras, *added, lock_image.MODEL]):
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}, locked: {version}; run `make lock`"


def test_every_locked_version_has_hashes_but_torch_of_an_index_of_processor_builds() -> None:
    folder = REPOSITORY / "deploy" / "image"
    for path in folder.glob("requirements*.txt"):
        entries = [entry for entry in re.split(r"\n(?=\S)", path.read_text().strip()) if not entry.startswith("#")]
        hashed = [entry for entry in entries if "--hash=sha256:" in entry]
        assert "://" not in path.read_text(), "it names no index"
        if path.name == "requirements-cpu.txt":
            (only,) = entries
            assert only == f"torch=={locked('requirements-cuda.txt')['torch']}"
        else:
            assert entries == hashed
            assert f"--require-hashes --requirement {path.name}" in DOCKERFILE


def test_a_build_needs_the_cpu_index_of_torch_by_default() -> None:
    (default,) = re.findall(r"^ARG TORCH_INDEX=(.*)$", DOCKERFILE, re.MULTILINE)
    assert default.endswith("/cpu")
    for service in SERVICES.values():
        if service["build"]["target"] == "cpu":
            assert service["build"]["args"]["TORCH_INDEX"] == f"${{TORCH_INDEX-{default}}}"


def test_the_playground_is_built_in_a_stage_of_its_own_and_installed_with_the_server() -> None:
    copied = re.search(r"^COPY --from=web \S+/(\S+/static) (\S+)$", "\n".join(stage("wheel")), re.MULTILINE)
    assert copied is not None
    assert copied.group(1) == copied.group(2) == "app/static"
    wheel = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert f"{copied.group(2)}/**" in wheel["artifacts"]


@pytest.mark.parametrize("target", ["cpu", "cuda", "vllm"])
def test_the_image_does_not_run_as_superuser(target: str) -> None:
    users = [line.split()[1] for line in stage(target) if line.startswith("USER ")]
    assert users
    assert users[-1].split(":")[0] not in {"0", "root"}
    assert users[-1].split(":")[0].isdigit(), "a number lets an orchestrator check that it is not root"


@pytest.mark.parametrize("target", ["cpu", "cuda", "vllm"])
def test_the_environment_of_the_image_is_made_of_settings_that_exist_and_are_accepted(target: str) -> None:
    given = {name: value for name, value in environment_of(target).items() if name.startswith("STEERING_")}
    assert given.keys() <= SETTINGS.keys()
    values: dict[str, Any] = {name.removeprefix("STEERING_").lower(): value for name, value in given.items()}
    settings = Settings(**values, api_keys=("key-12345678",))
    assert str(settings.port) in " ".join(line for line in stage(target) if line.startswith("EXPOSE"))


def test_without_a_key_the_image_refuses_to_listen_to_others() -> None:
    with pytest.raises(ValueError, match="STEERING_API_KEYS"):
        Settings(host=environment_of("cpu")["STEERING_HOST"])


def test_database_and_models_lie_in_the_volume() -> None:
    volume = re.search(r"^VOLUME (\S+)$", DOCKERFILE, re.MULTILINE)
    assert volume is not None
    given = environment_of("cpu")
    for name in ("STEERING_DATABASE", "STEERING_CACHE_DIR", "HF_HOME"):
        assert volume.group(1) in given[name]
    for service in SERVICES.values():
        assert service["volumes"] == [f"steering:{volume.group(1)}"]
    assert "steering" in COMPOSE["volumes"]


def test_the_command_of_the_image_is_the_one_that_is_installed() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    command = re.search(r'^CMD \["(\w+)", "serve"\]$', DOCKERFILE, re.MULTILINE)
    assert command is not None
    assert command.group(1) in project["scripts"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_builds_a_target_that_exists_with_arguments_that_it_takes(name: str) -> None:
    build = SERVICES[name]["build"]
    assert build["target"] in TARGETS
    for argument in build.get("args", {}):
        assert re.search(rf"^ARG {argument}=", DOCKERFILE, re.MULTILINE)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_published_on_this_machine_alone_and_asks_for_a_key(name: str) -> None:
    service = SERVICES[name]
    port = environment_of("cpu")["STEERING_PORT"]
    assert ("ports" in service) == (name not in ("server-1", "server-2")), "the proxy publishes these"
    assert all(re.fullmatch(rf"127\.0\.0\.1:\S+:{port}", published) for published in service.get("ports", []))
    assert "STEERING_API_KEYS" not in service["environment"], "the environment of a container is not secret"
    assert service["environment"]["STEERING_API_KEYS_FILE"] == f"/run/secrets/{service['secrets'][0]}"
    assert COMPOSE["secrets"][service["secrets"][0]]["file"] == "${STEERING_API_KEYS_FILE:-./steering.keys}"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")
    assert "network_mode" not in service


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_sets_settings_that_exist_and_gets_time_to_drain(name: str) -> None:
    given = SERVICES[name]["environment"]
    assert given.keys() <= SETTINGS.keys() | {"OMP_NUM_THREADS"}
    assert given["OMP_NUM_THREADS"] is None, "the value of the shell is passed on"
    grace = int(SERVICES[name]["stop_grace_period"].removesuffix("s"))
    assert grace > float(given["STEERING_DRAIN_SECONDS"]) + float(given["STEERING_DRAIN_DELAY_SECONDS"])


@pytest.mark.parametrize("file", ["requirements-cuda.txt", "requirements-vllm.txt"])
def test_the_documentation_names_the_cuda_of_the_images(file: str) -> None:
    release = ".".join(locked(file)["nvidia-cuda-runtime"].split(".")[:2])
    assert f"carry CUDA {release}:" in (REPOSITORY / "docs" / "deploying.md").read_text()


@pytest.mark.parametrize(("profile", "target"), [("gpu", "cuda"), ("vllm", "vllm")])
def test_the_services_with_a_gpu_are_profiles_of_their_own(profile: str, target: str) -> None:
    service = SERVICES[f"server-{profile}"]
    assert (service["profiles"], service["build"]["target"]) == ([profile], target)
    devices = service["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]
    assert "profiles" not in SERVICES["server"]


@pytest.mark.parametrize("service", COMPOSE["services"].values(), ids=list(COMPOSE["services"]))
def test_a_service_is_bounded_in_memory_and_log(service: dict[str, Any]) -> None:
    """service D: json-file keeps everything by default."""
    assert service["mem_limit"]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_for_a_database_that_answers(name: str) -> None:
    assert COMPOSE["services"]["postgres"]["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]
    waits = SERVICES[name]["depends_on"]["postgres"]
    assert waits["condition"] == "service_healthy"
    assert waits.get("required", True) == ("cluster" in SERVICES[name].get("profiles", []))


def test_the_proxy_of_the_cluster_may_be_executed_and_is_started_without_the_server_of_its_port() -> None:
    services = COMPOSE["services"]
    proxy = services["proxy"]
    assert (proxy["cap_drop"], proxy["cap_add"]) == (["ALL"], ["NET_BIND_SERVICE"]), "its binary has this capability"
    assert proxy["depends_on"].keys() == {"server-1", "server-2"}
    assert services["server"]["ports"] == proxy["ports"]
    assert "profiles" not in services["server"]
    for name in ("docker-compose.yml", "docs/deploying.md"):
        started = re.findall(r"--profile cluster up(.*)", (REPOSITORY / name).read_text())
        assert started == [" proxy"], "without a name `server` is started, too"


@pytest.mark.parametrize("name", ["server-1", "server-2"])
def test_two_servers_never_share_a_sqlite_file_by_default(name: str) -> None:
    database = SERVICES[name]["environment"]["STEERING_DATABASE"]
    assert database.startswith("${STEERING_DATABASE:-postgresql://steering:${POSTGRES_PASSWORD:-}@postgres/")


def test_the_database_service_is_a_profile_without_a_published_port_or_a_default_password() -> None:
    postgres = COMPOSE["services"]["postgres"]
    assert postgres["profiles"] == ["postgres", "cluster"]
    assert "ports" not in postgres
    assert postgres["environment"]["POSTGRES_PASSWORD"] == "${POSTGRES_PASSWORD:-}", "the image does not start without"


def test_the_images_have_the_extras_that_settings_need() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    described = " ".join(field.description or "" for field in SETTINGS.values())
    needed = {"postgres", *re.findall(r"the extra `(\w+)`", described)}
    assert {"otel", "postgres"} <= needed <= extras.keys()
    assert needed == set(lock_image.EXTRAS)


def test_no_secret_lies_in_either_file() -> None:
    for text in (DOCKERFILE, (REPOSITORY / "docker-compose.yml").read_text()):
        for name, value in re.findall(r"(\w*(?:KEY|TOKEN|SECRET|PASSWORD)\w*)\s*[=:]\s*(\S+)", text):
            assert value.startswith(("${", "<", "-}")) or name.endswith("_FILE"), f"{name} has a value"


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = subprocess.run(
        [BIN / "hadolint", "--no-color", REPOSITORY / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_compose_file_matches_the_schema_of_the_compose_specification() -> None:
    command: list[str | Path] = [
        BIN / "check-jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        REPOSITORY / "docker-compose.yml",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
