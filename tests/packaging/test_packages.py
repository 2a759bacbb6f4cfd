"""The package list, the guards and the version agree with what lies on disk."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
FOLDERS: dict[str, str] = SETUPTOOLS["package-dir"]


def packages_on_disk() -> dict[str, Path]:
    found = {}
    for package, folder in FOLDERS.items():
        for guard in sorted((ROOT / folder).rglob("__init__.py")):
            parts = guard.parent.relative_to(ROOT / folder).parts
            found[".".join((package, *parts))] = guard.parent
    return found


def test_package_list_names_every_folder_with_a_guard() -> None:
    # An editable install finds a forgotten subpackage anyway; a wheel would lack it.
    assert sorted(SETUPTOOLS["packages"]) == sorted(packages_on_disk())


def test_every_folder_with_python_has_a_guard() -> None:
    for package, folder in FOLDERS.items():
        for module in (ROOT / folder).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), f"{module} lies in no package of {package}"


def test_every_top_level_package_is_mapped() -> None:
    top = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert top == set(FOLDERS.values())


@pytest.mark.parametrize("package", sorted(packages_on_disk()))
def test_package_is_typed_and_guarded(package: str) -> None:
    folder = packages_on_disk()[package]
    assert (folder / "py.typed").exists()
    lines = [line for line in (folder / "__init__.py").read_text().splitlines() if line.strip()]
    assert 'if not __name__.startswith("headrace."):' in lines
    assert len(lines) <= 8, "an __init__.py holds its guard and nothing else"


@pytest.mark.parametrize("folder", sorted(FOLDERS.values()))
def test_guard_refuses_the_source_folder_as_a_top_level_package(folder: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {folder}"
    ran = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=300)
    assert ran.returncode != 0
    assert f"import 'headrace.{folder}' instead" in ran.stderr


def test_no_package_marker_where_pytest_would_put_the_root_on_the_path() -> None:
    assert not (ROOT / "conftest.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_installed_version_is_the_declared_one() -> None:
    assert importlib.metadata.version("headrace") == PYPROJECT["project"]["version"]


def test_no_file_is_longer_than_the_hard_limit() -> None:
    for folder in (*FOLDERS.values(), "tests"):
        for module in (ROOT / folder).rglob("*.py"):
            assert len(module.read_text().splitlines()) <= 600, f"{module}: look for a second noun in it"


def third_party(folders: tuple[str, ...]) -> dict[str, set[str]]:
    """Top-level names that are neither ours nor the standard library's → the files that import them."""
    own = {"headrace"} | {path.stem for path in (ROOT / "tests").rglob("*.py")}
    found: dict[str, set[str]] = {}
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            if path.name.startswith("agents_"):
                continue  # run by an interpreter of its own: .ci/agents says with what
            for node in ast.walk(ast.parse(path.read_text())):
                names = (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
                for name in names:
                    top = name.partition(".")[0]
                    if top not in own and top not in sys.stdlib_module_names:
                        found.setdefault(top, set()).add(str(path.relative_to(ROOT)))
    return found


# Import names of what is installed in an environment of its own, where this interpreter cannot look it up.
APART = {"agents": ["openai-agents"]}


def declared(requirements: list[str]) -> set[str]:
    return {
        re.split(r"[<>=!~;\[ ]", requirement)[0].lower().replace("-", "_") for requirement in requirements
    }


@pytest.mark.parametrize(
    ("folders", "extras"), [(("server", "runtime", "clients"), ()), ((*FOLDERS.values(), "tests"), ("test",))]
)
def test_what_is_imported_is_declared(folders: tuple[str, ...], extras: tuple[str, ...]) -> None:
    # What another package happens to bring along is there today and gone with its next release.
    project = PYPROJECT["project"]
    wanted = declared(project["dependencies"])
    for extra in extras:
        wanted |= declared(project["optional-dependencies"][extra])
        wanted |= declared(PYPROJECT["dependency-groups"]["agents"])
    distributions = importlib.metadata.packages_distributions()
    for name, files in third_party(folders).items():
        brought = APART.get(name) or distributions.get(name, [name])
        offered = {distribution.lower().replace("-", "_") for distribution in brought}
        assert offered & wanted, f"{sorted(files)} import {name}, which pyproject.toml does not name"
