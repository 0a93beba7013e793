"""The steps that `make image-check` executes are those of the Dockerfile, and COPY does what Docker's does."""

from pathlib import Path

import pytest

pytest.importorskip("dockerfile", reason="the parser has no wheel for this machine")

from tools.image.build import copy, copy_context
from tools.image.roots import PACKAGES, SUITE
from tools.image.steps import Config, Stage, Step, read_stages, stages_of

REPOSITORY = Path(__file__).resolve().parents[2]
STAGES = read_stages(REPOSITORY / "Dockerfile", {})


def config_of(target: str) -> Config:
    """The configuration of an image after all its steps, those of the stages below it included."""
    stage = STAGES[target]
    config = config_of(stage.base) if stage.base in STAGES else Config()
    for step in stage.steps:
        config = config.after(step, {})
    return config


def read(text: str, folder: Path, **given: str) -> dict[str, Stage]:
    (folder / "Dockerfile").write_text(text)
    return read_stages(folder / "Dockerfile", given)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_target_needs_the_stages_that_it_is_made_from_and_no_other(target: str) -> None:
    names = [stage.name for stage in stages_of(STAGES, target)]
    built = ["base", "web", "wheel", "libraries", f"libraries-{target}"]
    assert names == [*built, "runtime", "runtime-compiler", target]


def test_an_unknown_target_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"'gpu'.*cpu"):
        stages_of(STAGES, "gpu")


def test_every_image_of_the_dockerfile_has_a_root_that_stands_for_it() -> None:
    for image in {stage.base for stage in STAGES.values()} - STAGES.keys():
        name, _, tag = image.partition(":")
        assert name in PACKAGES
        assert SUITE in tag


def test_a_command_over_several_lines_is_one_step_and_its_mounts_are_flags() -> None:
    made = [step for step in STAGES["runtime"].steps if step.instruction == "RUN"]
    assert len(made) == 1
    assert all(word in made[0].command[-1] for word in ("groupadd", "useradd", "install --directory"))
    (installed,) = [step for step in STAGES["libraries-cpu"].steps if step.instruction == "RUN"]
    assert installed.flag("mount") == "type=cache,target=/var/cache/pip"
    assert installed.command[:2] == ("/bin/sh", "-c")
    assert '--index-url "${TORCH_INDEX}"' in installed.command[-1]


def test_a_copy_from_another_stage_names_it() -> None:
    copied = [(step.flag("from"), *step.values) for step in STAGES["cpu"].steps if step.instruction == "COPY"]
    assert copied == [("libraries-cpu", "/opt/venv", "/opt/venv"), ("wheel", "/wheels", "/opt/wheels")]
    assert STAGES["cpu"].sources == {"runtime-compiler", "libraries-cpu", "wheel"}


def test_the_configuration_of_an_image_is_what_its_steps_leave() -> None:
    config = config_of("cpu")
    assert config.environment["PATH"].startswith("/opt/venv/bin:/usr/local/sbin:")
    assert config.environment["STEERING_DEVICE"] == "cpu"
    assert (config.user, config.folder, config.volumes) == ("10001:10001", "/var/lib/steering", ("/var/lib/steering",))
    assert (config.entrypoint, config.command, config.stop_signal) == ((), ("steer", "serve"), "SIGTERM")
    assert config.health == ("bash", "/usr/local/lib/steering/health.sh")


def test_arguments_before_the_first_stage_are_of_from_and_given_ones_replace_defaults(tmp_path: Path) -> None:
    text = "ARG V=1\nFROM python:$V AS a\nARG W=2\nARG V\nENV X=${W}-${V}.\nWORKDIR /srv\nWORKDIR sub\n"
    (stage,) = read(text, tmp_path, V="3").values()
    assert stage.base == "python:3"
    config = Config()
    for step in stage.steps:
        config = config.after(step, {"W": "4"})
    assert (config.environment["X"], config.folder) == ("4-.", "/srv/sub")


@pytest.mark.parametrize(
    "line", ["ADD a b", "ONBUILD RUN a", 'SHELL ["a"]', "RUN <<END\na\nEND", "COPY <<END b\na\nEND"]
)
def test_what_is_not_executed_is_refused_with_its_line(line: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 2: .* is not supported"):
        read(f"FROM node\n{line}\n", tmp_path)


def copied(values: tuple[str, ...], source: Path, folder: Path) -> set[str]:
    """The files in a root after COPY in /srv."""
    root = folder / "root"
    copy(Step(1, "COPY", (), values, exec_form=False), Config(folder="/srv"), source, root)
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_copy_takes_files_into_folders_and_the_content_of_folders(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a" / "b").mkdir(parents=True)
    for name in ("x", "y", "a/1", "a/b/2"):
        (source / name).write_text(name)
    assert copied(("x", "y", "./"), source, tmp_path) == {"srv/x", "srv/y"}
    assert copied(("x", "/opt/z"), source, tmp_path) == {"srv/x", "srv/y", "opt/z"}
    assert copied(("a", "c"), source, tmp_path) >= {"srv/c/1", "srv/c/b/2"}
    with pytest.raises(SystemExit, match="COPY absent"):
        copied(("absent", "."), source, tmp_path)


def test_the_build_context_is_what_dockerignore_leaves(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "app" / "__pycache__").mkdir(parents=True)
    (repository / ".dockerignore").write_text((REPOSITORY / ".dockerignore").read_text())
    kept = {
        "pyproject.toml",
        "deploy/image/health.sh",
        "steering/errors.py",
        "app/main.py",
        "app/web/src/main.tsx",
        "docs/openapi.json",
        "docs/latent_space.md",
    }
    left_out = {
        "docs/api.md",
        "deploy/caddy/Caddyfile",
        "app/static/index.html",
        "app/web/node_modules/a/a.js",
        "app/__pycache__/a.pyc",
        "x.sqlite3",
    }
    for name in kept | left_out:
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("")
    copy_context(repository, tmp_path / "context")
    found = {
        str(path.relative_to(tmp_path / "context")) for path in (tmp_path / "context").rglob("*") if path.is_file()
    }
    assert found >= kept
    assert not found & left_out
