"""The wheel holds everything that runs: imported, and its page read, away from the source tree."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tracked files, so that nothing ignored or left over helps and nothing is left."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=300,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if not name.startswith("tests/") and (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    built = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"),
            *("--no-index", "--no-build-isolation", "--no-deps", "--wheel-dir", str(out), str(source)),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stderr
    (found,) = out.glob("headrace-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel is a zip of its packages: unpacked, it is what `pip install --target` leaves."""
    target = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def tree(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_holds_every_module_and_every_data_file(installed: Path) -> None:
    for layer in ("server", "runtime", "kernels", "graphs", "clients", "bench"):
        wanted = tree(ROOT / layer)
        if layer == "bench":  # results and shell scripts belong to a clone
            wanted = {name for name in wanted if not name.startswith("results/") and not name.endswith(".sh")}
        assert tree(installed / "headrace" / layer) == wanted


def test_wheel_holds_nothing_else(installed: Path) -> None:
    top = {path.name for path in installed.iterdir()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"headrace"}
    (info,) = installed.glob("*.dist-info")
    assert "headrace = headrace.clients.cli:main" in (info / "entry_points.txt").read_text()
    assert "Apache License" in (info / "licenses" / "LICENSE").read_text()


# The interpreter of the tests has headrace installed editable; -I and the removed finder leave only the unpacked
# wheel to find it in.
ALONE = """
import sys
target = sys.argv[1]
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
sys.path_hooks[:] = [hook for hook in sys.path_hooks if "__editable__" not in getattr(hook, "__module__", "")]
sys.path[:] = [target] + [entry for entry in sys.path if "__editable__" not in entry]
"""


def alone(installed: Path, code: str, cwd: Path) -> str:
    ran = subprocess.run(
        [sys.executable, "-I", "-c", ALONE + code, str(installed)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_everything_imports_from_the_wheel_in_an_empty_directory(installed: Path, tmp_path: Path) -> None:
    code = """
import importlib, pathlib
root = pathlib.Path(target)
for path in sorted((root / "headrace").rglob("*.py")):
    parts = path.relative_to(root).with_suffix("").parts
    if parts[-1] == "__main__":
        continue
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        # kernels are written in triton, which exists for some machines only
        assert error.name == "triton" and name.startswith("headrace.kernels."), name
        continue
    assert module.__file__.startswith(target), module.__file__
    print(name)
"""
    names = alone(installed, code, tmp_path).split()
    assert "headrace.clients.cli" in names
    assert "headrace.runtime.scheduler" in names


def test_the_page_is_package_data(installed: Path, tmp_path: Path) -> None:
    code = """
from importlib import resources
for entry in (resources.files("headrace.clients") / "web").iterdir():
    print(entry.name, len(entry.read_bytes()))
"""
    told = dict(line.split() for line in alone(installed, code, tmp_path).splitlines())
    assert int(told["index.html"]) > 0


def test_the_command_answers_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = """
from headrace.clients.cli import main
sys.exit(main(["--help"]))
"""
    assert "headrace serve" in alone(installed, code, tmp_path)
