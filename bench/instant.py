"""The GPU engine without a GPU: every launch packs, copies and resolves as on the device, and computes nothing.

What the host does for a step is all there but the driver's own calls (two copies, a graph launch and an event:
about 10 us on an H200). Tokens come from a table made at the start, and a step lands when the bench says so.
"""

from __future__ import annotations

import itertools
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headrace.bench.shapes import CONFIGS, write_checkpoint
from headrace.bench.words import WORDS
from headrace.graphs.packed import StepKey
from headrace.runtime.backends.queue import HostQueue, Mark
from headrace.runtime.blueprint import Blueprint
from headrace.runtime.config import EngineConfig
from headrace.runtime.device_engine import DeviceEngine
from headrace.runtime.engine import open_device_engine
from headrace.runtime.interface import Ask, Prompt
from headrace.runtime.text import Cutter, TokenText
from headrace.runtime.typed import WholePrompt

SHAPE = CONFIGS["tiny"]
MEMORY = 8 << 30  # bytes that the device claims to have; zeros that nobody writes cost nothing
KV_MIB = 384
TOKEN_TABLES = 61  # sets of tokens that steps take in turns


class _Gate:
    """How many steps may land."""

    def __init__(self) -> None:
        self.open = 0


class _GatedMark:
    """Done once the gate let it through; steps ask in their order."""

    __slots__ = ("gate", "past")

    def __init__(self, gate: _Gate) -> None:
        self.gate = gate
        self.past = False

    def done(self) -> bool:
        if not self.past and self.gate.open:
            self.gate.open -= 1
            self.past = True
        return self.past

    def wait(self) -> None:
        self.past = True


class _GatedQueue(HostQueue):
    def __init__(self, gate: _Gate) -> None:
        super().__init__()
        self.gate = gate

    def mark(self) -> Mark:
        return _GatedMark(self.gate)


class _Replays(dict[StepKey, Callable[[], None]]):
    """Every key has its graph; a replay only changes which tokens come next."""

    def __init__(self, replay: Callable[[], None]) -> None:
        super().__init__()
        self.replay = replay

    def get(self, key: StepKey, default: Any = None) -> Any:
        return self.replay


class InstantEngine:
    """A DeviceEngine whose steps take no time: `poll` lands the oldest one, unless `hold()` says to wait.

    It begins and ends its measured work in `poll`: `on_look(landing)` is called at its beginning."""

    def __init__(self, streams: int, vocabulary: Vocabulary) -> None:
        self._gate = _Gate()
        with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
            write_checkpoint(Path(folder), SHAPE, weights=False)
            config = EngineConfig(weights="random", kv_memory_mb=KV_MIB, max_running=max(256, streams))
            blueprint = Blueprint(Path(folder), random_weights=True)
            inner = open_device_engine(blueprint, config, _GatedQueue(self._gate), MEMORY, MEMORY)
        rng = random.Random(1)
        tables = [vocabulary.draw(rng, inner._tokens.numel()) for _ in range(TOKEN_TABLES)]
        supply = itertools.cycle([np.array(table, dtype=np.int32) for table in tables])
        tokens = inner._tokens.numpy()

        def replay() -> None:
            tokens[:] = next(supply)

        inner._replays = _Replays(replay)
        self.inner: DeviceEngine = inner
        self.idle_work: Callable[[], bool] | None = None
        self.hold: Callable[[], bool] = lambda: False
        self.on_look: Callable[[bool], None] = lambda landing: None
        self._poll = inner.poll

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def poll(self) -> bool:
        landing = not self.hold()
        self.on_look(landing)
        if not landing:
            return False
        self._gate.open = 1
        return self._poll()

    def close(self) -> None:
        self._gate.open = 1 << 30
        self.inner.close()


class Vocabulary:
    """Tokens as a large vocabulary has them: words with a space in front, punctuation, line ends, quotes, and
    characters of several bytes, some of them split between two tokens."""

    def __init__(self) -> None:
        words = [f" {word}".encode() for word in WORDS]
        marks = [
            mark.encode() for mark in (",", ".", ".", ":", " (", ")", "-", "'s", " the", " the", " of", " a")
        ]
        escaped = [b"\n", b"\n\n", b' "', b'"', b"\\", b'."']
        wide = [text.encode() for text in (" für", "é", " naïve", "…", " –", "’s", "你", "好")]
        parts = [b"\xe4\xbd", b"\xa0"]
        self.pieces: list[bytes] = [*words, *marks, *escaped, *wide, *parts]
        assert len(self.pieces) < SHAPE["vocab_size"]
        self.text = TokenText(self.pieces)
        kinds = (words, marks, escaped, wide, parts)
        shares = (0.74, 0.18, 0.04, 0.03, 0.01)
        self._weights: list[float] = []
        for kind, share in zip(kinds, shares, strict=True):
            self._weights += [share / len(kind)] * len(kind)

    def draw(self, rng: random.Random, count: int) -> Sequence[int]:
        """`count` ids, each as often as text has it."""
        return rng.choices(range(len(self.pieces)), self._weights, k=count)


class VocabularyPrompter:
    """Asks become prompts of the length that their text says; answers become text as a model folder's do."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.eos_ids = frozenset({SHAPE["eos_token_id"]})
        self.embedding_rows = self.logits_width = SHAPE["vocab_size"]
        self.defaults: Mapping[str, Any] = {}
        self.abilities: frozenset[str] = frozenset()

    def prepare(self, ask: Ask) -> Prompt:
        text = ask.messages[-1].content if ask.messages is not None else str(ask.prompt)
        return Prompt(tuple(range(len(text))))

    def typed(self, ask: Ask) -> WholePrompt:
        return WholePrompt(self, ask)

    def cutter(self, ask: Ask) -> Cutter:
        return Cutter(self.vocabulary.text, ask.stop, quiet=ask.min_tokens)

    def splitter(self, ask: Ask, prompt: Prompt) -> None:
        return None

    def tokenize(self, text: str) -> list[int]:
        return list(range(len(text)))

    def detokenize(self, ids: Sequence[int], special: bool = False) -> str:
        return self.vocabulary.text.decode(ids)

    def spell(self, token: int) -> tuple[str, bytes | None]:
        raw = self.vocabulary.text.raw[token]
        return raw.decode(errors="replace"), raw

    def about(self) -> Mapping[str, Any]:
        return {}
