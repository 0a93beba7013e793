"""The command as tests run it. A module gives the fixture `address`: the server that its commands ask."""

import pytest

from app.cli.main import main


class Steer:
    """Runs a command against the server and keeps what it printed."""

    def __init__(self, address: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._address, self._capsys = address, capsys

    def __call__(self, *arguments: str, code: int = 0, local: bool = False) -> tuple[str, str]:
        """(standard output, standard error). local: a command that asks no server."""
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *([] if local else ["--url", self._address])])
        found = self._capsys.readouterr()
        assert (ended.value.code or 0) == code, found.err
        return found.out, found.err


@pytest.fixture
def steer(address: str, capsys: pytest.CaptureFixture[str]) -> Steer:
    return Steer(address, capsys)
