"""Small checkpoints without transformers, and the GPU engine driven step by step with plans made by hand."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from headrace.bench.shapes import weight_shapes
from headrace.graphs.packed import StepKey, pack, places
from headrace.runtime.device_engine import DeviceEngine
from headrace.runtime.gallery import Gallery
from headrace.runtime.image import ImageSpan
from headrace.runtime.logprobs import LogprobWish, TokenLogprob
from headrace.runtime.plan import PlanRow, SlotGrant, StepPlan, StepResult
from headrace.runtime.request import FinishReason, ForkPoint, Req, SamplingParams, TokenGrammar
from headrace.runtime.scheduler import Scheduler

GREEDY = SamplingParams(temperature=0.0)
SMALL: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "bos_token_id": None,
    "eos_token_id": None,
}


def write_small(folder: Path, seed: int = 1, **changes: Any) -> Path:
    """A checkpoint with random weights, so spread that logits differ and answers do not repeat themselves."""
    config = SMALL | changes
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in weight_shapes(config):
        noise = torch.randn(shape, generator=generator)
        wide = 0.3 if "embed" in name else 1.6 / shape[-1] ** 0.5
        tensors[name] = 1.0 + 0.2 * noise if "norm" in name else wide * noise
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def plan_of(**parts: Any) -> StepPlan:
    empty: dict[str, Any] = {"grants": (), "patches": (), "copies": (), "decode": (), "prefill": ()}
    return StepPlan(0, **{**empty, **parts})


def wait(engine: DeviceEngine, future: Any) -> tuple[int, ...]:
    """What the step sampled."""
    while not future.done():
        engine.poll()
    return future.result().tokens


def step(engine: DeviceEngine, **parts: Any) -> tuple[int, ...]:
    """One step on its own."""
    return wait(engine, engine.launch(plan_of(**parts)))


def grant(slot: int, *pages: int, prompt_len: int = 1, params: SamplingParams = GREEDY) -> SlotGrant:
    return SlotGrant(slot, slot, params, prompt_len, pages, ())


class Exact:
    """A KeyList that pads nothing."""

    @staticmethod
    def key_for(decode: int, chunk: int, rows: int) -> StepKey:
        return StepKey(decode, chunk, rows)


class Populated:
    """An engine whose slots hold prompts of these lengths, with room for `spare` more tokens each.

    Pages are dealt in random order; `free` are those that nobody has. Everything that nobody wrote is NaN: free
    pages, cells behind a prompt, and all pages that unused entries of the page table name.
    """

    def __init__(
        self, engine: DeviceEngine, lengths: Sequence[int], *, spare: int = 40, seed: int = 3,
        params: Sequence[SamplingParams] = (),
    ) -> None:  # fmt: skip
        assert len(lengths) <= engine.max_running
        self.engine = engine
        self.random = random.Random(seed)
        self.lengths = list(lengths)
        self.free = list(range(engine.page_count))
        self.random.shuffle(self.free)
        nobody = self.free.pop()
        fill_pages(engine, float("nan"))
        vocab = engine.model_config.vocab_size
        self.prompts = [tuple(self.random.choices(range(vocab), k=length)) for length in lengths]
        self.pages: list[tuple[int, ...]] = []
        grants = []
        for slot, length in enumerate(lengths):
            needed = -(-(length + spare) // engine.page_size)
            self.pages.append(tuple(self.free.pop() for _ in range(needed)))
            filler = (nobody,) * (engine.slab.pages_per_slot - needed)
            chosen = params[slot] if params else GREEDY
            history = self.prompts[slot] if chosen.needs_history else ()
            grants.append(SlotGrant(slot, slot, chosen, length, self.pages[slot] + filler, history))
        step(engine, grants=tuple(grants))
        for rows in self.chunks():
            step(engine, prefill=rows)

    def chunks(self) -> Iterator[tuple[PlanRow, ...]]:
        """The prompts as steps of at most `chunk_tokens`."""
        rows: list[PlanRow] = []
        room = self.engine.chunk_tokens
        for slot, prompt in enumerate(self.prompts):
            start = 0
            while start < len(prompt):
                part = prompt[start : start + room]
                rows.append(PlanRow(slot, slot, start, len(part), part, start + len(part) == len(prompt)))
                start += len(part)
                room -= len(part)
                if not room:
                    yield tuple(rows)
                    rows, room = [], self.engine.chunk_tokens
        if rows:
            yield tuple(rows)

    def decode(self, slots: Sequence[int]) -> tuple[PlanRow, ...]:
        """Rows that go on from what each slot sampled last."""
        return tuple(PlanRow(slot, slot, self.lengths[slot], 1, None, True) for slot in slots)

    def extend(self, slots: Sequence[int], tokens: int) -> tuple[PlanRow, ...]:
        """Rows that feed `tokens` new ids between them, as evenly as may be, at the end of each slot's tokens."""
        rows = []
        for place, slot in enumerate(slots):
            count = tokens // len(slots) + (place < tokens % len(slots))
            ids = tuple(self.random.choices(range(self.engine.model_config.vocab_size), k=count))
            rows.append(PlanRow(slot, slot, self.lengths[slot], count, ids, True))
        return tuple(rows)


