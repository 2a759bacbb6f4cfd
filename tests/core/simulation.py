"""One seed, one life of the core: the real Scheduler, a simulated device, a virtual clock, and faults.

Loaded by the tests, and a command of its own:

    python -P tests/core/simulation.py --seed 7                 one seed, with what it drew
    python -P tests/core/simulation.py --seeds 0:20000          many; stops at the first that fails
    python -P tests/core/simulation.py --seed 7 --mutant NAME   the same seed against a planted bug
    python -P tests/core/simulation.py --mutants                at which seed each planted bug is caught

Every choice comes from the seed: sizes, prompts, faults and their rates, the order of events. No order is taken
from hash() of a string or from id(), so the same seed does the same under any PYTHONHASHSEED.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import importlib.util
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from headrace.runtime import refusal, request, scheduler

HERE = Path(__file__).resolve().parent
sys.modules.setdefault("core_simulation", sys.modules[__name__])  # as a command it is __main__ as well


def load(name: str) -> ModuleType:
    """A module that lies beside this file. Tests have no package, and no folder of theirs goes on the path."""
    full = f"core_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, HERE / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


cells, ledger, classes, pinning = map(load, ("device", "watch", "classes", "pinning"))
swarm, changes, forks = map(load, ("swarm", "changes", "forks"))

EVENT_LIMIT = 20_000


@dataclass(frozen=True)
class Core:
    """The classes under test; a mutant brings its own."""

    Scheduler: Any = scheduler.Scheduler
    Req: Any = request.Req
    ForkPoint: Any = request.ForkPoint
    Phase: Any = request.Phase
    FinishReason: Any = request.FinishReason
    SamplingParams: Any = request.SamplingParams
    Change: Any = request.Change
    Refusal: Any = refusal.Refusal


class World:
    """The seed's life. `run()` returns when every request has ended and everything was given back."""

    def __init__(self, seed: int, core: Core | None = None, record: bool = False) -> None:
        self.seed = seed
        self.core = core = core if core is not None else Core()
        self.rng = rng = random.Random(seed)
        self.drawn = found = swarm.draw(rng)
        forks.draw(seed, found)
        self.groups: list[list[Any]] = []  # answers that branched: the first one, and its branches
        self.cuts: list[tuple[Any, list[int]]] = []  # branches that were given up, and what they alone held
        self.seen: Counter[str] = Counter()
        self.record: list[str] | None = [] if record else None
        self.order = classes.Order(self)
        self.pinning = pinning.Pinning(self)
        self.scheduler = self._watched(core)(
            found.pages,
            found.page_size,
            found.slots,
            found.chunk,
            prefix_cache=found.cache,
            waiting_limit=found.waiting_limit,
            ahead_tokens=found.ahead,
            patience=self.order.patience,
            pin_share=self.pinning.share,
        )
        self.pinning.watch(self.scheduler)
        self.order.watch(self.scheduler)
        self.device = cells.Device(found.pages, found.page_size, found.slots, found.width)
        self.watch = ledger.Watch(core, self.scheduler, self.device, cells, self.seen, self.order)
        self.stories = self.watch.stories
        self.now = 0
        self.events = 0
        self.forced = False
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self._turn_set = False
        self._flight: deque[tuple[Any, frozenset[int]]] = deque()
        self._last_landing = 0
        self._arrivals = found.requests
        self._waited = 0.0  # steps since anybody came further than ever before
        self._documents = [[rng.randrange(found.width) for _ in range(found.capacity + 2)] for _ in range(2)]
        self._quiet_after = rng.choice((60, 150, 300))

    def _watched(self, core: Core) -> Any:
        """The Scheduler under test, telling the watch of two decisions that leave no other trace."""
        world = self

        class Watched(core.Scheduler):  # type: ignore[name-defined,misc]
            def _find_prefix(self, req: Any) -> int:
                free = not req.pages and req.copy_from is None and self.prefix_cache
                hit: int = super()._find_prefix(req)
                if free:
                    world.watch.looked_up(req, hit)
                return hit

            def _retract(self, req: Any) -> None:
                world.watch.taken_back(req, world.forced)
                if not world.forced:
                    world.order.taken_back(self, req)
                super()._retract(req)

        return Watched

    # -- the clock ---------------------------------------------------------------------------------------------

    def run(self) -> Counter[str]:
        self._at(0, self._arrive)
        while self._heap:
            self.now, _, event = heapq.heappop(self._heap)
            self.events += 1
            assert self.events < EVENT_LIMIT, "it never ends"
            event()
            if self.events < self._quiet_after:
                self._meddle()
            if not self._heap:
                self._wake_sleepers()
        self.pinning.end()
        self._last_words()
        return self.seen

    def _at(self, time: int, event: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (time, self._order, event))

    def _note(self, *words: object) -> None:
        if self.record is not None:
            self.record.append(f"{self.now} " + " ".join(str(word) for word in words))

    def _settled(self) -> None:
        self.watch.settle()
        self.order.settled(self.scheduler)
        self.pinning.settled()
        forks.check_cuts(self)
        # Something can be done now perhaps: the loop takes a turn soon.
        if not self._turn_set:
            self._turn_set = True
            self._at(self.now + self.rng.choice((0, 0, 0, 1, 7)), self._turn)

    # -- the loop's turn ---------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Launch what can be launched, as the step loop does."""
        self._turn_set = False
        scheduler, rng = self.scheduler, self.rng
        while len(self._flight) < self.drawn.depth:
            budget = None
            if rng.random() < self.drawn.faults.get("budget", 0.0) and self.events < self._quiet_after:
                budget = rng.choice((0, 0, 1, self.drawn.chunk // 2, self.drawn.chunk * 2))
            room = self.drawn.chunk if budget is None else budget
            evicted, left = scheduler.counters.evicted_pages, len(scheduler.remnants)
            self.scheduler.prospect()
            plan = scheduler.plan(budget, **self.order.limit())
            self.order.planned(scheduler, plan)
            if scheduler.counters.evicted_pages > evicted:
                self.seen["eviction under pressure"] += 1
            self.seen["what was left for forks gave way"] += len(scheduler.remnants) < left
            if budget == 0:
                self.seen["plan with a budget of zero"] += 1
            if plan is None:
                self.watch.settle()
                if any(not req.pausing for req in scheduler.reqs()) and not self._flight:
                    assert room == 0, "stuck: a request could run alone, and no step is planned"
                    self._turn_set = True
                    self._at(self.now + 1, self._turn)
                return
            self._note("plan", plan)
            if scheduler.pool.free_count == 0 and scheduler.tree.idle_pages == 0:
                self.seen["no page left and no cache to evict"] += 1
            self.watch.planned(plan, room)
            self._flight.append((plan, self._spoil(plan)))
            self.watch.settle()
            self._came_further(min(1.0, room / self.drawn.chunk) if not plan.decode else 1.0)
            self._last_landing = max(self._last_landing, self.now) + rng.randint(1, self.drawn.step)
            self._at(self._last_landing, self._land)
            if rng.random() < 0.2:
                return

    def _spoil(self, plan: Any) -> frozenset[int]:
        if self.rng.random() >= self.drawn.faults.get("spoil", 0.0) or self.events >= self._quiet_after:
            return frozenset()
        index = self.rng.randrange(len(plan.rows))
        self._note("spoil", index)
        if not plan.rows[index].sample:
            self.seen["non-finite row of a chunk"] += 1
        return frozenset((index,))

    def _land(self) -> None:
        plan, spoil = self._flight.popleft()
        result, causes = self.device.run(plan, spoil)
        if any(self.stories[req_id].ends for req_id in causes):
            self.seen["non-finite row of an ended request"] += 1
        events = self.scheduler.retire(plan, result)
        self._note("land", result.tokens)
        self.watch.landed(plan, result, causes, events)
        for event in events:
            req, params = event.req, event.req.params
            if event.token in params.stop_ids and event.finish is not self.core.FinishReason.STOP:
                assert req.output_len <= params.min_tokens, "a stop id was passed over"
                self.seen["minimum length held back a stop"] += 1
        if events:
            self._waited = 0.0
        self._settled()

    def _came_further(self, weight: float) -> None:
        """The liveness bound: within so many full steps some request gets further than it ever was.

        All that may be done in vain is feeding again what was taken back from the first in line."""
        longest = 0
        for req in self.scheduler.reqs():
            story = self.stories[req.id]
            longest = max(longest, len(req.tokens))
            if req.computed_len > story.deepest:
                story.deepest = req.computed_len
                weight = 0.0
                self._waited = 0.0
        self._waited += weight
        bound = longest / self.drawn.chunk + 2 * self.drawn.depth + 2
        assert self._waited <= bound, f"nobody came further in {self._waited:.0f} steps"

    # -- arrivals ----------------------------------------------------------------------------------------------

    def _arrive(self) -> None:
        rng, found = self.rng, self.drawn
        self._arrivals -= 1
        if self._arrivals > 0:
            self._at(self.now + rng.randint(0, found.gap), self._arrive)
        salt = "abc"[rng.randrange(found.tenants)]
        # A chunk of one token makes long prompts slow and shows nothing that shorter ones do not.
        most = min(found.capacity + 1, 30 * found.chunk, 150)
        length = rng.randint(1, most)
        if rng.random() < 0.5:
            edge = rng.randint(1, max(1, most // found.page_size)) * found.page_size
            length = max(1, min(most, edge + rng.choice((-1, 0, 0, 1))))
        tokens = list(rng.choice(self._documents)[:length])
        if rng.random() < 0.3:
            cut = rng.randint(0, length - 1)
            tokens[cut:] = [rng.randrange(found.width) for _ in range(length - cut)]
        self._add(salt, tokens, None)

    def _add(self, salt: str, tokens: list[int], fork: Any) -> None:
        rng, found, core, scheduler = self.rng, self.drawn, self.core, self.scheduler
        most = scheduler.max_tokens
        kind = rng.random()
        if kind < 0.08:
            max_len = most
        elif kind < 0.12:
            max_len = most + rng.randint(1, 2 * found.page_size)
        else:
            max_len = min(len(tokens) + rng.choice((1, 2, rng.randint(1, 12), rng.randint(1, 40))), most)
        # Answers are short, but for those that fill a pool, and only where a pool is soon full.
        if max_len - len(tokens) > 60 and (max_len < most or (max_len == most and most > 400)):
            max_len = len(tokens) + 60
        max_len = max(max_len, len(tokens) + 1)
        params = core.SamplingParams(
            seed=rng.randrange(3),
            stop_ids=frozenset(rng.sample(range(found.width), rng.choice((0, 1, 1, 2)))),
            min_tokens=rng.choice((0, 0, 0, 3)),
            presence_penalty=rng.choice((0.0, 0.5)),
        )
        number, claim = len(self.stories) + 1, self.order.claim()
        req = core.Req(number, salt, list(tokens), len(tokens), max_len, params, fork, claim=claim)
        req.promise = self.order.promise()
        req.forkable = req.id % 3 > 0
        story = self.stories[req.id] = ledger.Story(req, tuple(tokens), params)
        parent = None if fork is None else self.stories[fork.parent.id]
        too_big = max_len > found.capacity + 1
        full = len(scheduler.waiting) >= found.waiting_limit
        used = scheduler.pool.used_count
        try:
            scheduler.add(req)
        except core.Refusal as error:
            story.refused = code = error.code
        if story.refused is not None:
            assert code == ("context_length_exceeded" if too_big else "server_is_overloaded")
            assert too_big or full, "refused without a reason"
            assert not req.pages and req.lease is None and req.copy_from is None
            assert scheduler.pool.used_count == used and req.id not in scheduler.waiting
            self.seen[f"refused: {code}"] += 1
        else:
            assert not too_big and not full, "accepted what can never run, or too many"
            self.order.added(req)
            if max_len == most:
                self.seen["longest request that fits"] += 1
            if parent is not None:
                story.parent = parent
                self._note_fork(story)
        self._note("add", req.id, salt, len(tokens), max_len, story.refused)
        self._settled()

    # -- faults ------------------------------------------------------------------------------------------------

    _do_change = changes.do_change
    _do_fork, _note_fork = forks.do_fork, forks.note_fork
    _do_revive, _do_branch, _do_prune, _do_promote = (
        forks.do_revive, forks.do_branch, forks.do_prune, forks.do_promote,
    )  # fmt: skip

    def _meddle(self) -> None:
        self.pinning.meddle()
        rng = self.rng
        for fault, rate in self.drawn.faults.items():
            if rng.random() < rate:
                act = getattr(self, f"_do_{fault}", None)
                if act is not None:
                    act()

    def _pick(self, among: Iterable[Any]) -> Any:
        """A request of a state drawn first, so that rare states are met as often as common ones."""
        states: dict[str, list[Any]] = {}
        among = list(among)
        tempted, self.order.tempted = self.order.tempted, None
        if tempted in among:
            return tempted
        for req in among:
            states.setdefault(self._state(req), []).append(req)
        if not states:
            return None
        return self.rng.choice(states[self.rng.choice(sorted(states))])

    def _state(self, req: Any) -> str:
        phase, Phase = req.phase, self.core.Phase
        if req.finish is not None:
            return "after its end"
        if phase is Phase.PAUSED:
            return "paused with pages" if req.pages else "paused without pages"
        if req.retracting:
            return "retracting"
        if req.yielding and not req.pausing:
            return "making way"
        if req.pausing:
            return "pausing"
        if phase is Phase.WAITING:
            if req.copy_from is not None:
                return "queued with a part page to copy"
            return "queued with pages" if req.pages else "queued"
        if phase is Phase.PREFILL:
            return "prompt chunk in flight" if req.inflight else "between prompt chunks"
        if req.total_len == req.max_len:
            return "last token in flight"
        words = ("decoding, nothing in flight", "one step in flight", "two steps in flight")
        return words[min(req.inflight, 2)]

    def _do_cancel(self) -> None:
        req = self._pick(self.scheduler.reqs())
        if req is None:
            return
        state = self._state(req)
        self.seen[f"abort: {state}"] += 1
        self._note("cancel", req.id, state)
        if req.finish is None:
            story = self.stories[req.id]
            story.cancelled = True
            story.ends += 1
            story.end = self.core.FinishReason.CANCELLED
        held = req.inflight > 0
        self.scheduler.cancel(req)
        assert held or req.phase is self.core.Phase.DONE, "nothing is in flight, and it was not released"
        self._disturbed()

    def _do_echo(self) -> None:
        """Verbs that come twice, or too late."""
        req = self._pick(story.req for story in self.stories.values() if story.req.finish is not None)
        if req is None:
            return
        before = req.finish
        self._note("echo", req.id)
        self.seen["abort: after its end"] += 1
        self.rng.choice((self.scheduler.cancel, self.scheduler.pause, self.scheduler.resume))(req)
        assert req.finish is before, "the first reason stays"
        self._disturbed()

    def _do_pause(self) -> None:
        req = self._pick(req for req in self.scheduler.reqs() if not req.pausing)
        if req is None:
            return
        Phase = self.core.Phase
        word = {Phase.WAITING: "queued", Phase.PREFILL: "prompt", Phase.DECODE: "decoding"}[req.phase]
        self.seen[f"pause: {word}"] += 1
        self.stories[req.id].slept = True
        self._note("pause", req.id, word)
        self.scheduler.pause(req)
        self._disturbed()

    def _do_resume(self) -> None:
        req = self._pick(req for req in self.scheduler.reqs() if req.pausing)
        if req is not None:
            self._resume(req)

    def _resume(self, req: Any) -> None:
        self._note("resume", req.id)
        story = self.stories[req.id]
        if req.phase is not self.core.Phase.PAUSED:
            self.seen["pause taken back before it took place"] += 1
        elif story.grants:
            story.kept_pages, story.lost_pages = bool(req.pages), not req.pages
        self.scheduler.resume(req)
        self._disturbed()

    def _do_flush(self) -> None:
        if self.scheduler.tree.idle_pages:
            self.seen["flush with pages cached"] += 1
        self._note("flush", self.scheduler.flush_cache())
        self._disturbed()

    def _do_evict(self) -> None:
        self._note("evict", self.scheduler.tree.evict_one())
        self._disturbed()

    def _do_retract(self) -> None:
        """Take pages back for no reason; the words of a request must not depend on it."""
        able = (req for req in self.scheduler.reqs() if req.finish is None and not req.retracting)
        req = self._pick(req for req in able if req.pages or req.copy_from is not None)
        if req is None:
            return
        self._note("retract", req.id, self._state(req))
        self.forced = True
        self.scheduler._retract(req)
        self.forced = False
        self._disturbed()

    def _disturbed(self) -> None:
        self._waited = 0.0
        self._settled()

    # -- the end -----------------------------------------------------------------------------------------------

    def _wake_sleepers(self) -> None:
        """Nothing will happen any more unless those who sleep are woken."""
        assert not self._flight
        for req in list(self.scheduler.reqs()):
            assert req.pausing, "the clock stands still and somebody waits"
        sleeper = next(self.scheduler.reqs(), None)
        if sleeper is not None:
            self._resume(sleeper)

    def _last_words(self) -> None:
        """Everybody ended once, said what a lone run says, and everything was given back."""
        scheduler, found, Reason = self.scheduler, self.drawn, self.core.FinishReason
        assert scheduler.idle and scheduler.flight == 0
        assert not scheduler.waiting and not scheduler.running and not scheduler.paused
        for story in self.stories.values():
            req = story.req
            if story.refused is not None:
                assert story.ends == 0 and req.finish is None and not story.grants
                continue
            assert story.ends == 1, f"request {req.id} ended {story.ends} times"
            assert req.finish is story.end and req.phase is self.core.Phase.DONE
            wanted = changes.alone(self, story)
            if story.end in (Reason.STOP, Reason.LENGTH):
                assert story.told == wanted, f"request {req.id} said {story.told}, alone it says {wanted}"
                stopped = story.told[-1] in req.params.stop_ids and len(story.told) > req.params.min_tokens
                assert (story.end is Reason.STOP) == stopped
            else:
                assert story.told == wanted[: len(story.told)], f"request {req.id} said {story.told}"
                if story.end is Reason.ERROR:
                    assert story.spoilt_by is not None
                    if story.spoilt_by != req.id:
                        self.seen["a shared page spread a NaN"] += 1
            saved = min(story.first_start or 0, len(story.prompt))
            assert req.cached_len == saved, f"request {req.id} counts {req.cached_len} as cached, not {saved}"
            assert req.pages == [] and req.lease is None and req.slot is None and req.copy_from is None
        self.watch.counters()
        scheduler.flush_cache()
        scheduler.check()
        assert scheduler.pool.free_count == found.pages, "pages are lost"
        assert scheduler.slots.free_count == found.slots, "slots are lost"
        assert not len(scheduler.remnants)
        assert scheduler.tree.cached_pages == 0 and next(scheduler.tree.nodes(), None) is None
        assert not scheduler.tree._roots, "a tenant left something behind"
        self._note("end", sorted(self.seen.items()))


def trace(seed: int) -> str:
    """A hash of everything that happened in this seed."""
    world = World(seed, record=True)
    world.run()
    assert world.record is not None
    return hashlib.sha256("\n".join(world.record).encode()).hexdigest()


def command(seed: int, mutant: str | None = None) -> str:
    """What a person types to see this seed again."""
    return f"python -P tests/core/simulation.py --seed {seed}" + (f" --mutant {mutant}" if mutant else "")


def kept_seeds() -> list[int]:
    """Seeds that failed once, oldest first: the first word of each line of seeds.txt that is no remark."""
    lines = (HERE / "seeds.txt").read_text(encoding="utf-8").splitlines()
    return [int(line.split()[0]) for line in lines if line.strip() and not line.startswith("#")]


def run_many(seeds: Iterable[int], core: Core | None = None, mutant: str | None = None) -> Counter[str]:
    """What all seeds have shown together. AssertionError names the one command that repeats a failure."""
    total: Counter[str] = Counter()
    for seed in seeds:
        world = World(seed, core)
        try:
            world.run()
        except Exception as error:
            raise AssertionError(
                f"{type(error).__name__}: {error}\nagain: {command(seed, mutant)}"
            ) from error
        for name, count in world.seen.items():
            total[name] += count
        total["events"] += world.events
        total["steps"] += world.scheduler.counters.steps
    return total


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, help="one seed, reported in full")
    parser.add_argument("--seeds", metavar="A:B", help="all seeds from A up to B")
    parser.add_argument("--mutant", help="a planted bug of mutants.py")
    parser.add_argument("--hash", action="store_true", help="print a hash of what happened, for each seed")
    parser.add_argument("--mutants", action="store_true", help="at which seed each planted bug is caught")
    parser.add_argument("--trace", action="store_true", help="print what happened, line by line")
    given = parser.parse_args()
    core = None
    if given.mutant:
        core = load("planting").build(load("mutants").named(given.mutant))
    if given.seed is not None:
        world = World(given.seed, core, record=True)
        try:
            world.run()
        finally:
            assert world.record is not None
            for line in world.record if given.trace else ():
                print(line)
            print(f"seed {given.seed}: {world.drawn}")
            print(f"{world.events} events, {world.scheduler.counters}")
            print(f"{len(world.stories)} requests; met: {dict(sorted(world.seen.items()))}")
        return 0
    first, last = (int(part) for part in (given.seeds or "0:1000").split(":"))
    if given.hash:
        print("\n".join(trace(seed) for seed in range(first, last)))
        return 0
    if given.mutants:
        return int(load("planting").hunt(load("mutants").MUTANTS, range(first, last)))
    started = time.perf_counter()
    total = run_many([*kept_seeds(), *range(first, last)], core, given.mutant)
    seconds = time.perf_counter() - started
    count = last - first + len(kept_seeds())
    for name in swarm.GATES:
        print(f"{total[name]:8d}  {name}")
    print(f"{count} seeds, {total['steps']} steps, {total['events']} events in {seconds:.1f} s")
    missed = swarm.missed_gates(total, count)
    print("\n".join(f"too rare: {name}" for name in missed) or "every state was met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
