"""The `headrace` command: what it says, and that it says so at once."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

from headrace.clients import cli


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    told = capsys.readouterr().out
    for text in ("serve", "chat", "bench", "examples:", "headrace COMMAND --help"):
        assert text in told


@pytest.mark.parametrize("arguments", [[], ["dance"]])
def test_a_missing_or_unknown_command_is_an_error_with_the_help(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "usage: headrace COMMAND" in told.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"headrace {version('headrace')}\n"


def test_bench_lists_every_measurement_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    benches = cli._benches()
    assert "step" in benches
    assert all(benches.values()), "every bench says in its first line what it measures"
    assert cli.main(["bench"]) == 0
    told = capsys.readouterr().out
    for name, line in benches.items():
        assert f"{name} " in told
        assert line in told


def test_an_unknown_bench_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "nonsense"]) == 2
    assert "step" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["serve"], ["chat"], ["bench", "step"]])
def test_every_command_explains_itself(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([*command, "--help"])
    assert left.value.code == 0
    assert f"usage: headrace {' '.join(command)}" in capsys.readouterr().out


def test_help_needs_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; from headrace.clients.cli import main; main(['--help']);"
        "print(sorted({'torch', 'msgspec', 'websockets', 'asyncio', 'uvloop'} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert ran.stdout.splitlines()[-1] == "[]"