class State:
    """Everything that a step may change and the next one reads."""

    def __init__(self, engine: DeviceEngine) -> None:
        self.engine = engine
        with engine.queue.turn():
            self.held = [(part, part.clone()) for part in self.parts(engine)]
        engine.queue.wait()

    @staticmethod
    def parts(engine: DeviceEngine) -> list[torch.Tensor]:
        return [engine.slab.pages, engine.slab.arena, engine.slab.last_tokens, engine.sampler.history]

    def put_back(self) -> None:
        with self.engine.queue.turn():
            for part, kept in self.held:
                part.copy_(kept)

    def equals(self, other: State) -> bool:
        """Bit for bit, one NaN being as good as another."""
        return all(
            torch.equal(own.nan_to_num(-7e7), theirs.nan_to_num(-7e7))
            for (_, own), (_, theirs) in zip(self.held, other.held, strict=True)
        )


def fill_pages(engine: DeviceEngine, content: float | torch.Tensor) -> None:
    """Every page holds this, in the order of the engine's steps."""
    with engine.queue.turn():
        if isinstance(content, torch.Tensor):
            engine.slab.pages.copy_(content)
        else:
            engine.slab.pages.fill_(content)


def poison(engine: DeviceEngine, key: StepKey) -> None:
    """Garbage wherever a step of `key` promises not to look: activations, results, and the words that belong to no
    field of its block."""
    decoder, space = engine.decoder, engine.sampler.scratch
    parts = [decoder.scratch.outs, decoder.scratch.sums, decoder.shares.partials, engine._tokens]
    parts += [getattr(decoder.buffers, name) for name in decoder.buffers.__slots__]
    parts += [part for name in space.__slots__ if isinstance(part := getattr(space, name), torch.Tensor)]
    where, words = places(key)
    unowned = torch.ones(engine._device_words.numel(), dtype=torch.bool)
    for first, end in where.values():
        unowned[first:end] = False
    assert end <= words
    with engine.queue.turn():
        for part in parts:
            part.fill_(float("nan") if part.is_floating_point() else 1 << 30)
        engine._device_words.masked_fill_(unowned.to(engine._device_words.device), 1 << 30)


