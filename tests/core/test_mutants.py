"""The simulation catches every planted bug; a simulation that cannot fail would catch none."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from headrace.runtime import scheduler

# Lives that meet a bug which few others meet: they come first.
KNOWN = {"retracted_goes_last": (1321,)}


def test_a_planted_bug_is_caught(mutants: ModuleType, mutant: Any, record_property: Any) -> None:
    caught = mutants.planting.caught_at(mutant, (*KNOWN.get(mutant.name, ()), *range(mutant.within)))
    assert caught is not None, f"{mutant.name} lives through {mutant.within} seeds"
    seed, words = caught
    record_property("caught_at_seed", seed)
    print(f"{mutant.name}: caught at seed {seed}: {words}")


def test_there_are_forty_planted_bugs_with_one_name_each(mutants: ModuleType) -> None:
    names = [mutant.name for mutant in mutants.MUTANTS]
    assert len(names) == len(set(names)) >= 40
    assert all(mutant.old != mutant.new for mutant in mutants.MUTANTS)


def test_an_edit_whose_text_is_gone_or_stands_twice_is_refused(mutants: ModuleType) -> None:
    for old, times in (("no such text", 0), ("self", None)):
        with pytest.raises(AssertionError, match="not once") as failure:
            mutants.planting.edited(mutants.Mutant("rotten", "scheduler", old, ""))
        assert times is None or f"occurs {times} times" in str(failure.value)


def test_planting_leaves_the_running_core_alone(mutants: ModuleType, simulation: ModuleType) -> None:
    before = scheduler.Scheduler
    core = mutants.planting.build(mutants.MUTANTS[0])
    assert core.Scheduler is not before
    from headrace.runtime.scheduler import Scheduler

    assert Scheduler is before is simulation.Core().Scheduler


def test_the_edited_core_without_an_edit_passes(mutants: ModuleType, simulation: ModuleType) -> None:
    """What catches a mutant is its bug, not the way it is built."""
    same = mutants.Mutant("none", "scheduler", "class Scheduler:", "class Scheduler:")
    built = mutants.planting.edited(same)
    simulation.run_many(range(20), mutants.planting.core_of(built))
