"""Batches of training, made by worker processes: drawn, written, packed, and sent through pipes.

Batch k depends on the seed and on k alone, not on who makes it or how many do. Workers import no torch.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from headrace.bench.demo.canvas import MERGE, MOST_PATCHES, PATCH
from headrace.bench.demo.dialogue import Dialogue
from headrace.bench.demo.draw import Draw
from headrace.bench.demo.kinds import long_dialogue, picture_dialogue, text_dialogue
from headrace.bench.demo.written import Writer, Written

IGNORED = -100
MOST_PICTURE_SHARE = 0.45  # of the tokens of a batch, those of dialogues with pictures
FULL = 0.985  # of a batch, before nothing more is drawn


@dataclass(frozen=True)
class Form:
    """The shape of a batch. long_share: of its tokens, those of long dialogues."""

    rows: int
    length: int
    pictures: int
    long_share: float = 0.0


@dataclass(frozen=True)
class Packed:
    """A batch in numpy, as network.Batch wants it, and its targets."""

    ids: NDArray[np.int32]
    dialogue: NDArray[np.int32]
    positions: NDArray[np.int32]
    targets: NDArray[np.int32]
    places: NDArray[np.int32]
    patches: NDArray[np.uint8]
    grids: NDArray[np.int32]


def shapes_of(form: Form) -> dict[str, tuple[tuple[int, ...], type]]:
    """Shape and type of every array of a batch."""
    text = (form.rows, form.length)
    return {
        "ids": (text, np.int32),
        "dialogue": (text, np.int32),
        "positions": ((3, *text), np.int32),
        "targets": (text, np.int32),
        "places": ((form.pictures * (MOST_PATCHES // MERGE**2),), np.int32),
        "patches": ((form.pictures, MOST_PATCHES, 3 * PATCH * PATCH), np.uint8),
        "grids": ((form.pictures, 2), np.int32),
    }


def pack(written: list[Written], form: Form) -> Packed:
    """The longest first, each into the fullest row that has room. What finds no room is left out."""
    arrays: dict[str, Any] = {name: np.zeros(shape, kind) for name, (shape, kind) in shapes_of(form).items()}
    arrays["targets"].fill(IGNORED)
    arrays["places"].fill(form.rows * form.length)
    packed = Packed(**arrays)
    room = [form.length] * form.rows
    held = [0] * form.rows
    picture = 0
    for each in sorted(written, key=lambda one: -len(one.ids)):
        size = len(each.ids)
        fitting = [(free, row) for row, free in enumerate(room) if free >= size]
        if not fitting or picture + len(each.shown) > form.pictures:
            continue
        free, row = min(fitting)
        at = form.length - free
        here = slice(at, at + size)
        held[row] += 1
        packed.ids[row, here] = each.ids
        packed.dialogue[row, here] = held[row]
        packed.positions[:, row, here] = each.positions
        wanted = np.where(each.learned[1:], each.ids[1:], IGNORED)
        packed.targets[row, at : at + size - 1] = wanted
        for shown in each.shown:
            packed.patches[picture, : len(shown.patches)] = shown.patches
            packed.grids[picture] = shown.rows, shown.columns
            start = picture * (MOST_PATCHES // MERGE**2)
            packed.places[start : start + shown.tokens] = (
                row * form.length + at + shown.start + np.arange(shown.tokens)
            )
            picture += 1
        room[row] = free - size
    return packed


def _drawn(draw: Draw, writer: Writer, form: Form) -> list[Written]:
    budget = form.rows * form.length
    found: list[Written] = []
    tokens = pictures = 0

    def keep(dialogues: list[Dialogue]) -> None:
        nonlocal tokens, pictures
        for each in writer.write(dialogues):
            if len(each.ids) <= form.length and pictures + len(each.shown) <= form.pictures:
                found.append(each)
                tokens += len(each.ids)
                pictures += len(each.shown)

    while tokens < form.long_share * budget:
        keep([long_dialogue(draw, draw.between(4, max(5, form.length // 56)))])
    before = tokens
    while pictures < form.pictures - 1 and tokens - before < MOST_PICTURE_SHARE * budget:
        keep([picture_dialogue(draw) for _ in range(4)])
    while tokens < FULL * budget:
        lacking = FULL * budget - tokens
        keep([text_dialogue(draw) for _ in range(max(1, min(64, int(lacking / 160))))])
    return found


def make(seed: int, number: int, writer: Writer, form: Form) -> Packed:
    """Batch `number` of the run with `seed`."""
    draw = Draw(seed * 1_000_003 + number)
    return pack(_drawn(draw, writer, form), form)


def _work(pipe: Connection, rules: str, seed: int, numbers: range, form: Form) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    writer = Writer(Tokenizer.from_str(rules))
    try:
        for number in numbers:
            packed = make(seed, number, writer, form)
            for name in shapes_of(form):
                _write_all(pipe.fileno(), getattr(packed, name).data.cast("B"))
    except (BrokenPipeError, KeyboardInterrupt):
        pass  # nobody wants more


def _write_all(pipe: int, left: memoryview) -> None:
    while left:
        left = left[os.write(pipe, left) :]


def _read_all(pipe: int, left: memoryview) -> None:
    while left:
        count = os.readv(pipe, [left])
        if count == 0:
            raise EOFError
        left = left[count:]


def _widen(pipe: int) -> None:
    """Let the pipe hold what is allowed: every read of it costs a turn at the interpreter lock."""
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)
    except OSError:
        pass  # a narrow pipe is slower, not wrong


class Feed:
    """Endless batches of one form, in order, from `workers` processes; without workers, made on the spot."""

    AHEAD = 2  # batches that wait here for each worker

    def __init__(self, rules: str, seed: int, form: Form, workers: int, first: int = 0) -> None:
        self.form, self._seed, self._first = form, seed, first
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._queues: list[queue.Queue[Packed | None]] = []
        self._closed = threading.Event()
        self._writer = Writer(Tokenizer.from_str(rules)) if workers == 0 else None
        spawn = multiprocessing.get_context("spawn")
        for worker in range(workers):
            here, there = spawn.Pipe(duplex=False)
            numbers = range(first + worker, 1 << 40, workers)
            process = spawn.Process(target=_work, args=(there, rules, seed, numbers, form), daemon=True)
            process.start()
            there.close()
            _widen(here.fileno())
            waiting: queue.Queue[Packed | None] = queue.Queue(self.AHEAD)
            threading.Thread(target=self._read, args=(here, waiting), daemon=True).start()
            self._processes.append(process)
            self._queues.append(waiting)

    def _read(self, pipe: Connection, waiting: queue.Queue[Packed | None]) -> None:
        shapes = shapes_of(self.form)
        try:
            while not self._closed.is_set():
                arrays: dict[str, Any] = {}
                for name, (shape, kind) in shapes.items():
                    arrays[name] = np.empty(shape, kind)
                    _read_all(pipe.fileno(), arrays[name].data.cast("B"))
                waiting.put(Packed(**arrays))
        except (EOFError, OSError):
            waiting.put(None)

    def __iter__(self) -> Iterator[Packed]:
        number = self._first
        while True:
            if self._writer is not None:
                yield make(self._seed, number, self._writer, self.form)
            else:
                packed = self._queues[(number - self._first) % len(self._queues)].get()
                if packed is None:
                    raise RuntimeError("a worker that makes batches has died; its own words are above")
                yield packed
            number += 1

    def close(self) -> None:
        """End the workers. Batches on their way are lost, which is what closing means."""
        self._closed.set()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(timeout=10)
