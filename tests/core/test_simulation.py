"""Many lives of the core, each from one seed; and proof that the simulation repeats, reports and can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

SEEDS = 1_000
ROOT = Path(__file__).resolve().parents[2]


def run_command(*words: str, hash_seed: str = "random") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "tests/core/simulation.py", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_seeds_that_failed_once_pass_for_ever(simulation: ModuleType) -> None:
    seeds = simulation.kept_seeds()
    assert len(seeds) == len(set(seeds)) > 0
    simulation.run_many(seeds)


def test_a_thousand_lives_hold_every_invariant_and_meet_every_state(simulation: ModuleType) -> None:
    """ENG-01 to ENG-07, ENG-12: reliability 6.3 after every operation, 6.4 over all."""
    total = simulation.run_many(range(SEEDS))
    assert simulation.swarm.missed_gates(total, SEEDS) == []


def test_the_same_seed_does_the_same_under_any_hash_seed(simulation: ModuleType) -> None:
    here = "\n".join(simulation.trace(seed) for seed in range(20))
    assert here == "\n".join(simulation.trace(seed) for seed in range(20))
    for hash_seed in ("0", "1", "random"):
        told = run_command("--seeds", "0:20", "--hash", hash_seed=hash_seed)
        assert told.returncode == 0, told.stderr
        assert told.stdout.strip() == here, f"PYTHONHASHSEED={hash_seed} changes what happens"
    assert len(set(here.splitlines())) == 20


def test_a_failure_names_the_one_command_that_repeats_it(simulation: ModuleType, mutants: ModuleType) -> None:
    name = "length_off_by_one"
    with pytest.raises(AssertionError) as failure:
        simulation.run_many(range(50), mutants.planting.build(mutants.named(name)), name)
    last = str(failure.value).splitlines()[-1]
    assert last.startswith("again: python -P tests/core/simulation.py ")
    again = run_command(*last.split("simulation.py ")[1].split())
    assert again.returncode != 0
    first = str(failure.value).splitlines()[0]
    assert first.split(": ", 1)[1] in again.stderr, "the command shows another failure"


def test_a_state_that_was_never_met_fails_the_run(simulation: ModuleType) -> None:
    swarm = simulation.swarm
    plenty = Counter(dict.fromkeys(swarm.GATES, 10))
    assert swarm.missed_gates(plenty, 1_000) == []
    for name in swarm.GATES:
        assert swarm.missed_gates(plenty - Counter({name: 1}), 1_000) == [f"{name}: 9 of 10"]
        assert swarm.missed_gates(plenty - Counter({name: 10}), 10) == [f"{name}: 0 of 1"]
