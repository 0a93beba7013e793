"""The client works in a project that has packages named like this server's or like its dependencies."""

import subprocess
import sys
from pathlib import Path

IMPORTED = "from pathlib import Path\n\nPath(__file__).with_suffix('.imported').touch()\n"


def test_the_client_imports_no_module_of_the_project_that_uses_it(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    for name in ("app/__init__.py", "torch.py", "transformers.py", "fastapi.py", "starlette.py"):
        (tmp_path / name).write_text(IMPORTED)
    program = tmp_path / "program.py"
    program.write_text("from steering.client import AsyncClient, Client\n\nClient().close()\n")
    done = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*.imported"))


def test_child_processes_of_commands_do_not_import_from_the_current_folder(tmp_path: Path) -> None:
    for name in ("torch.py", "gguf.py", "app.py"):
        (tmp_path / name).write_text(IMPORTED)
    (tmp_path / "empty.gguf").write_bytes(b"")
    command = [sys.executable, "-P", "-m", "app.cli.main", "vectors", "import", "empty.gguf", "--name", "empty"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "not a readable control vector" in done.stderr
    assert not list(tmp_path.glob("*.imported"))
