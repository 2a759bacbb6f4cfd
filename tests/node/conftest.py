"""The tests that need Node and the packages of package.json."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where Node cannot be had, `make test` says so and sets HEADRACE_NO_NODE. Else its absence fails."""
    if os.environ.get("HEADRACE_NO_NODE") != "1":
        return
    ours = [item for item in items if HERE in item.path.parents]
    config.hook.pytest_deselected(items=ours)
    items[:] = [item for item in items if item not in ours]
