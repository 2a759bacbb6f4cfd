"""The model on a GPU: planned steps become replays of captured graphs, tokens never wait for the host.

Everything here runs on the thread of the event loop. `launch` packs a plan into one block of words, sends it and
replays the graph of its shape; sampled tokens stay on the device, where the next step finds them, and travel to the
host beside the next step. `poll` resolves the futures of the steps that have landed.

Who holds a block of the ring, from pack to poll: the host while it is packed; the device until the step's mark is
done. There are more blocks than steps in flight, so a block that is packed again has landed.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.graphs.keys import KeyList
from headrace.graphs.packed import ALIGN, INLINE_WRITES, PackedStep, StepKey, pack, places, view_block
from headrace.kernels.copy_page import copy_pages
from headrace.kernels.logprobs import PLACE_WORDS
from headrace.kernels.table_write import write_words
from headrace.runtime.backends.queue import DeviceQueue, Mark
from headrace.runtime.blueprint import Blueprint
from headrace.runtime.config import EngineConfig
from headrace.runtime.device_probe import DeviceProbe, ProbePlan, most_places
from headrace.runtime.device_sampler import DeviceSampler
from headrace.runtime.device_sizes import DeviceSizes
from headrace.runtime.device_slab import DeviceSlab
from headrace.runtime.device_weights import DeviceWeights, RandomParts
from headrace.runtime.eyes import BLOCK_ROWS, Eyes, image_blocks, image_stages
from headrace.runtime.lone_future import LoneFuture
from headrace.runtime.models.device_decoder import DeviceDecoder
from headrace.runtime.models.layers import NoOps
from headrace.runtime.pace import Pace
from headrace.runtime.plan import DecodeRows, PageCopy, SlotGrant, StepPlan, StepResult
from headrace.runtime.request import SamplingParams
from headrace.runtime.step_images import StepImages
from headrace.runtime.weights import MappedParts

log = logging.getLogger("headrace.engine")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEPTH = 2  # steps in flight
BLOCKS = DEPTH + 2
ASSUMED_RATE = 400e12  # operations per second, until steps were measured
SPILL_WORDS = 1 << 20  # int32 words of grants, copies and histories that travel beside one step


@dataclass(slots=True)
class _Block:
    """One place of the ring: pinned words of a step and where its tokens and logprobs arrive."""

    words: Tensor
    array: NDArray[np.int32]
    tokens: Tensor
    token_array: NDArray[np.int32]
    places: Tensor
    place_array: NDArray[np.int32]
    lanes: dict[StepKey, _Lane]
    mark: Mark | None = None


@dataclass(frozen=True, slots=True)
class _Lane:
    """The views that the copies of a step take, made once: words from the host, tokens back."""

    host_words: Tensor
    device_words: Tensor
    device_tokens: Tensor
    host_tokens: Tensor


@dataclass(slots=True)
class _Landing:
    """A launched step: its decode rows are the first samples of its key, `chunk` are the places of the others."""

    future: Future[StepResult]
    block: _Block
    decode: int
    chunk: tuple[int, ...]
    probes: ProbePlan | None


class DeviceEngine:
    """`launch` plans, `poll` for results. Raises CheckpointError or SettingError when it cannot be built.

    The attributes are those of the CPU engine: config, card, generation, page_count, page_size, max_running,
    max_context, chunk_tokens, embedding_rows, logits_width, sizes.
    """

    def __init__(
        self, blueprint: Blueprint, config: EngineConfig, sizes: DeviceSizes, queue: DeviceQueue
    ) -> None:
        self.queue = queue
        self.config = config
        self.sizes = sizes
        self.model_config = blueprint.config
        self.generation = blueprint.generation
        self.dtype = DTYPES[config.dtype]
        self.page_size = config.page_size
        self.page_count = sizes.page_count
        self.page_bytes = sizes.kv // sizes.page_count
        self.max_running = config.max_running
        self.max_context = config.max_context
        self.chunk_tokens = config.chunk_tokens
        self.depth = DEPTH
        self.masks = True
        self.keys = KeyList.of(config.max_running, config.chunk_tokens)
        sizes_of_chunks = self.keys.chunk_sizes()
        # A prompt token costs two operations per weight, at about half of what the tensor cores give.
        operations = 2.0 * sum(torch.Size(shape).numel() for shape in blueprint.outline.parts.values())
        self.pace = Pace(sizes_of_chunks, operations / ASSUMED_RATE, config.step_ms / 1e3)
        self.embedding_rows = self.logits_width = self.model_config.vocab_size
        self.images = blueprint.images(config.image_tokens)
        self.image_blocks = image_blocks(
            self.model_config, self.images, config.image_memory_mb, self.dtype.itemsize
        )
        self.image_block_rows = BLOCK_ROWS
        self.image_stages, self.whole_pictures = image_stages(self.model_config), False
        self.image_ratio = blueprint.image_ratio
        self.card = blueprint.card(config.dtype, config.max_context, sees=self.images is not None)
        largest = self.keys.largest
        device = queue.device
        log.info("memory: %s", sizes)
        with queue.turn(), torch.no_grad():
            parts = (
                RandomParts(self.dtype, device)
                if blueprint.checkpoint is None
                else MappedParts(blueprint.checkpoint, self.dtype)
            )
            with parts:
                source = DeviceWeights(parts, device)
                # No op of the model object is ever called: the decoder launches kernels on its weights.
                model = blueprint.build(self.model_config, source, NoOps(), self.dtype)
            self.sampler = DeviceSampler(self.max_running, largest.samples, self.logits_width, device)
            self.slab = DeviceSlab(
                self.model_config,
                self.dtype,
                device,
                self.page_count,
                self.page_size,
                self.max_running,
                -(-self.max_context // self.page_size),
                self.sampler.settings_words,
            )
            self.eyes: Eyes | None = None
            if self.images is not None:
                self.eyes = Eyes(model, self.images, self.image_blocks, self.max_running, self.dtype, device)
            self.decoder = DeviceDecoder(model, self.slab, largest, self.dtype, queue.processors, queue.early)
            _, words = places(largest)
            self._spill_at = words
            self._device_words = torch.zeros(words + SPILL_WORDS, dtype=torch.int32, device=device)
            self._tokens = torch.zeros(largest.samples, dtype=torch.int32, device=device)
            self._probe = DeviceProbe(self.decoder, largest, self._tokens)
            self._ring = deque(self._make_block(words + SPILL_WORDS, largest) for _ in range(BLOCKS))
        self.bucket = self.replays = 0  # rows of the last step as padded; steps that were captured graphs
        self._flight: deque[_Landing] = deque()
        self._replays: dict[StepKey, Callable[[], None]] = {}
        self._uncaptured = deque(self.keys.captured())
        self._views: dict[StepKey, PackedStep] = {}
        queue.wait()
        log.info("loaded %s, %d parameters as %s", self.card.id, blueprint.parameters, self.config.dtype)

    def _make_block(self, words: int, largest: StepKey) -> _Block:
        host, tokens = self.queue.host_words(words), self.queue.host_words(largest.samples)
        places = self.queue.host_words(most_places(largest) * PLACE_WORDS).view(-1, PLACE_WORDS)
        return _Block(host, host.numpy(), tokens, tokens.numpy(), places, places.numpy(), {})

    # -- steps -------------------------------------------------------------------------------------------------

    def launch(self, plan: StepPlan) -> Future[StepResult]:
        """Queue `plan` behind all plans launched before. Returns at once; `poll` resolves the future."""
        block = self._ring[0]
        self._ring.rotate(-1)
        assert block.mark is None or block.mark.done(), "more steps in flight than blocks"
        future: Future[StepResult] = LoneFuture()
        with self.queue.turn():
            key, chunk, probes = self._send(plan, block)
            seen = None if self.eyes is None else self._look(self.eyes, plan, key)
            if key is not None:
                self.bucket = key.samples
                replay = self._replays.get(key)
                if replay is None or seen is not None:
                    with torch.no_grad():
                        self._step(self._view(key), seen)
                else:
                    replay()
                    self.replays += 1
                lane = self._lane(key, block)
                lane.host_tokens.copy_(lane.device_tokens, non_blocking=True)
                if probes is not None:
                    with torch.no_grad():
                        count = self._probe.launch(*probes)
                    block.places[:count].copy_(self._probe.places[:count], non_blocking=True)
            block.mark = self.queue.mark()
        self._flight.append(
            _Landing(future, block, len(plan.decode), chunk, None if probes is None else probes[0])
        )
        return future

    def poll(self) -> bool:
        """Resolve the futures of all steps that have landed; True if there was one. Never waits."""
        found = False
        while self._flight:
            landing = self._flight[0]
            assert landing.block.mark is not None
            try:
                if not landing.block.mark.done():
                    break
            except Exception as error:  # the device is broken: so is every later step
                self._flight.popleft()
                landing.future.set_exception(error)
                return True
            self._flight.popleft()
            found = True
            tokens = landing.block.token_array
            found_tokens = tokens[: landing.decode].tolist()
            found_tokens += [int(tokens[place]) for place in landing.chunk]
            probes = landing.probes
            logprobs = None if probes is None else probes.read(landing.block.place_array)
            landing.future.set_result(StepResult(tuple(found_tokens), logprobs))
        return found

    def aside(self, work: Callable[[], None]) -> Future[None]:
        """Run `work` now: steps are launched from this thread, and what the device does is nobody's thread."""
        future: Future[None] = Future()
        try:
            work()
            future.set_result(None)
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Wait for launched steps and resolve them. Harmless when called twice."""
        self.queue.wait()
        while self.poll():
            pass

    def _send(
        self, plan: StepPlan, block: _Block
    ) -> tuple[StepKey | None, tuple[int, ...], tuple[ProbePlan, list[Tensor]] | None]:
        """Everything that the step reads is queued for the device: its words, and before them, what its slots'
        owners, tables and copies need. Returns the key, the places of sampled prefill rows among its samples, and
        its probes with their words."""
        spill: _Spill | None = None
        writes: tuple[Sequence[int], Sequence[int]] = ((), ())
        if plan.grants or plan.patches or plan.copies or plan.masks:
            spill, writes = self._spill(plan, block)
        if not plan.decode and not plan.prefill:
            if spill is not None:
                spill.send()
            return None, (), None
        decode = plan.decode
        assert isinstance(decode, DecodeRows) or all(row.sample for row in decode), "they are always sampled"
        key = self.keys.key_for(len(decode), plan.prefill_tokens, len(plan.prefill))
        pack(key, block.array, decode, plan.prefill, writes)
        lane = self._lane(key, block)
        lane.device_words.copy_(lane.host_words, non_blocking=True)
        probes = None
        if plan.probes:
            spill = spill or _Spill(self, block)
            probe_plan = self._probe.plan(plan, key)
            # The last words that are put: they lie there until the step behind this one sends its own.
            probes = probe_plan, spill.put(*probe_plan.words())
        if spill is not None:
            spill.send()
        return (
            key,
            tuple([key.decode + index for index, row in enumerate(plan.prefill) if row.sample]),
            probes,
        )

    def _lane(self, key: StepKey, block: _Block) -> _Lane:
        lane = block.lanes.get(key)
        if lane is None:
            _, words = places(key)
            lane = block.lanes[key] = _Lane(
                block.words[:words],
                self._device_words[:words],
                self._tokens[: key.samples],
                block.tokens[: key.samples],
            )
        return lane

    def _spill(self, plan: StepPlan, block: _Block) -> tuple[_Spill, tuple[list[int], list[int]]]:
        """What new owners, tables and copies need: words and launches beside the step, and the words of the tables
        that still fit into it."""
        changed: dict[int, int] = {}
        for grant in plan.grants:
            for places_, values in (
                self.slab.write_pages(grant.slot, 0, grant.pages),
                self.slab.write_settings(grant.slot, self.sampler.settings_row(grant)),
            ):
                changed.update(zip(places_, values, strict=True))
            if self.eyes is not None:
                changed.update(zip(*self.slab.write_shift(grant.slot, self.eyes.grant(grant)), strict=True))
        for patch in plan.patches:
            places_, values = self.slab.write_pages(patch.slot, patch.index, (patch.page,))
            changed.update(zip(places_, values, strict=True))
        spill = _Spill(self, block)
        where, values = list(changed), list(changed.values())
        inline = INLINE_WRITES if plan.decode or plan.prefill else 0
        for chunk in _pieces(len(where) - inline, SPILL_WORDS // 4):
            first = inline + chunk.start
            last = inline + chunk.stop
            target, new = spill.put(where[first:last], values[first:last])
            spill.then(partial(write_words, self.slab.arena, target, new))
        for grant in plan.grants:
            if grant.params.needs_history:
                (held,) = spill.put(self.sampler.history_words(grant))
                spill.then(partial(self.sampler.reset_history, grant.slot, held))
        for mask in plan.masks:
            (held,) = spill.put(self.sampler.mask_words(mask.grammar.mask()))
            spill.then(partial(self.sampler.set_mask, mask.slot, held))
        if plan.copies:
            pairs = [copy.source for copy in plan.copies], [copy.target for copy in plan.copies]
            sources, targets = spill.put(*pairs)
            spill.then(partial(copy_pages, self.slab.pages, sources, targets))
        return spill, (where[:inline], values[:inline])

    def _look(self, eyes: Eyes, plan: StepPlan, key: StepKey | None) -> StepImages | None:
        """Encode the plan's picture, and gather what its rows read of pictures: both queued ahead of the step."""
        with torch.no_grad():
            eyes.encode(plan.encodes)
            if key is None or not plan.prefill:
                return None
            return eyes.see(plan.decode, plan.prefill, key.decode, key.tokens, shifted=True)

    def _step(self, step: PackedStep, seen: StepImages | None = None) -> None:
        """The whole step, eager or under capture: tables, forward, choice of tokens."""
        write_words(self.slab.arena, step.write_places, step.write_values)
        logits = self.decoder.forward(step, seen)
        self.sampler.sample(
            logits,
            step.sample_slots,
            step.sample_positions,
            self.slab.settings,
            self._tokens[: step.key.samples],
            self.slab.last_tokens,
        )

    def _view(self, key: StepKey) -> PackedStep:
        found = self._views.get(key)
        if found is None:
            found = self._views[key] = view_block(key, self._device_words)
        return found

    # -- start -------------------------------------------------------------------------------------------------

    def warm(self, budget: float | None = None) -> None:
        """The graphs that matter first are captured, within `budget` seconds (None: as configured); the others
        follow in `idle_work`. Only before the first plan of a scheduler; captured steps run once, on padding."""
        budget = self.config.warm_seconds if budget is None else budget
        started = time.monotonic()
        self._exercise()
        count = len(self._uncaptured)
        while self.idle_work() and time.monotonic() - started < budget:
            pass
        left = len(self._uncaptured)
        log.info("captured %d of %d graphs in %.1f s", count - left, count, time.monotonic() - started)

    def _exercise(self) -> None:
        """Every launch that no graph holds has run once: compiled and loaded, not in the middle of a stream."""
        if self.eyes is not None:
            with self.queue.turn(), torch.no_grad():
                self.eyes.exercise()
        params = SamplingParams(repetition_penalty=2.0)
        copies = (PageCopy(0, 1),) if self.page_count > 1 else ()
        future = self.launch(StepPlan(0, (SlotGrant(0, 0, params, 1, (0,), (0,)),), (), copies, (), ()))
        with self.queue.turn(), torch.no_grad():
            self._probe.exercise()
        self.queue.wait()
        self.poll()
        assert future.done()

    def idle_work(self) -> bool:
        """Capture one more graph; False when all are. Only while no step is in flight."""
        assert not self._flight
        if not self._uncaptured:
            return False
        key = self._uncaptured.popleft()
        block = self._ring[0]
        pack(key, block.array, (), ())
        _, words = places(key)
        with self.queue.turn(), torch.no_grad():
            self._device_words[:words].copy_(block.words[:words], non_blocking=True)
            step = self._view(key)
            self._step(step)  # compiles and loads everything that capture must find ready
            self.queue.wait()
            self._replays[key] = self.queue.capture(lambda: self._step(step))
            self.queue.wait()
        return True


