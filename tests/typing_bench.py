"""A typist over the real Runtime, StepLoop and Scheduler and the page-reading fake engine.

python -P tests/typing_bench.py --scripts 10000      random scripts; at the end: were all ids those of one shot?
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from fake_engine import FakeEngine, replay
from fake_prompter import CARD
from typing_scripts import script

from headrace.runtime.gallery import Gallery
from headrace.runtime.interface import Ask, Draft, Message, Prompter, Runtime, TokenStream
from headrace.runtime.loop import StepLoop
from headrace.runtime.request import SamplingParams
from headrace.runtime.scheduler import Scheduler
from headrace.runtime.typed import with_last

WIDTH = 4096  # of the fake model: more than any of the vocabularies
WAIT = 120.0  # seconds; only what never comes takes as long


class TypingBench:
    """`gated` as in FakeEngine; everything waits for a condition."""

    def __init__(self, prompter: Prompter, width: int, *, gated: bool = True, **sizes: Any) -> None:
        self.prompter = prompter
        self.width = width
        self.engine = FakeEngine(gated=gated, width=width, **{"page_count": 1024, **sizes})
        self.scheduler = Scheduler(
            self.engine.page_count,
            self.engine.page_size,
            self.engine.max_running,
            self.engine.chunk_tokens,
            gallery=Gallery(64, 16),
        )
        self.loop = StepLoop(self.scheduler, self.engine)
        self.runtime = Runtime(CARD, prompter, self.loop, self.engine.max_context)
        self.runtime.ready = True
        self.drafting = self.runtime.drafting

    async def until(self, holds: Callable[[], Any], *, land: bool = True) -> None:
        """Let steps land one by one until `holds()`; without `land`, only what needs none happens."""
        end = time.monotonic() + WAIT
        while not holds():
            assert time.monotonic() < end, "the condition was not reached"
            if land:
                self.engine.land(1)
            await asyncio.sleep(0)

    def open(self, ask: Ask) -> Draft:
        return self.drafting.open(ask, lambda draft: None)

    async def read(self, draft: Draft) -> None:
        """Until the text is tokenized; nothing lands by this."""
        await self.until(lambda: not draft.reading and draft.read == draft.text, land=False)

    async def rested(self, draft: Draft) -> None:
        """Until everything that is certain is computed: the typist has paused for long enough."""
        await self.read(draft)
        await self.until(lambda: self.drafting.ready(draft) == draft.stable and not self.loop.flight)

    async def answer(self, stream: TokenStream) -> list[int]:
        """The tokens of the answer, to its end."""
        said: list[int] = []

        def over() -> bool:
            said.extend(entry.token for entry in stream.take())
            return stream.finish is not None

        await self.until(over)
        over()
        return said

    def alone(self, ask: Ask) -> list[int]:
        """What a request says that nobody typed ahead for."""
        assert ask.max_tokens is not None
        prompt = list(self.prompter.prepare(ask).ids)
        stops = frozenset[int]() if ask.ignore_eos else self.prompter.eos_ids
        params = SamplingParams(seed=ask.seed or 0, stop_ids=stops)
        return replay(prompt, ask.max_tokens, params, self.width)

    async def empty(self) -> None:
        """Nothing is held by anybody."""
        await self.until(lambda: self.scheduler.idle and not self.loop.live and not self.loop.flight)
        self.scheduler.check()
        assert self.scheduler.pages_in_use == 0 and not self.scheduler.drafts.held
        assert self.scheduler.slots.free_count == self.engine.max_running

    async def play(self, history: tuple[Message, ...], seed: int, edits: int) -> Draft:
        """One script from its first key to its answer; steps land, or do not, as the seed says. The ids at the end
        are those of one shot, and so is the answer."""
        rng = random.Random(seed)
        empty = Ask(messages=(*history, Message("user", "")), max_tokens=3, seed=seed)
        draft = self.open(empty)
        text = ""
        for text in script(rng, edits):
            self.drafting.write(draft, with_last(empty, text))
            for _ in range(rng.choice((0, 0, 1, 4))):
                self.engine.land(rng.choice((0, 1)))
                await asyncio.sleep(0)
            if rng.random() < 0.5:
                await self.read(draft)
        kind = rng.random()
        if kind < 0.5:
            await self.rested(draft)
        text = text or "x"
        ask = with_last(replace(empty, ignore_eos=True), text)
        stream = self.drafting.send(draft, ask, lambda stream: None)
        said = await self.answer(stream)
        assert draft.over and draft.outcome is not None and stream.req is not None
        one = self.prompter.prepare(ask).ids
        assert tuple(stream.req.tokens[: stream.prompt_tokens]) == one, (
            f"script {seed}: other ids than in one shot"
        )
        assert said == self.alone(ask), f"script {seed}: another answer than in one shot"
        return draft


async def run(bench: TypingBench, scripts: range, edits: int = 12) -> dict[str, float]:
    """Many scripts, behind a history; what reading ahead was worth."""
    history = (
        Message("user", "Tell me of the river. " * 20),
        Message("assistant", "It turns the wheel. 水车。 " * 20),
    )
    for seed in scripts:
        await bench.play(history[: (0, 2)[seed % 2]], seed, edits)
    await bench.empty()
    return bench.drafting.stats()


def folders(root: Path) -> dict[str, Prompter]:
    """The demo model's prompter, and those of tests/text with tokenizers of every supported kind."""
    from headrace.runtime.demo_checkpoint import demo_folder
    from headrace.runtime.prompt import FolderPrompter

    place = Path(__file__).resolve().parent / "text" / "conftest.py"
    spec = importlib.util.spec_from_file_location("tests_text_models", place)
    assert spec is not None and spec.loader is not None
    models = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = models
    spec.loader.exec_module(models)
    kinds = [name for name in models.KINDS if name != "gpt2"]  # which has no chat template
    found: dict[str, Prompter] = {"demo": FolderPrompter(demo_folder(), WIDTH, WIDTH)}
    return found | {name: models.build(name, root / name).prompter for name in kinds}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scripts", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        prompters = folders(Path(root))
    done = 0
    for index, (name, prompter) in enumerate(prompters.items()):
        started = time.perf_counter()
        mine = range(done, given.scripts * (index + 1) // len(prompters))
        done = mine.stop
        width = min(WIDTH, prompter.logits_width)
        bench = TypingBench(prompter, width, slots=4)
        stats = asyncio.run(run(bench, mine))
        bench.runtime.close()
        used, wasted = stats["draft_tokens_used"], stats["draft_tokens_wasted"]
        print(
            f"{name:8} {len(mine)} scripts in {time.perf_counter() - started:.1f} s: all ids and answers as in one "
            f"shot; of the tokens read ahead {used:.0f} were used and {wasted:.0f} were not",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
