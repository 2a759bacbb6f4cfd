"""Mixed load with random aborts straight through scheduler and engine, until so many tokens were computed: no leak.

    headrace bench soak                                   the model inside the package, ten thousand tokens
    headrace bench soak ./Qwen3-0.6B --tokens 1000000 --weights random

Requests of many lengths and settings join, share prefixes, are forked, paused, retracted for want of pages and
aborted in every phase. The books are checked every few steps. Every tenth of the run everything ends, the cache is
dropped, every page must be free again, and the canary, one prompt alone, must answer with the tokens of its first
time. In float32 some greedy answers are also computed again, alone. A run that never met one of STATES proves
nothing about it and fails. The seed decides everything but how long it takes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from headrace.bench.machine import facts_of_machine
from headrace.bench.start import resident_mib
from headrace.runtime.config import EngineConfig
from headrace.runtime.demo_checkpoint import demo_folder
from headrace.runtime.engine import open_engine
from headrace.runtime.plan import StepPlan, StepResult
from headrace.runtime.request import FinishReason, ForkPoint, Phase, Req, SamplingParams
from headrace.runtime.scheduler import Scheduler

if TYPE_CHECKING:
    from headrace.runtime.cpu_engine import CpuEngine
    from headrace.runtime.device_engine import DeviceEngine

LULLS = 10  # times that everything ends
REPLAYS = 2  # greedy answers computed again at each of them, in float32
CANARY_TOKENS = 16
TENANTS = ("", "other")
STATES = (
    "retraction", "eviction", "prefix hit", "fork", "copied page", "pause", "stop", "length",
    "abort while waiting", "abort while prefill", "abort while decode", "abort while paused",
)  # fmt: skip


class Broken(AssertionError):
    """What the run was looking for. The message says what does not hold."""


class Soak:
    """One run. `step` until `tokens` reaches the goal, `lull` now and then."""

    def __init__(
        self,
        engine: CpuEngine | DeviceEngine,
        seed: int,
        prompt: int,
        output: int,
        abort: float,
        check_every: int,
    ) -> None:
        self.engine = engine
        self.random = random.Random(seed)
        self.prompt = prompt
        self.output = output
        self.abort = abort
        self.check_every = check_every
        size = engine.page_size
        longest = -(-(prompt + output) // size)
        # A third of what the requests that may run would like to have: pages change hands all the time.
        typical = -(-(prompt // 4 + output) // size)
        pages = min(engine.page_count, max(longest + 2, engine.max_running * typical // 3))
        self.scheduler = Scheduler(pages, size, engine.max_running, engine.chunk_tokens, ahead_tokens=0)
        self.vocab = engine.logits_width
        self.prefixes = [self.ids(self.random.randint(1, prompt // 2)) for _ in range(8)]
        self.flight: deque[tuple[StepPlan, Future[StepResult]]] = deque()
        self.live: dict[int, Req] = {}
        self.greedy: list[tuple[list[int], list[int]]] = []  # prompt and answer of some that ran to their end
        self.told: dict[int, list[int]] = {}
        self.seen: Counter[str] = Counter()
        self.requests = 0
        self.steps = 0
        self.canary: list[int] | None = None

    def ids(self, count: int) -> list[int]:
        return self.random.choices(range(self.vocab), k=count)

    @property
    def tokens(self) -> int:
        """Prompt tokens run through the model and tokens sampled."""
        counters = self.scheduler.counters
        return counters.prefill_tokens_computed + counters.decode_tokens_computed

    # -- load --------------------------------------------------------------------------------------------------

    def length(self, most: int) -> int:
        """As many short ones as long ones, in every power of two."""
        return max(1, min(most, round(2 ** self.random.uniform(0.0, most.bit_length()))))

    def settings(self) -> SamplingParams:
        """Every way to choose a token, greedy more often than any other."""
        draw = self.random
        if draw.random() < 0.4:
            return SamplingParams(temperature=0.0)
        return SamplingParams(
            temperature=draw.choice((0.0, 0.5, 1.0, 1.3)),
            top_k=draw.choice((0, 0, 20)),
            top_p=draw.choice((1.0, 1.0, 0.9)),
            min_p=draw.choice((0.0, 0.0, 0.05)),
            repetition_penalty=draw.choice((1.0, 1.0, 1.2)),
            presence_penalty=draw.choice((0.0, 0.0, 0.4)),
            logit_bias=draw.choice(((), ((draw.randrange(self.vocab), 3.0),))),
            seed=draw.getrandbits(64),
            stop_ids=frozenset(self.ids(draw.choice((0, 4, max(1, self.vocab // 40))))[:512]),
            min_tokens=draw.choice((0, 0, 2)),
        )

    def join(self) -> None:
        """One more request: on its own, behind a prefix that others have, or a fork."""
        parents = [req for req in self.live.values() if req.finish is None and req.output_len > 0]
        params = self.settings()
        if parents and self.random.random() < 0.1:
            parent = self.random.choice(parents)
            at = self.random.randint(1, min(len(parent.tokens), self.prompt - 1))
            tail = self.ids(self.length(self.prompt - at))
            self.open([*parent.tokens[:at], *tail], self.length(self.output), params, parent.salt, parent, at)
            self.seen["fork"] += 1
            return
        prefix = self.random.choice(self.prefixes) if self.random.random() < 0.5 else []
        tokens = [*prefix, *self.ids(self.length(self.prompt - len(prefix)))]
        self.open(tokens, self.length(self.output), params, self.random.choice(TENANTS))

    def open(
        self, tokens: list[int], output: int, params: SamplingParams, salt: str,
        parent: Req | None = None, at: int = 0,
    ) -> Req:  # fmt: skip
        fork = None if parent is None else ForkPoint(parent, at)
        req = Req(self.requests, salt, tokens, len(tokens), len(tokens) + output, params, fork)
        self.requests += 1
        self.scheduler.add(req)
        self.live[req.id] = req
        self.told[req.id] = []
        return req

    def disturb(self) -> None:
        """Abort, pause or resume somebody, as chance has it."""
        draw = self.random
        candidates = [req for req in self.live.values() if req.finish is None]
        if not candidates:
            return
        # As many aborts as make up this share of all requests, spread over their lives.
        if draw.random() < self.abort * len(candidates) / (self.output / 2):
            # As often in a phase that few are in as in one that many are in.
            phase = draw.choice(sorted({req.phase for req in candidates}, key=lambda phase: phase.value))
            req = draw.choice([req for req in candidates if req.phase is phase])
            self.seen[f"abort while {req.phase.value}"] += 1
            self.scheduler.cancel(req, FinishReason.CANCELLED)
            self.forget()
        if draw.random() < 0.1:
            self.scheduler.pause(draw.choice(candidates))
            self.seen["pause"] += 1
        for req in list(self.scheduler.paused.values()):
            if draw.random() < 0.05:
                self.scheduler.resume(req)

    # -- steps -------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Requests join, are disturbed, and one step is run."""
        while len(self.live) < self.engine.max_running * 5 // 4 and self.random.random() < 0.8:
            self.join()
        self.disturb()
        self.step(self.random.choice((None, None, 1, 4, 4, 16, 64, 256)))

    def step(self, budget: int | None = None) -> bool:
        """Launch what the engine takes, land one. False when nothing is left to do."""
        while len(self.flight) < self.engine.depth:
            most = None if budget is None else min(budget, self.engine.chunk_tokens)
            plan = self.scheduler.plan(most)
            if plan is None:
                break
            self.flight.append((plan, self.engine.launch(plan)))
        if self.flight:
            self.land()
        self.steps += 1
        if self.steps % self.check_every == 0:
            self.scheduler.check()
        return bool(self.flight) or not self.scheduler.idle

    def land(self) -> None:
        plan, future = self.flight.popleft()
        while self.engine.poll is not None and not future.done():
            self.engine.poll()
        for event in self.scheduler.retire(plan, future.result()):
            if event.token is None:
                raise Broken(f"request {event.req.id} met a number that is not finite")
            answer = self.told[event.req.id]
            answer.append(event.token)
            if answer != event.req.tokens[event.req.prompt_len :]:
                raise Broken(f"request {event.req.id} was told other tokens than its books hold")
        self.forget()

    def forget(self) -> None:
        """Requests that are done leave the books of this run."""
        for req in [req for req in self.live.values() if req.phase is Phase.DONE]:
            del self.live[req.id]
            answer = self.told.pop(req.id)
            assert req.finish is not None
            self.seen[req.finish.value] += 1
            if req.finish is FinishReason.LENGTH and len(answer) != req.max_len - req.prompt_len:
                raise Broken(f"request {req.id} ended at its length with {len(answer)} tokens")
            if req.finish is FinishReason.LENGTH and req.params == SamplingParams(temperature=0.0):
                self.greedy.append((req.tokens[: req.prompt_len], answer))

    def finish(self) -> None:
        """Run until everybody has ended."""
        while True:
            for req in list(self.scheduler.paused.values()):
                self.scheduler.resume(req)
            if not self.step() and not self.scheduler.paused:
                break
        if self.live:
            raise Broken(f"{len(self.live)} requests did not end")

    def lull(self) -> None:
        """Everything ends: nothing may be left of it. Then the canary sings."""
        self.finish()
        self.scheduler.check()
        self.scheduler.flush_cache()
        pool, slots = self.scheduler.pool, self.scheduler.slots
        if pool.used_count or slots.free_count != self.engine.max_running:
            raise Broken(
                f"{pool.used_count} pages and {self.engine.max_running - slots.free_count} slots leaked"
            )
        work = self.engine.idle_work
        if work is not None:
            work()
        canary = self.alone([7 % self.vocab] * min(9, self.prompt), CANARY_TOKENS)
        if self.canary is None:
            self.canary = canary
        elif canary != self.canary:
            raise Broken(f"the canary sang {canary}, at first {self.canary}")
        if self.engine.config.dtype == "float32":
            for prompt, answer in self.random.sample(self.greedy, min(REPLAYS, len(self.greedy))):
                if self.alone(prompt, len(answer)) != answer:
                    raise Broken(f"a prompt of {len(prompt)} tokens has another answer when it runs alone")
        self.greedy.clear()

    def alone(self, prompt: list[int], output: int) -> list[int]:
        """The greedy answer while nobody else is there, from an empty cache."""
        self.scheduler.flush_cache()
        greedy = SamplingParams(temperature=0.0)
        req = self.open(list(prompt), output, greedy, "")
        answer = self.told[req.id]
        self.finish()
        return answer

    def met(self) -> Counter[str]:
        """How often each of STATES was met."""
        counters = self.scheduler.counters
        self.seen["retraction"] = counters.retractions
        self.seen["eviction"] = counters.evicted_pages
        self.seen["copied page"] = counters.copied_pages
        self.seen["prefix hit"] = counters.cached_tokens
        return self.seen


