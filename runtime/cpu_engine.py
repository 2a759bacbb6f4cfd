"""The model on the CPU: loads it, owns all its memory, and runs planned steps one after the other.

Everything that touches a tensor happens on the backend's one worker thread, in the order of the calls to `launch`.
The static inputs, the tables and the slab therefore have a single writer and need no lock.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headrace.graphs.inputs import RowLayout, StepBuffers, StepInputs
from headrace.runtime.backends.base import Backend
from headrace.runtime.backends.cpu import CpuBackend, free_bytes, has_bf16, physical_cores
from headrace.runtime.backends.steady import SteadyBackend
from headrace.runtime.blueprint import Blueprint
from headrace.runtime.config import EngineConfig, Facts, resolve
from headrace.runtime.eyes import BLOCK_ROWS, Eyes, image_blocks, image_stages, sees_mutually
from headrace.runtime.logprobs import Logprobs
from headrace.runtime.models.native import (
    native_obstacles,
    plain_elements,
    reads_plain,
    start_compiling,
)
from headrace.runtime.pace import Pace
from headrace.runtime.plan import NON_FINITE, PlanRow, SlotGrant, StepPlan, StepResult
from headrace.runtime.probing import Probed
from headrace.runtime.receipt import digest_facts, digest_files
from headrace.runtime.request import SamplingParams
from headrace.runtime.sampling import SamplingTable
from headrace.runtime.slab import KVSlab, measure, page_bytes
from headrace.runtime.weights import MappedWeights

if TYPE_CHECKING:
    from headrace.runtime.models.host_decoder import HostDecoder

log = logging.getLogger("headrace.engine")

ASSUMED_RATE = 2e11  # operations in a second, until a step was seen
PROBE_ROWS = 64  # prompt tokens whose logits are at hand at one time
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class CpuEngine:
    """`launch` plans, get results. Raises CheckpointError or SettingError when it cannot be built.

    config: every automatic choice resolved. card, generation: what the folder says about the model. page_count,
    page_size, max_running, max_context, chunk_tokens, image_blocks, image_block_rows, image_stages, whole_pictures:
    what a Scheduler for this engine needs. image_ratio: see Blueprint. Prompt ids lie below `embedding_rows`,
    sampled ones below `logits_width`. images: how the model wants pictures, None if it takes none.
    """

    masks = True  # it asks the grammars of a plan for their masks
    depth = 1  # the cores are busy with one step; a second in line would only make joiners wait
    poll = None
    idle_work = None
    replays = 0  # no step is a captured graph
    bucket = 0  # rows of the step launched last; nothing is padded

    def __init__(self, blueprint: Blueprint, config: EngineConfig) -> None:
        self.model_config = blueprint.config
        self.generation = blueprint.generation
        outline = blueprint.outline
        token_bytes = page_bytes(self.model_config, 1, torch.float32)
        plain = plain_elements(self.model_config, outline.parts)
        obstacle, team_obstacle = native_obstacles(self.model_config)
        self.config = resolve(
            config,
            Facts(
                bf16=has_bf16(),
                cores=physical_cores(),
                free_memory=free_bytes(),
                weight_elements=outline.kept,
                kv_token_elements=token_bytes // torch.float32.itemsize,
                max_positions=self.model_config.max_positions,
                plain_elements=plain,
                native_obstacle=obstacle,
                team_obstacle=team_obstacle,
            ),
        )
        native = self.config.decode == "native"
        if not native and config.decode == "auto":
            why = (
                ("it is deterministic" if self.config.deterministic else obstacle)
                or (team_obstacle if self.config.threads > 1 else "")
                or "it would take too much memory"
            )
            log.info("torch runs all steps, which is slower for few streams: %s", why)
        self.dtype = DTYPES[self.config.dtype]
        self.page_size = self.config.page_size
        self.page_bytes = page_bytes(self.model_config, self.page_size, self.dtype)
        self.page_count = (self.config.kv_memory_mb << 20) // self.page_bytes
        self.max_running = self.config.max_running
        self.max_context = self.config.max_context
        self.chunk_tokens = self.config.chunk_tokens
        self.embedding_rows = self.logits_width = self.model_config.vocab_size
        # It bounds no step by itself: chunks are as large as configured unless a reader was promised a pace.
        sizes = [size for size in (16, 32, 64, 128, 256, 512) if size < self.chunk_tokens]
        prior = 2.0 * outline.kept / ASSUMED_RATE
        self.pace = Pace((*sizes, self.chunk_tokens), prior, math.inf)
        pages_per_slot = -(-self.max_context // self.page_size)
        self.images = blueprint.images(self.config.image_tokens)
        self.image_blocks = image_blocks(
            self.model_config, self.images, self.config.image_memory_mb, self.dtype.itemsize
        )
        self.image_block_rows = BLOCK_ROWS
        self.image_stages, self.whole_pictures = (
            image_stages(self.model_config),
            sees_mutually(self.model_config),
        )
        self.image_ratio = blueprint.image_ratio
        most_tokens = self.chunk_tokens
        if self.whole_pictures and self.images is not None:
            most_tokens = max(most_tokens, self.images.row_limit)  # what no chunk may split
        self.sizes = measure(
            self.model_config,
            self.dtype,
            outline.kept,
            self.page_count,
            self.page_size,
            self.max_running,
            pages_per_slot,
            most_tokens,
            self.image_blocks * BLOCK_ROWS,
            plain if native else 0,
        )
        log.info("memory: %s", self.sizes)
        self.card = blueprint.card(self.config.dtype, self.max_context, sees=self.images is not None)
        self.backend: Backend = self._backend()

        checkpoint = blueprint.checkpoint
        assert checkpoint is not None, "resolve refuses random weights on the CPU"

        # LLVM works beside the reading of the weights.
        compiling = None
        if native:
            compiling = start_compiling(self.model_config, self.dtype, self.page_size, self.config.threads)

        def load() -> None:
            source = MappedWeights(checkpoint, self.dtype, self.backend)
            if native:
                source.keep = partial(reads_plain, self.model_config)
            with source:
                self.model = blueprint.build(self.model_config, source, self.backend.ops, self.dtype)
            self.kv = KVSlab(
                self.model_config,
                self.dtype,
                self.page_count,
                self.page_size,
                self.max_running,
                pages_per_slot,
            )
            self.buffers = StepBuffers(most_tokens + self.max_running, self.max_running)
            self.eyes: Eyes | None = None
            if self.images is not None:
                self.eyes = Eyes(self.model, self.images, self.image_blocks, self.max_running, self.dtype)
            self.decoder: HostDecoder | None = None
            weigh = None
            if compiling is not None:
                try:
                    made = compiling.result()
                except Exception:
                    if config.decode == "native":
                        raise
                    # Another release of LLVM, a CPU nobody tried: slow answers are better than none.
                    log.exception("the native step cannot be compiled; torch runs all steps")
                else:
                    self.decoder, weigh = made.decoder(self.model, self.kv), made.weigh
            self.sampling = SamplingTable(self.max_running, self.logits_width, weigh=weigh)

        try:
            self.backend.submit(load).result()
        except BaseException:
            self.backend.close()
            raise
        if isinstance(self.backend, SteadyBackend):
            self.card = replace(
                self.card,
                weights=digest_files(blueprint.folder.glob("*.safetensors")),
                computing=digest_facts({**self.backend.plan, "dtype": self.config.dtype}),
            )
        log.info("loaded %s, %d parameters as %s", self.card.id, blueprint.parameters, self.config.dtype)

    def _backend(self) -> Backend:
        model = self.model_config
        if self.config.deterministic:
            return SteadyBackend(self.config.threads, self.dtype, model.heads, model.kv_heads, model.head_dim)
        return CpuBackend(self.config.threads, self.dtype, model.kv_heads * model.head_dim)

    def launch(self, plan: StepPlan) -> Future[StepResult]:
        """Run `plan` after all plans launched before. Cheap; the future is resolved on the worker thread.

        A future that holds an exception means that the engine is broken: no later step may be trusted."""
        self.bucket = len(plan.decode) + len(plan.prefill)
        return self.backend.submit(lambda: self._run(plan))

    def aside(self, work: Callable[[], None]) -> Future[None]:
        """Run `work` on the worker thread, after all plans launched before."""
        return self.backend.submit(work)

    def close(self) -> None:
        """Wait for launched steps and stop the worker. Harmless when called twice."""
        self.backend.close()

    def _run(self, plan: StepPlan) -> StepResult:
        # This order is the plan's promise: owners, then tables, then copies, before any row reads or writes.
        for grant in plan.grants:
            self.kv.grant(grant.slot, grant.pages)
            self.sampling.grant(grant)
            if self.eyes is not None:
                self.eyes.grant(grant)
        for patch in plan.patches:
            self.kv.patch(patch.slot, patch.index, patch.page)
        if plan.copies:
            sources = torch.tensor([copy.source for copy in plan.copies])
            targets = torch.tensor([copy.target for copy in plan.copies])
            self.backend.ops.copy_pages(self.kv.data, sources, targets)
        if self.eyes is not None:
            self.eyes.encode(plan.encodes)
        if not plan.rows:
            return StepResult(())
        inputs = self.layout(plan.decode, plan.prefill)
        masks = {mask.slot: mask.grammar.mask() for mask in plan.masks}
        sampled = [row for row in plan.rows if row.sample]
        if self.decoder is not None and inputs.shape.tokens <= self.decoder.most and self._plain_tokens(plan):
            shift = None
            if self.eyes is not None and self.eyes.by_axes:
                shift = self.eyes.spans.shift[inputs.token_slots.numpy()]
            hidden, logits = self.decoder.run(inputs, shift)
            if not sampled:
                return StepResult((), self._probe(plan, hidden, None, ()) if plan.probes else None)
            if len(sampled) < len(logits):
                logits = logits.index_select(0, inputs.sample_tokens)
            return self._sample(plan, sampled, masks, hidden, logits)
        seen = None
        if self.eyes is not None:
            seen = self.eyes.see(plan.decode, plan.prefill, len(plan.decode), inputs.shape.tokens)
        hidden = self.model.hidden(inputs, self.kv, seen)
        if not sampled:
            return StepResult((), self._probe(plan, hidden, None, ()) if plan.probes else None)
        logits = self.model.logits(hidden.index_select(0, inputs.sample_tokens))
        return self._sample(plan, sampled, masks, hidden, logits)

    def _plain_tokens(self, plan: StepPlan) -> bool:
        """True if no token of the step is a picture's, nor stands before the end of one."""
        if self.eyes is None:
            return True
        return self.eyes.spans.settled(plan.prefill) and not any(row.images for row in plan.prefill)

    def _sample(
        self,
        plan: StepPlan,
        sampled: Sequence[PlanRow],
        masks: Mapping[int, bytes],
        hidden: Tensor,
        logits: Tensor,
    ) -> StepResult:
        """Choose the tokens of the rows that want one. logits: of these rows; hidden: of all tokens."""
        slots = [row.slot for row in sampled]
        tokens = self.sampling.sample(logits, slots, [row.start + row.count for row in sampled], masks)
        # A failed row may be in the next step already; token 0 keeps that step's embedding in bounds, and its
        # result is thrown away with the request.
        kept = torch.tensor([0 if token == NON_FINITE else token for token in tokens])
        self.kv.last_tokens[torch.tensor(slots)] = kept
        if not plan.probes:
            return StepResult(tuple(tokens))
        return StepResult(tuple(tokens), self._probe(plan, hidden, logits, tokens))

    def _probe(
        self, plan: StepPlan, hidden: Tensor, logits: Tensor | None, tokens: Sequence[int]
    ) -> Logprobs:
        """What the plan's probes want. logits, tokens: of the sampled rows."""
        width = max(probe.top for probe in plan.probes)
        found = Probed(width)
        starts = list(accumulate((row.count for row in plan.rows), initial=0))
        sample_of: dict[int, int] = {}
        for index, row in enumerate(plan.rows):
            if row.sample:
                sample_of[index] = len(sample_of)
        for probe in plan.probes:
            first = starts[probe.row] + probe.first
            # A block of logits for the whole vocabulary is large, so not all of a chunk at once.
            for at in range(0, len(probe.ids), PROBE_ROWS):
                ids = probe.ids[at : at + PROBE_ROWS]
                part = hidden[first + at : first + at + len(ids)].to(self.dtype)
                found.add(self.model.logits(part), ids)
            if (sample := sample_of.get(probe.row)) is not None:
                assert logits is not None
                # Of a row that failed, whatever stands for token 0: the request ends without it.
                found.add(logits[sample : sample + 1], (max(0, tokens[sample]),))
        return found.columns()

    def layout(self, decode: Sequence[PlanRow], prefill: Sequence[PlanRow]) -> StepInputs:
        """The static inputs of a step with these rows; valid until the next call."""
        return self.buffers.fill([_layout(row) for row in decode], [_layout(row) for row in prefill])

    def warm(self) -> None:
        """Every kind of step has run once: chunks, decode rows of all common counts, page copies, sampling.

        Only before the first plan of a scheduler: it writes to pages and slots that nobody owns yet."""
        pages = min(self.page_count, -(-self.max_context // self.page_size))
        length = min(self.chunk_tokens, pages * self.page_size - 1, self.max_context - 1)
        greedy, drawn = SamplingParams(temperature=0.0), SamplingParams(top_k=40, top_p=0.95)
        number = 0

        def step(**parts: tuple[object, ...]) -> None:
            nonlocal number
            empty: dict[str, tuple[object, ...]] = dict.fromkeys(
                ("grants", "patches", "copies", "decode", "prefill"), ()
            )
            self.launch(StepPlan(number, **{**empty, **parts})).result()  # type: ignore[arg-type]
            number += 1

        if self.eyes is not None:
            self.backend.submit(self.eyes.exercise).result()
        for params in (greedy, drawn):
            grant = SlotGrant(0, 0, params, length, tuple(range(pages)), ())
            step(grants=(grant,), prefill=(PlanRow(0, 0, 0, length, (0,) * length, True),))
            step(decode=(PlanRow(0, 0, length, 1, None, True),))
        # Rows of one token each, all on the first page of their own slot.
        rows = min(self.max_running, self.page_count)
        shared = tuple(SlotGrant(slot, slot, greedy, 1, (slot,), ()) for slot in range(rows))
        first = tuple(PlanRow(slot, slot, 0, 1, (0,), True) for slot in range(rows))
        step(grants=shared, prefill=first[:1])
        count = 1
        while count <= rows:
            step(decode=tuple(PlanRow(slot, slot, 0, 1, None, True) for slot in range(count)))
            count *= 2


def _layout(row: PlanRow) -> RowLayout:
    return RowLayout(row.slot, row.start, row.count, row.ids, row.sample)
