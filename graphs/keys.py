"""Which padded step shapes exist, which of them are captured, and which one a step takes. Pure numbers."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from headrace.graphs.buckets import bucket_list
from headrace.graphs.packed import StepKey

# Chunk tokens of captured steps. Beside powers of two a little more than some of them: people ask for round
# numbers, and a chat template adds its own tokens.
CHUNKS = (16, 32, 64, 128, 144, 192, 256, 288, 384, 512, 576, 768, 1024, 1536, 2048)
FEW_PROMPTS, MANY_PROMPTS = 8, 32  # prefill rows of captured steps: of small chunks, and of large ones
LARGE_CHUNK = 256
CHUNK_STEP = 64  # chunks beyond the captured ones are padded to a multiple of this
BESIDE = (0, 8, 32, 64, 128, 256)  # decode rows that captured chunks run beside


@dataclass(frozen=True, slots=True)
class KeyList:
    """The keys of an engine with `max_running` slots and chunks of at most `chunk_tokens`.

    decode: keys of pure decode steps. beside: how many decode rows a step with a chunk is padded to."""

    max_running: int
    chunk_tokens: int
    decode: tuple[int, ...]
    beside: tuple[int, ...]
    chunks: tuple[int, ...]

    @classmethod
    def of(cls, max_running: int, chunk_tokens: int) -> KeyList:
        beside = sorted({min(count, max_running) for count in BESIDE} | {max_running})
        chunks = tuple(count for count in CHUNKS if count <= _padded(chunk_tokens))
        return cls(max_running, chunk_tokens, bucket_list(max_running), tuple(beside), chunks)

    def key_for(self, decode: int, chunk: int, rows: int) -> StepKey:
        """The smallest key that holds the counts. Only keys in `captured` have a graph; others run eagerly."""
        if not chunk:
            return StepKey(self.decode[bisect_left(self.decode, decode)])
        beside = self.beside[bisect_left(self.beside, decode)]
        if self.chunks and chunk <= self.chunks[-1]:
            chunk = self.chunks[bisect_left(self.chunks, chunk)]
        else:
            chunk = _padded(chunk)
        # More rows than a graph takes only add tiles: such a step keeps its chunk size and runs eagerly.
        return StepKey(beside, chunk, max(_prompts(chunk), _power(rows)))

    def chunk_sizes(self) -> tuple[int, ...]:
        """Chunks that are padded by nothing, ascending, up to the largest."""
        sizes = {*self.chunks, *range(self.chunks[-1], self.chunk_tokens, 2 * CHUNK_STEP), self.chunk_tokens}
        return tuple(sorted(size for size in sizes if size <= self.chunk_tokens))

    def captured(self) -> tuple[StepKey, ...]:
        """Every key that gets a graph, in the order in which they are wanted: single streams first."""
        alone = [StepKey(count) for count in self.decode]
        first = [key for key in alone if key.decode <= 8]
        prompts = [StepKey(0, chunk, _prompts(chunk)) for chunk in self.chunks]
        mixed = [
            StepKey(beside, chunk, _prompts(chunk))
            for beside in self.beside
            if beside
            for chunk in self.chunks
        ]
        return (*first, *prompts, *alone[len(first) :], *mixed)

    @property
    def largest(self) -> StepKey:
        """No step has more tokens, rows, tiles or samples than this."""
        return StepKey(
            self.max_running, _padded(self.chunk_tokens), max(MANY_PROMPTS, _power(self.max_running))
        )


def _padded(chunk: int) -> int:
    return -(-chunk // CHUNK_STEP) * CHUNK_STEP


def _prompts(chunk: int) -> int:
    return MANY_PROMPTS if chunk >= LARGE_CHUNK else FEW_PROMPTS


def _power(rows: int) -> int:
    """The next power of two."""
    return 1 << (rows - 1).bit_length()
