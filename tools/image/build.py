"""Executes the stages of a Dockerfile, each in a root of its own."""

import posixpath
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from docker.utils.build import exclude_paths

from tools.image.roots import Bind, make_root, run_logged, run_step
from tools.image.steps import Config, Stage, Step


class Build:
    """A build in the folder `work`. given: build arguments. caches: folder of what RUN steps mount as caches."""

    def __init__(self, work: Path, caches: Path, mirror: str | None, given: Mapping[str, str]) -> None:
        self._work, self._caches, self._mirror, self._given = work, caches, mirror, given
        self._images: dict[str, Config] = {}

    def run(self, stages: Iterable[Stage], repository: Path) -> tuple[Path, Config]:
        """Executes stages in order. Returns the root of the last one, and how it is started."""
        copy_context(repository, self._work / "context")
        name, config = "", Config()
        for stage in stages:
            name, config = stage.name, self._run_stage(stage)
        return self._root(name), config

    def _root(self, image: str) -> Path:
        return self._work / "roots" / image.replace(":", "-").replace("/", "-")

    def _provide(self, image: str) -> Config:
        """Makes the root of an image when there is none yet."""
        if image not in self._images:
            started = time.monotonic()
            self._root(image).parent.mkdir(parents=True, exist_ok=True)
            make_root(image, self._root(image), self._mirror)
            self._images[image] = Config()
            _report(f"root for {image}", started)
        return self._images[image]

    def _run_stage(self, stage: Stage) -> Config:
        config, root = self._provide(stage.base), self._root(stage.name)
        run_logged(["cp", "--archive", "--reflink=auto", str(self._root(stage.base)), str(root)])
        for step in stage.steps:
            config = config.after(step, self._given)
            started = time.monotonic()
            self._execute(step, config, root)
            if step.instruction in {"RUN", "COPY"}:
                _report(f"{stage.name}, line {step.line}: {step.instruction} {' '.join(step.values)}", started)
        self._images[stage.name] = config
        return config

    def _execute(self, step: Step, config: Config, root: Path) -> None:
        if step.instruction == "WORKDIR":
            (root / config.folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif step.instruction == "RUN":
            run_step(root, step.command, config, self._cache_binds(step))
        elif step.instruction == "COPY":
            source = step.flag("from")
            if source is not None:
                self._provide(source)
            copy(step, config, self._work / "context" if source is None else self._root(source), root)

    def _cache_binds(self, step: Step) -> list[Bind]:
        binds = []
        for mount in (value for name, value in step.flags if name == "mount"):
            options = dict(part.split("=", 1) for part in mount.split(","))
            if options.keys() != {"type", "target"} or options["type"] != "cache":
                raise ValueError(f"line {step.line}: --mount={mount} is not supported")
            folder = self._caches / options["target"].strip("/").replace("/", "-")
            folder.mkdir(parents=True, exist_ok=True)
            binds.append(Bind(folder, options["target"], writable=True))
        return binds


def copy_context(repository: Path, context: Path) -> None:
    """Copies what .dockerignore leaves of a repository, as Docker sends it to a build."""
    patterns = [line for line in (repository / ".dockerignore").read_text().splitlines() if line.strip()]
    for name in sorted(exclude_paths(str(repository), patterns)):
        source, target = repository / name, context / name
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def copy(step: Step, config: Config, source_root: Path, root: Path) -> None:
    """Executes COPY: of a folder its content; into a folder when the target ends with a slash or several are copied."""
    *sources, target = map(config.expanded, step.values)
    destination = root / posixpath.join(config.folder, target).lstrip("/")
    into = target.endswith(("/", ".")) or len(sources) > 1
    for name in sources:
        source = source_root / name.lstrip("/")
        if not source.exists():
            raise SystemExit(f"line {step.line}: COPY {name}: there is no such file in the build context or stage")
        folder = destination if into or source.is_dir() else destination.parent
        folder.mkdir(parents=True, exist_ok=True)
        what = f"{source}/." if source.is_dir() else str(source)
        run_logged(["cp", "--archive", "--no-preserve=ownership", what, str(destination)])


def _report(what: str, started: float) -> None:
    print(f"{time.monotonic() - started:7.1f} s  {what:.110}", flush=True)