class _Spill:
    """Words that travel behind those of the step, and the launches that read them before it."""

    def __init__(self, engine: DeviceEngine, block: _Block) -> None:
        self.engine = engine
        self.block = block
        self.at = engine._spill_at
        self.launches: list[Callable[[], None]] = []

    def put(self, *parts: Sequence[int] | NDArray[np.int32]) -> list[Tensor]:
        """The words of `parts` on the device, once `send` was called. Parts that one launch reads belong into one
        call: what was put before may go out first, and its place is used again."""
        if self.at + sum(map(_aligned, map(len, parts))) > len(self.block.array):
            # Rare beyond measure (a thousand long histories in one step).
            self._flush()
        found = []
        for values in parts:
            end = self.at + len(values)
            assert end <= len(self.block.array), "what one launch reads is larger than the spill"
            self.block.array[self.at : end] = values
            found.append(self.engine._device_words[self.at : end])
            self.at += _aligned(len(values))
        return found

    def then(self, launch: Callable[[], None]) -> None:
        self.launches.append(launch)

    def _flush(self) -> None:
        self.send()
        self.engine.queue.wait()
        self.at = self.engine._spill_at
        self.launches.clear()

    def send(self) -> None:
        """Queue the copy of everything put, then the launches."""
        engine, start = self.engine, self.engine._spill_at
        if self.at > start:
            engine._device_words[start : self.at].copy_(self.block.words[start : self.at], non_blocking=True)
        for launch in self.launches:
            launch()


def _aligned(count: int) -> int:
    """Words that so many take up, so that the next ones begin where Triton likes its pointers."""
    return -(-count // ALIGN) * ALIGN


def _pieces(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(count); none for a negative count."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
