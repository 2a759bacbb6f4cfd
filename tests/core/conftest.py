"""The simulation and its mutants, loaded from beside this file, once, under one name each."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve().parent


def load_simulation() -> ModuleType:
    name = "core_simulation"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / "simulation.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def simulation() -> ModuleType:
    return load_simulation()


@pytest.fixture(scope="session")
def mutants() -> ModuleType:
    return load_simulation().load("mutants")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `mutant` runs once for each planted bug."""
    if "mutant" in metafunc.fixturenames:
        planted = load_simulation().load("mutants").MUTANTS
        metafunc.parametrize("mutant", planted, ids=[mutant.name for mutant in planted])