def soak(run: Soak, goal: int, seconds: float, lulls: int = LULLS) -> str | None:
    """Run to `goal` tokens, or until so many seconds have passed; what broke, None if nothing did."""
    begin = time.monotonic()
    try:
        run.lull()
        for part in range(1, lulls + 1):
            while run.tokens < goal * part // lulls and time.monotonic() - begin < seconds:
                run.turn()
            run.lull()
            memory = torch.cuda.memory_allocated() >> 20 if torch.cuda.is_available() else 0
            print(
                f"{run.tokens:>10} tokens {run.steps:>8} steps {run.requests:>8} requests "
                f"{time.monotonic() - begin:>7.1f} s {memory:>7} MiB on the GPU",
                flush=True,
            )
    except AssertionError as error:
        return f"{type(error).__name__}: {error}"
    if run.tokens < goal:
        return f"only {run.tokens} of {goal} tokens in {seconds:g} s"
    missed = [state for state in STATES if not run.met()[state]]
    return f"never met: {', '.join(missed)}" if missed else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench; 0 if nothing broke. Prints a line for each tenth, then one line of JSON."""
    parser = argparse.ArgumentParser(
        prog="headrace bench soak",
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", nargs="?", type=Path, help="a model folder; without: the one in the package")
    parser.add_argument("--tokens", type=int, default=10_000, help="to compute, prompts included")
    parser.add_argument("--seconds", type=float, default=3600.0, help="give up after so many")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is drawn")
    parser.add_argument("--prompt", type=int, default=512, help="longest prompt")
    parser.add_argument("--output", type=int, default=128, help="longest answer")
    parser.add_argument("--abort", type=float, default=0.2, help="share of requests that are aborted, about")
    parser.add_argument("--check-every", type=int, default=16, help="steps between two checks of the books")
    parser.add_argument("--weights", choices=("checkpoint", "random"), default="checkpoint")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--max-running", type=int, default=0, help="slots (0: as the engine likes)")
    parser.add_argument(
        "--warm-seconds", type=float, default=20.0, help="that the start may spend on capturing graphs"
    )
    parser.add_argument("--threads", type=int, default=0, help="without a GPU: compute threads (0: cores)")
    parser.add_argument("--out", type=Path, help="write the JSON to this file as well")
    given = parser.parse_args(argv)
    if given.prompt < 4 or given.output < 4 or given.tokens < LULLS:
        parser.error(f"--prompt and --output from 4 on, --tokens from {LULLS} on")
    config = EngineConfig(
        device=given.device,
        dtype=given.dtype,
        weights=given.weights,
        max_running=given.max_running,
        threads=given.threads,
        warm_seconds=given.warm_seconds,
        max_context=given.prompt + given.output + 1,
    )
    engine = open_engine(given.model or demo_folder(), config)
    try:
        engine.warm()
        run = Soak(engine, given.seed, given.prompt, given.output, given.abort, given.check_every)
        begin, before = time.monotonic(), memory_now()
        trouble = soak(run, given.tokens, given.seconds)
        result: dict[str, Any] = {
            "bench": "soak",
            "model": engine.card.id,
            "device": given.device,
            "dtype": engine.config.dtype,
            "tokens": run.tokens,
            "requests": run.requests,
            "steps": run.steps,
            "seconds": round(time.monotonic() - begin, 1),
            "pages": run.scheduler.pool.count,
            "slots": engine.max_running,
            "met": {state: run.met()[state] for state in STATES},
            "memory_before": before,
            "memory_after": memory_now(),
            "trouble": trouble,
            "flags": {
                key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()
            },
            "machine": facts_of_machine(given.threads),
        }
    finally:
        engine.close()
    print(f"met: {', '.join(f'{state} {count}' for state, count in result['met'].items())}")
    print(f"BROKEN: {trouble}" if trouble else "every page came back, every canary sang the same")
    line = json.dumps(result)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(line + "\n")
    print(line)
    return 1 if trouble else 0


def memory_now() -> dict[str, Any]:
    """MiB of this process, and of the GPU."""
    found: dict[str, Any] = dict(resident_mib(os.getpid()) or {})
    if torch.cuda.is_available():
        found["gpu_mib"] = torch.cuda.memory_allocated() >> 20
    return found


if __name__ == "__main__":
    sys.exit(main())
