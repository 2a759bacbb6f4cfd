"""Prompts that are typed, in the simulated core: every state is met, every planted bug is caught (M5)."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

SEEDS = 40  # `python -P tests/core/typists.py --seeds 0:5000` takes the time
# Where the planted bugs showed first, so that they need not be looked for every time.
EARLY = (0, 3, 1, 9, 11, 21, 26, 82)


@pytest.fixture(scope="module")
def typists(simulation: ModuleType) -> ModuleType:
    return simulation.load("typists")


def test_typists_hold_every_invariant_and_meet_every_state(typists: ModuleType) -> None:
    total = typists.run_many(range(SEEDS))
    assert typists.missed_gates(total, SEEDS) == []


def test_every_planted_bug_of_drafts_is_caught(typists: ModuleType, simulation: ModuleType) -> None:
    mutants: Any = simulation.load("mutants_of_drafts").MUTANTS
    assert len({mutant.name for mutant in mutants}) == len(mutants) >= 15
    alive = [
        mutant.name
        for mutant in mutants
        if typists.caught_at(mutant, (*EARLY, *range(mutant.within))) is None
    ]
    assert alive == []
