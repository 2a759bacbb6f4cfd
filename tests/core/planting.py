"""Puts one edit into the source of the core, in memory, and asks the simulation whether it notices."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

# In order of import: a module built here sees the edited ones before it.
MODULES = (
    "request", "shares", "line", "pages", "prefix", "pins", "audit", "victims", "prospect", "sharing",
    "distrust", "drafts", "admission", "scheduler",
)  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new` in `headrace/runtime/<module>.py`. `within`: seeds in which it must be caught."""

    name: str
    module: str
    old: str
    new: str
    within: int = 60


def build(mutant: Mutant) -> Any:
    """The core with this bug planted, as the simulation takes it."""
    return core_of(edited(mutant))


def core_of(built: dict[str, ModuleType]) -> Any:
    request, scheduler = built["request"], built["scheduler"]
    return sys.modules["core_simulation"].Core(
        Scheduler=scheduler.Scheduler,
        Req=request.Req,
        ForkPoint=request.ForkPoint,
        Phase=request.Phase,
        FinishReason=request.FinishReason,
        SamplingParams=request.SamplingParams,
        Change=request.Change,
    )


def edited(mutant: Mutant) -> dict[str, ModuleType]:
    """Fresh modules of the core, one of them edited; those that the process runs on are left as they are."""
    built: dict[str, ModuleType] = {}
    with _restored():
        for short in MODULES:
            full = f"headrace.runtime.{short}"
            spec = importlib.util.find_spec(full)
            assert spec is not None and spec.origin is not None
            with open(spec.origin, encoding="utf-8") as file:
                source = file.read()
            if short == mutant.module:
                found = source.count(mutant.old)
                assert found == 1, (
                    f"mutant {mutant.name}: its text occurs {found} times in {short}.py, not once"
                )
                source = source.replace(mutant.old, mutant.new)
            module = ModuleType(full)
            module.__file__ = spec.origin
            module.__package__ = "headrace.runtime"
            sys.modules[full] = module
            exec(compile(source, f"{short}.py with {mutant.name}", "exec"), module.__dict__)
            built[short] = module
    return built


@contextmanager
def _restored() -> Iterator[None]:
    importlib.import_module("headrace.runtime.scheduler")
    kept = {name: sys.modules[name] for name in (f"headrace.runtime.{short}" for short in MODULES)}
    try:
        yield
    finally:
        sys.modules.update(kept)


def caught_at(mutant: Mutant, seeds: Iterable[int]) -> tuple[int, str] | None:
    """The first seed that fails with this bug planted, and how; None if all pass."""
    core = build(mutant)
    for seed in seeds:
        try:
            sys.modules["core_simulation"].World(seed, core).run()
        except Exception as error:
            return seed, f"{type(error).__name__}: {error}"
    return None


def hunt(mutants: Sequence[Mutant], seeds: range) -> int:
    """Print where each planted bug is caught; 1 if one is not."""
    free = 0
    for mutant in mutants:
        caught = caught_at(mutant, seeds)
        free += caught is None
        print(f"{mutant.name:40} " + ("NOT CAUGHT" if caught is None else f"seed {caught[0]:4}  {caught[1]}"))
    print(f"{len(mutants) - free} of {len(mutants)} caught")
    return 1 if free else 0
