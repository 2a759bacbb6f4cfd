"""What the two commands would do, seen by asking make without installing anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    (tmp_path / "tests" / "node").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "node" / "package.json", tmp_path / "tests" / "node")
    return tmp_path


def make(clone: Path, *arguments: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    for name in ("ARGS", "PYTEST", "PIP_ARGS", "PYTHON", "BROWSER", "NODE", "PROXY", "MFLAGS"):
        clean.pop(name, None)
    return subprocess.run(
        [shutil.which("make") or "make", *arguments],
        cwd=clone,
        env={**clean, "PATH": path, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def installed(clone: Path) -> None:
    """What a first `make serve` leaves behind, as far as make looks at it."""
    bin_ = clone / ".venv" / "bin"
    bin_.mkdir(parents=True)
    (bin_ / "python").symlink_to(sys.executable)
    (clone / ".venv" / "home").write_text(f"{clone}\n")
    (clone / ".venv" / "serve.stamp").touch()
    (clone / ".venv" / "test.stamp").touch()


def older(path: Path, than: Path) -> None:
    time = than.stat().st_mtime - 10
    os.utime(path, (time, time))


def steps(clone: Path, *arguments: str) -> str:
    ran = make(clone, "--dry-run", *arguments)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_clean_clone_makes_its_venv_installs_and_serves(clone: Path) -> None:
    told = steps(clone, "serve", "ARGS=--port 8123 --host ::1")
    venv, install, serve = (
        told.index(text) for text in ("-m venv", "--editable .\n", "exec .venv/bin/headrace")
    )
    assert venv < install < serve
    assert "exec .venv/bin/headrace serve --port 8123 --host ::1\n" in told


def test_the_second_time_it_only_serves(clone: Path) -> None:
    installed(clone)
    older(clone / ".venv" / "home", clone / ".venv" / "serve.stamp")
    older(clone / "pyproject.toml", clone / ".venv" / "home")
    assert steps(clone, "serve") == "exec .venv/bin/headrace serve \n"


def test_a_changed_pyproject_installs_again_without_a_new_venv(clone: Path) -> None:
    installed(clone)
    older(clone / ".venv" / "home", clone / "pyproject.toml")
    older(clone / ".venv" / "serve.stamp", clone / "pyproject.toml")
    told = steps(clone, "serve")
    assert "--editable ." in told
    assert "-m venv" not in told


def test_a_clone_that_moved_makes_its_venv_again(
    clone: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    installed(clone)
    moved = tmp_path_factory.mktemp("moved") / "clone"
    clone.rename(moved)
    assert "-m venv --clear" in steps(moved, "serve")


def test_the_tests_come_after_lint_and_types(clone: Path) -> None:
    told = steps(clone, "test")
    order = [
        told.index(text) for text in ("[test]", "ruff check", "ruff format --check", "mypy", "pytest -q")
    ]
    assert order == sorted(order)
    part = steps(clone, "test", "PYTEST=tests/core -k prefix")
    assert "pytest -q tests/core -k prefix\n" in part
    assert "mypy" not in part


def test_without_a_python_it_says_so(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    bare = tmp_path_factory.mktemp("bin")
    (bare / "sh").symlink_to(shutil.which("sh") or "/bin/sh")
    ran = make(clone, "serve", path=str(bare))
    assert ran.returncode == 2
    assert "needs Python 3.11 or newer, and found none" in ran.stderr
    assert not (clone / ".venv").exists()


def test_an_old_python_is_refused_by_name(clone: Path) -> None:
    old = clone / "python-old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    ran = make(clone, "serve", f"PYTHON={old}")
    assert ran.returncode == 2
    assert f"{old} is not" in ran.stderr


def test_where_browser_node_and_proxy_cannot_be_had_the_gate_fails_and_a_person_is_told(
    clone: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    installed(clone)
    bin_ = clone / ".venv" / "bin"
    for tool in ("ruff", "mypy"):
        (bin_ / tool).write_text("#!/bin/sh\nexit 0\n")
    (bin_ / "pytest").write_text(
        '#!/bin/sh\necho "pytest ran with HEADRACE_NO_BROWSER=$HEADRACE_NO_BROWSER NO_NODE=$HEADRACE_NO_NODE'
        ' NO_PROXY=$HEADRACE_NO_PROXY"\n'
    )
    for tool in ("ruff", "mypy", "pytest"):
        (bin_ / tool).chmod(0o755)
    bare = tmp_path_factory.mktemp("bin")
    for tool in ("sh", "mkdir", "ln", "dirname", "touch"):
        (bare / tool).symlink_to(shutil.which(tool) or tool)
    for stamp in ("serve.stamp", "test.stamp"):
        os.utime(clone / ".venv" / stamp)

    told = make(clone, "test", path=str(bare))
    assert told.returncode == 0, told.stderr
    assert "pytest ran with HEADRACE_NO_BROWSER=1 NO_NODE=1 NO_PROXY=1" in told.stdout
    assert "NOT RUN: the browser tests" in told.stderr
    assert "NOT RUN: the tests of Node clients" in told.stderr
    assert "NOT RUN: the tests behind a proxy" in told.stderr
    assert "no node (20 or newer) with npm on the path" in told.stderr

    refused = make(clone, "test", "BROWSER=required", path=str(bare))
    assert refused.returncode == 2
    assert "Chromium is required here" in refused.stderr
    assert "pytest ran" not in refused.stdout

    refused = make(clone, "test", "PROXY=required", path=str(bare))
    assert refused.returncode == 2
    assert "nginx is required here" in refused.stderr
    assert "pytest ran" not in refused.stdout

    (bare / "chromium").symlink_to(bare / "sh")
    (bare / "chromedriver").symlink_to(bare / "sh")
    refused = make(clone, "test", "BROWSER=required", "NODE=required", path=str(bare))
    assert refused.returncode == 2
    assert "Node is required here" in refused.stderr
    assert "pytest ran" not in refused.stdout


def test_the_gate_requires_what_a_person_may_lack() -> None:
    gate = (ROOT / ".ci" / "run").read_text()
    assert "make test BROWSER=required NODE=required PROXY=required " in gate
    assert "unset HEADRACE_NO_BROWSER HEADRACE_NO_NODE HEADRACE_NO_PROXY " in gate