class Stepper:
    """Runs one plan in several ways from the same state."""

    def __init__(self, engine: DeviceEngine) -> None:
        self.engine = engine

    def send(self, plan: StepPlan, key: StepKey | None = None) -> StepKey:
        """The words of the plan's rows on the device, padded to `key` (None: as the engine does)."""
        engine = self.engine
        if key is None:
            key = engine.keys.key_for(len(plan.decode), plan.prefill_tokens, len(plan.prefill))
        block = engine._ring[0]
        pack(key, block.array, plan.decode, plan.prefill)
        _, words = places(key)
        with engine.queue.turn():
            engine._device_words[:words].copy_(block.words[:words])
        engine.queue.wait()
        return key

    def run(self, key: StepKey, *, replay: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and tokens of the step whose words are there: eager, or by its graph."""
        engine = self.engine
        with engine.queue.turn(), torch.no_grad():
            if replay:
                engine._replays[key]()
            else:
                engine._step(engine._view(key))
            logits = engine.decoder.buffers.logits[: key.samples].clone()
            tokens = engine._tokens[: key.samples].clone()
        engine.queue.wait()
        return logits, tokens


def live(plan: StepPlan, key: StepKey) -> list[int]:
    """Where the samples of the plan's rows are among those of `key`."""
    return [*range(len(plan.decode)), *range(key.decode, key.decode + len(plan.prefill))]


class Run:
    """A scheduler over an engine, with as many steps in flight as the engine likes; the books are checked at every
    landing. Works on the CPU engine, too. `on_plan` sees every plan before its launch."""

    def __init__(self, engine: Any, **settings: Any) -> None:
        given = {
            "page_count": engine.page_count,
            "page_size": engine.page_size,
            "slots": engine.max_running,
            "chunk_tokens": engine.chunk_tokens,
            "gallery": Gallery(
                engine.image_blocks, engine.image_block_rows, engine.image_stages, engine.whole_pictures
            ),
        }
        self.engine = engine
        self.scheduler = Scheduler(**{**given, **settings})
        self.flight: deque[tuple[StepPlan, Future[StepResult]]] = deque()
        self.steps = 0
        self.next_id = 0
        self.told: dict[int, list[int]] = {}  # by request: what its reader is given
        self.logprobs: dict[int, list[TokenLogprob]] = {}

    def add(
        self, prompt: Sequence[int], new_tokens: int, params: SamplingParams = GREEDY, parent: Req | None = None,
        at: int = 0, wish: LogprobWish | None = None, spans: tuple[ImageSpan, ...] = (),
        grammar: TokenGrammar | None = None,
    ) -> Req:  # fmt: skip
        """`parent`: the request is a fork of it, behind `at` tokens."""
        fork = None if parent is None else ForkPoint(parent, at)
        longest = len(prompt) + new_tokens
        req = Req(self.next_id, "", list(prompt), len(prompt), longest, params, fork, wish, grammar, spans)
        self.next_id += 1
        self.scheduler.add(req)
        return req

    def cancel(self, req: Req) -> None:
        self.scheduler.cancel(req, FinishReason.CANCELLED)

    def launch(self) -> bool:
        """Plan and launch one step; False if there was nothing to plan."""
        plan = self.scheduler.plan()
        if plan is None:
            return False
        self.flight.append((plan, self.engine.launch(plan)))
        self.steps += 1
        return True

    def retire(self) -> None:
        """Wait for the oldest step and settle it."""
        plan, future = self.flight.popleft()
        while self.engine.poll is not None and not future.done():
            self.engine.poll()
        for event in self.scheduler.retire(plan, future.result()):
            if event.token is not None:
                self.told.setdefault(event.req.id, []).append(event.token)
            if event.logprob is not None:
                self.logprobs.setdefault(event.req.id, []).append(event.logprob)
        self.scheduler.check()

    def step(self) -> bool:
        """Launch until the engine is full or nothing can be planned, retire one. False when nothing is left."""
        while len(self.flight) < self.engine.depth and self.launch():
            pass
        if self.flight:
            self.retire()
        return bool(self.flight) or not self.scheduler.idle

    def finish(self) -> None:
        while self.step():
            assert self.steps < 20_000, "the requests do not come to an end"

    def leaked(self) -> int:
        """Pages in use after everything ended and the cache was dropped."""
        assert self.scheduler.idle
        self.scheduler.flush_cache()
        return self.scheduler.pool.used_count

    def answer(self, req: Req) -> list[int]:
        """What the reader was given; what a step computed beyond the end is not part of it."""
        return self.told.get(req.id, [])
