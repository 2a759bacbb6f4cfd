"""Prompts that are typed while others are served: the life of simulation.py, with drafts in it.

python -P tests/core/typists.py --seeds 0:5000         many; stops at the first that fails
python -P tests/core/typists.py --seed 7               one
python -P tests/core/typists.py --mutants              at which seed each planted bug is caught
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

if "core_simulation" not in sys.modules:  # as a command
    _spec = importlib.util.spec_from_file_location(
        "core_simulation", Path(__file__).resolve().parent / "simulation.py"
    )
    assert _spec is not None and _spec.loader is not None
    sys.modules["core_simulation"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["core_simulation"])
simulation = sys.modules["core_simulation"]

# What 1,000 seeds must have shown at least 10 times each.
GATES = (
    "draft: opened on a cached beginning",
    "draft: opened on nothing",
    "draft: edited during a chunk",
    "draft: edited twice during a chunk",
    "draft: cut in a page of its own",
    "draft: cut in a page that others have",
    "draft: cut where its copy waits",
    "draft: cut before its copy",
    "draft: cut at a page edge",
    "draft: grew",
    "draft: dropped at rest",
    "draft: dropped during a chunk",
    "draft: dropped with a copy waiting",
    "draft: sent during a chunk",
    "draft: sent after an edit during a chunk",
    "draft: sent with a copy waiting",
    "draft: sent when all was computed",
    "draft: sent when nothing was computed",
    "draft: sent as another text",
    "draft: refused when it was sent",
    "draft: gave its pages to others",
    "draft: computed again after it gave way",
    "draft: chunk beside decode rows",
    "draft: chunk beside a prompt",
    "draft: chunk alone",
    "draft: two in one step",
    "draft: longer than the pool",
    "draft: page copied",
)


class TypistWorld(simulation.World):  # type: ignore[misc]
    """A World in which somebody types."""

    def __init__(self, seed: int, core: Any = None, record: bool = False) -> None:
        super().__init__(seed, core, record)
        rng, drafts = self.rng, self.scheduler.drafts
        for fault, rates in (
            ("type", (0.1, 0.3)),
            ("edit", (0.2, 0.5)),
            ("send", (0.05, 0.2)),
            ("drop", (0.02, 0.1)),
        ):
            self.drawn.faults[fault] = rng.choice(rates)
        drafts.chunk = rng.choice((1, 3, self.drawn.page_size, 16, 512))
        drafts.rest = rng.choice((0, 1, 3, 100))
        self.wanted: dict[int, list[int]] = {}  # of each draft, by id, what was typed last
        self.robbed: set[int] = set()
        self.starved = False  # the last plan had less than a whole step's budget

    # -- what typists do ---------------------------------------------------------------------------------------

    def _text(self) -> list[int]:
        rng, found = self.rng, self.drawn
        most = min(found.capacity + 3 * found.page_size, 30 * found.chunk, 120)
        length = rng.randint(1, most)
        tokens = list(rng.choice(self._documents)[:length])
        return tokens + [rng.randrange(found.width) for _ in range(rng.choice((0, 0, 3)))]

    def _do_type(self) -> None:
        if len(self.scheduler.drafts.held) >= 3 or len(self.stories) >= 3 * self.drawn.requests:
            return
        rng, core = self.rng, self.core
        tokens = self._text()
        salt = "abc"[rng.randrange(self.drawn.tenants)]
        params = core.SamplingParams()
        req = core.Req(len(self.stories) + 1, salt, list(tokens), len(tokens), len(tokens) + 1, params)
        story = simulation.ledger.Story(req, tuple(tokens), params)
        story.draft = True
        self.stories[req.id] = story
        self.wanted[req.id] = tokens
        self._note("type", req.id, salt, len(tokens))
        self.scheduler.drafts.open(req)
        self.seen["draft: opened on a cached beginning" if req.pages else "draft: opened on nothing"] += 1
        self.seen["draft: longer than the pool"] += len(tokens) > self.drawn.capacity
        self._disturbed()

    def _draft(self) -> Any:
        held = list(self.scheduler.drafts.held.values())
        flying = [req for req in held if req.inflight and req.finish is None]
        held = [req for req in held if req.finish is None]
        if flying and self.rng.random() < 0.5:
            held = flying  # so that what happens in flight is met as often as what happens at rest
        return self.rng.choice(held) if held else None

    def _do_edit(self) -> None:
        rng, found, seen = self.rng, self.drawn, self.seen
        req = self._draft()
        if req is None:
            return
        tokens = list(self.wanted[req.id])
        kind = rng.random()
        at = rng.randint(0, len(tokens))
        if rng.random() < 0.3:
            at = at // found.page_size * found.page_size
        fresh = [rng.randrange(found.width) for _ in range(rng.randint(1, 8))]
        if kind < 0.35:
            tokens += fresh
        elif kind < 0.55:
            tokens[at:at] = fresh
        elif kind < 0.7:
            del tokens[at : at + rng.randint(1, 6)]
        elif kind < 0.85:
            tokens[at:] = fresh
        else:
            tokens[at:] = rng.choice(self._documents)[at : at + rng.randint(1, 20)]
        tokens = tokens[:150] or fresh
        drafts, size = self.scheduler.drafts, found.page_size
        self._note("edit", req.id, len(tokens), req.inflight)
        if req.inflight:
            seen["draft: edited twice during a chunk"] += self.wanted[req.id] != req.tokens
            seen["draft: edited during a chunk"] += 1
        else:
            ready = drafts.ready(req)
            keep = min(ready, drafts.common(req, tokens))
            if keep == ready:
                seen["draft: grew"] += 1
            elif req.copy_from is not None:
                seen[
                    "draft: cut where its copy waits"
                    if keep > req.computed_len
                    else "draft: cut before its copy"
                ] += 1
            elif keep % size == 0:
                seen["draft: cut at a page edge"] += 1
            elif self.scheduler.pool.refs(req.pages[keep // size]) > 1:
                seen["draft: cut in a page that others have"] += 1
            else:
                seen["draft: cut in a page of its own"] += 1
        self.wanted[req.id] = tokens
        drafts.write(req, list(tokens))
        self._disturbed()

    def _do_drop(self) -> None:
        req = self._draft()
        if req is None:
            return
        state = "during a chunk" if req.inflight else "at rest"
        if req.copy_from is not None:
            state = "with a copy waiting"
        self.seen[f"draft: dropped {state}"] += 1
        self._drop(req)

    def _drop(self, req: Any) -> None:
        self._note("drop", req.id, req.inflight)
        held = req.inflight > 0
        self.scheduler.drafts.drop(req)
        self.scheduler.drafts.drop(req)  # harmless when repeated
        assert held or req.phase is self.core.Phase.DONE, "nothing is in flight, and it was not released"
        self._disturbed()

    def _do_send(self) -> None:
        req = self._draft()
        if req is not None:
            self._send(req)

    def _send(self, req: Any) -> None:
        """What was typed is asked for; mostly, but not always, its tokens are those that were guessed."""
        rng, seen, drafts = self.rng, self.seen, self.scheduler.drafts
        tokens = list(self.wanted[req.id])
        if rng.random() < 0.2 and tokens:
            cut = rng.randrange(len(tokens))
            tokens[cut:] = [rng.randrange(self.drawn.width) for _ in range(rng.randint(1, 5))]
            seen["draft: sent as another text"] += 1
        tokens += [rng.randrange(self.drawn.width) for _ in range(rng.choice((0, 1, 4)))]
        at = drafts.common(req, tokens)
        if req.inflight:
            late = self.wanted[req.id] != req.tokens
            seen["draft: sent after an edit during a chunk" if late else "draft: sent during a chunk"] += 1
        elif req.copy_from is not None:
            seen["draft: sent with a copy waiting"] += 1
        elif drafts.ready(req) == len(req.tokens):
            seen["draft: sent when all was computed"] += 1
        elif not drafts.ready(req):
            seen["draft: sent when nothing was computed"] += 1
        count = len(self.stories)
        self._note("send", req.id, len(tokens), at)
        self._add(req.salt, tokens, self.core.ForkPoint(req, at))
        story = list(self.stories.values())[count]
        seen["draft: refused when it was sent"] += story.refused is not None
        self._drop(req)

    # -- what must hold ----------------------------------------------------------------------------------------

    def _came_further(self, weight: float) -> None:
        plan = self._flight[-1][0]
        typed = [row for row in plan.prefill if self.stories[row.req_id].draft]
        if not typed:
            super()._came_further(weight)
            return
        seen, scheduler = self.seen, self.scheduler
        others = [row for row in plan.prefill if not self.stories[row.req_id].draft]
        assert plan.prefill == (*others, *typed), "a draft comes before somebody else"
        assert not scheduler.waiting, "a draft takes what somebody waits for"
        assert all(row.sample for row in others), "a draft has the budget of a prompt that is not done"
        assert sum(row.count for row in typed) <= scheduler.drafts.chunk
        left = scheduler.slots.free_count
        assert left or scheduler.slots.count == 1, "a draft takes the last slot"
        for row in typed:
            req = self.stories[row.req_id].req
            assert req.tokens == self.wanted[req.id], "an old text is read"
            if req.id in self.robbed:
                self.robbed.discard(req.id)
                seen["draft: computed again after it gave way"] += 1
        seen["draft: two in one step"] += len(typed) > 1
        seen["draft: page copied"] += len(plan.copies) > 0 and not others
        if plan.decode:
            seen["draft: chunk beside decode rows"] += 1
        elif others:
            seen["draft: chunk beside a prompt"] += 1
        else:
            seen["draft: chunk alone"] += 1

    def _watched(self, core: Any) -> Any:
        world = self

        class Typed(super()._watched(core)):  # type: ignore[misc]
            def _retract(self, req: Any) -> None:
                able = [each for each in self.drafts.held.values() if not each.inflight]
                assert world.forced or not any(each.pages or each.copy_from is not None for each in able), (
                    "a request gives way before a draft"
                )
                super()._retract(req)

            def plan(self, budget: int | None = None, *given_also: Any, **limits: Any) -> Any:
                before = {req.id: self.drafts.ready(req) for req in self.drafts.held.values()}
                for req in self.drafts.held.values():
                    if not req.inflight and req.finish is None:
                        world.stories[req.id].prompt = tuple(world.wanted[req.id])
                given, world.starved = self.drafts.given_up, budget is not None
                plan = super().plan(budget, *given_also, **limits)
                if self.drafts.given_up > given:
                    world.seen["draft: gave its pages to others"] += self.drafts.given_up - given
                    world.robbed.update(
                        each for each, ready in before.items()
                        if ready and not self.drafts.ready(self.drafts.held[each])
                    )  # fmt: skip
                return plan

        return Typed

    def _wake_sleepers(self) -> None:
        """The device rests: who types has been read as far as there is room, and sends or gives up."""
        assert not self._flight
        drafts, alone = self.scheduler.drafts, next(self.scheduler.reqs(), None) is None
        for req in list(drafts.held.values()):
            if (
                alone
                and not self.starved
                and len(drafts.held) == 1
                and len(req.tokens) <= self.drawn.capacity
            ):
                assert drafts.ready(req) == len(req.tokens), "nothing runs, and a draft is not read"
        if not drafts.held:
            super()._wake_sleepers()
            return
        req = next(iter(drafts.held.values()))
        if self.rng.random() < 0.7:
            self._send(req)
        else:
            self._drop(req)

    def _last_words(self) -> None:
        assert not self.scheduler.drafts.held and not self.scheduler.drafts._next
        for story in [story for story in self.stories.values() if story.draft]:
            assert story.req.phase is self.core.Phase.DONE and not story.told
            del self.stories[story.req.id]  # the rest is about those who answer
        super()._last_words()


def run_many(seeds: Iterable[int], core: Any = None) -> Counter[str]:
    """What all seeds have shown together. AssertionError names the one command that repeats a failure."""
    total: Counter[str] = Counter()
    for seed in seeds:
        world = TypistWorld(seed, core)
        try:
            world.run()
        except Exception as error:
            again = f"again: python -P tests/core/typists.py --seed {seed}"
            raise AssertionError(f"{type(error).__name__}: {error}\n{again}") from error
        total.update(world.seen)
    return total


def missed_gates(total: Counter[str], seeds: int) -> list[str]:
    """Which states were met too rarely: 10 times in 1,000 seeds, and in the same proportion in fewer."""
    least = max(1, 10 * seeds // 1000)
    return [f"{name}: {total[name]} of {least}" for name in GATES if total[name] < least]


def caught_at(mutant: Any, seeds: Iterable[int]) -> tuple[int, str] | None:
    """The first seed that fails with this bug planted, and how; None if all pass."""
    core = simulation.load("planting").build(mutant)
    for seed in seeds:
        try:
            TypistWorld(seed, core).run()
        except Exception as error:
            return seed, f"{type(error).__name__}: {error}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, help="one seed, line by line")
    parser.add_argument("--seeds", metavar="A:B", default="0:1000", help="all seeds from A up to B")
    parser.add_argument("--mutants", action="store_true", help="at which seed each planted bug is caught")
    given = parser.parse_args()
    if given.seed is not None:
        world = TypistWorld(given.seed, record=True)
        try:
            world.run()
        finally:
            assert world.record is not None
            print("\n".join(world.record))
        return 0
    first, last = map(int, given.seeds.split(":"))
    if given.mutants:
        free = 0
        for mutant in simulation.load("mutants_of_drafts").MUTANTS:
            caught = caught_at(mutant, range(first, last))
            free += caught is None
            print(
                f"{mutant.name:40} "
                + ("NOT CAUGHT" if caught is None else f"seed {caught[0]:4}  {caught[1]}")
            )
        return 1 if free else 0
    started = time.perf_counter()
    total = run_many(range(first, last))
    for name in GATES:
        print(f"{total[name]:8d}  {name}")
    print(f"{last - first} seeds in {time.perf_counter() - started:.1f} s")
    missed = missed_gates(total, last - first)
    print("\n".join(f"too rare: {name}" for name in missed) or "every state was met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
