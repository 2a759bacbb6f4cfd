"""Logprobs on the GPU: launches behind a step, outside its graph, and only behind steps that are asked for some.

Why not inside the graph: a graph runs the same work every time, and every batch would pay for what few requests
ask. A second set of graphs would double capture time and memory for the sake of two launches. Behind the step all
that is needed still lies where the step left it, until the next step runs: the logits of its samples, and the
residual stream of all its tokens. So nothing is computed twice but the head for prompt tokens, whose logits no step
keeps. The device runs one thing after the other, so the next step cannot begin before these launches have read what
it overwrites.

A block of prompt tokens always has the same number of rows, whatever the chunk: one compiled shape, and the same
product for a token wherever it lies. Nothing here allocates, and nothing looks at device data from the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.graphs.packed import StepKey
from headrace.kernels.logprobs import IDS, PLACE_WORDS, TILE, TOPS, logprobs, scratch
from headrace.kernels.logprobs import MOST_TOP as KERNEL_TOP
from headrace.runtime.logprobs import MOST_TOP, Logprobs
from headrace.runtime.models.device_decoder import DeviceDecoder
from headrace.runtime.plan import StepPlan

BLOCK_ROWS = 64  # prompt tokens whose logits are at hand at one time
SAMPLE_ROWS = 256  # sampled rows of one launch

assert KERNEL_TOP == MOST_TOP


def most_places(largest: StepKey) -> int:
    """How many logprobs one step can be asked for."""
    return largest.samples + largest.chunk


def probe_bytes(largest: StepKey, vocab: int) -> int:
    """What a DeviceProbe of an engine with this largest step allocates."""
    tiles = math.ceil(vocab / TILE)
    rows = _scratch_rows(largest)
    return 4 * (rows * tiles * (2 + 2 * MOST_TOP) + most_places(largest) * PLACE_WORDS)


def _scratch_rows(largest: StepKey) -> int:
    return max(min(SAMPLE_ROWS, largest.samples), BLOCK_ROWS)


@dataclass(frozen=True, slots=True)
class Block:
    """Rows [first, first + block rows) of the residual stream, and which of them tell what: `rows` of the block, by
    their tokens. On the host, until their words were sent."""

    first: int
    rows: Sequence[int]
    targets: Sequence[int]


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """The probes of one step by the places of the device: first those of samples, then those of prompt blocks.
    order[i]: the place of the i-th logprob that the plan wants."""

    top: int
    samples: tuple[int, ...]
    blocks: tuple[Block, ...]
    order: tuple[int, ...]

    def words(self) -> list[Sequence[int]]:
        """What the launches read, as parts that each begin on a pointer of their own."""
        pieces: list[Sequence[int]] = [
            self.samples[at : at + SAMPLE_ROWS] for at in range(0, len(self.samples), SAMPLE_ROWS)
        ]
        for block in self.blocks:
            pieces += (block.rows, block.targets)
        return pieces

    def read(self, places: NDArray[np.int32]) -> Logprobs:
        """The columns of what landed in `places` [at least all of this plan's, PLACE_WORDS]."""
        found = places[list(self.order)]
        floats = found.view(np.float32)
        return Logprobs(
            self.top,
            floats[:, 0].tolist(),
            found[:, IDS : IDS + self.top].ravel().tolist(),
            floats[:, TOPS : TOPS + self.top].ravel().tolist(),
        )


class DeviceProbe:
    """The launches, and where their results lie until they have travelled."""

    def __init__(self, decoder: DeviceDecoder, largest: StepKey, tokens: Tensor) -> None:
        """tokens: int32 [samples], what the step's samples chose."""
        device = tokens.device
        logits, stream = decoder.buffers.logits, decoder.buffers.stream
        self._decoder = decoder
        self._tokens = tokens
        self._stream_rows = stream.shape[0]
        self.block_rows = min(BLOCK_ROWS, logits.shape[0], stream.shape[0])
        self._scratch = scratch(_scratch_rows(largest), logits.shape[1], device)
        self.places = torch.zeros(most_places(largest), PLACE_WORDS, dtype=torch.int32, device=device)

    def exercise(self) -> None:
        """Every launch has run once, on whatever is there."""
        rows = torch.zeros(self.block_rows, dtype=torch.int32, device=self._tokens.device)
        logits = self._decoder.logits(0, self.block_rows)
        top = min(MOST_TOP, logits.shape[1])
        self._tell(self._decoder.buffers.logits, rows, self._tokens, top, 0)
        self._tell(logits, rows, rows, top, 0)

    def plan(self, plan: StepPlan, key: StepKey) -> ProbePlan:
        """Where the probes of `plan` find what they need in a step that is padded to `key`."""
        decode = len(plan.decode)
        edges = [key.decode]
        for row in plan.prefill:
            edges.append(edges[-1] + row.count)
        samples: list[int] = []
        positions: list[int] = []
        targets: list[int] = []
        order: list[tuple[bool, int]] = []
        for probe in plan.probes:
            chunk = probe.row - decode
            if probe.ids:
                first = edges[chunk] + probe.first
                order += [(True, len(positions) + at) for at in range(len(probe.ids))]
                positions += range(first, first + len(probe.ids))
                targets += probe.ids
            if chunk < 0 or plan.prefill[chunk].sample:
                order.append((False, len(samples)))
                samples.append(probe.row if chunk < 0 else key.decode + chunk)
        places = tuple([len(samples) + at if prompt else at for prompt, at in order])
        top = max(probe.top for probe in plan.probes)
        return ProbePlan(top, tuple(samples), tuple(self._blocks(positions, targets)), places)

    def _blocks(self, positions: Sequence[int], targets: Sequence[int]) -> list[Block]:
        """Rows of the stream, ascending, cut into blocks; the last one ends where the stream does, if it must."""
        found: list[Block] = []
        at = 0
        while at < len(positions):
            first = min(positions[at], self._stream_rows - self.block_rows)
            end = at
            asked = [0] * self.block_rows
            while end < len(positions) and positions[end] < first + self.block_rows:
                asked[positions[end] - first] = targets[end]
                end += 1
            found.append(Block(first, [place - first for place in positions[at:end]], asked))
            at = end
        return found

    def launch(self, plan: ProbePlan, words: Sequence[Tensor]) -> int:
        """Queue what `plan` needs behind its step. words: its `words()`, on the device. Returns how many places of
        `places` it fills."""
        decoder, parts, at = self._decoder, iter(words), 0
        for _ in range(0, len(plan.samples), SAMPLE_ROWS):
            rows = next(parts)
            at = self._tell(decoder.buffers.logits, rows, self._tokens, plan.top, at)
        # Not before: the logits of blocks lie where those of the samples lay.
        for block in plan.blocks:
            logits = decoder.logits(block.first, self.block_rows)
            at = self._tell(logits, next(parts), next(parts), plan.top, at)
        return at

    def _tell(self, logits: Tensor, rows: Tensor, targets: Tensor, top: int, at: int) -> int:
        end = at + rows.numel()
        # As many rows as there are targets: those beyond are nobody's.
        logprobs(logits[: targets.numel()], rows, targets, top, self._scratch, self.places[at:end])
        return end
