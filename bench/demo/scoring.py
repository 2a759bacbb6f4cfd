"""Questions with unseen values, greedy answers, and how many of them are right, kind by kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from headrace.bench.demo.canvas import MERGE, MOST_PATCHES, PATCH
from headrace.bench.demo.dialogue import Dialogue
from headrace.bench.demo.draw import Draw
from headrace.bench.demo.kinds import KINDS, question
from headrace.bench.demo.network import Batch, Network
from headrace.bench.demo.written import Writer, Written

LONGEST_ANSWER = 200
ROWS = 128
EVALUATION_SEED = 77_000_000


@dataclass(frozen=True)
class Question:
    kind: str
    dialogue: Dialogue
    written: Written

    @property
    def prompt_length(self) -> int:
        return self.written.answer_start


def questions(
    writer: Writer, count: int, kinds: Sequence[str] = KINDS, seed: int = EVALUATION_SEED
) -> list[Question]:
    """`count` of every kind, the same ones every time."""
    found = []
    for kind in kinds:
        draw = Draw(seed + KINDS.index(kind) * 1000, evaluation=True)
        dialogues = [question(kind, draw) for _ in range(count)]
        found += [Question(kind, *pair) for pair in zip(dialogues, writer.write(dialogues), strict=True)]
    return found


def padded(written: Sequence[Written], lengths: Sequence[int], device: torch.device) -> Batch:
    """One dialogue a row, each cut to its length, short ones padded on the right."""
    rows, length = len(written), max(lengths)
    ids = np.zeros((rows, length), np.int64)
    dialogue = np.zeros((rows, length), np.int64)
    positions = np.zeros((3, rows, length), np.int64)
    shown = [(row, each) for row, one in enumerate(written) for each in one.shown]
    patches = np.zeros((len(shown), MOST_PATCHES, 3 * PATCH * PATCH), np.uint8)
    grids = np.zeros((len(shown), 2), np.int64)
    places = np.full((len(shown), MOST_PATCHES // MERGE**2), rows * length, np.int64)
    for row, (one, size) in enumerate(zip(written, lengths, strict=True)):
        ids[row, :size] = one.ids[:size]
        dialogue[row, :size] = 1
        positions[:, row, :size] = one.positions[:, :size]
    for at, (row, each) in enumerate(shown):
        patches[at, : len(each.patches)] = each.patches
        grids[at] = each.rows, each.columns
        places[at, : each.tokens] = row * length + each.start + np.arange(each.tokens)
    arrays = (ids, dialogue, positions, places.reshape(-1), patches, grids)
    return Batch(*(torch.from_numpy(each).to(device) for each in arrays))


def _in_batches(asked: Sequence[Question]) -> list[list[int]]:
    """Indices, alike lengths together, so that little is padded."""
    order = sorted(range(len(asked)), key=lambda at: len(asked[at].written.ids))
    return [order[at : at + ROWS] for at in range(0, len(order), ROWS)]


@torch.no_grad()
def foreseen(network: Network, asked: Sequence[Question]) -> list[bool]:
    """Whether greedy decoding gives exactly the written answer: every token of it is the likeliest after the others."""
    found = [False] * len(asked)
    for indices in _in_batches(asked):
        written = [asked[at].written for at in indices]
        lengths = [len(each.ids) - 1 for each in written]  # all but the line break after the last turn
        x = network.hidden(padded(written, lengths, network.device))
        for row, (at, one, size) in enumerate(zip(indices, written, lengths, strict=True)):
            best = network.logits(x[row, one.answer_start - 1 : size - 1]).argmax(-1)
            wanted = torch.from_numpy(one.ids[one.answer_start : size].astype(np.int64)).to(best.device)
            found[at] = bool(torch.equal(best, wanted))
    return found


@torch.no_grad()
def answers(network: Network, writer: Writer, asked: Sequence[Question], longest: int) -> list[str]:
    """The greedy answer to every question."""
    found = [""] * len(asked)
    for indices in _in_batches(asked):
        written = [asked[at].written for at in indices]
        lengths = [each.answer_start for each in written]
        batch = padded(written, lengths, network.device)
        x, kept = network.prefill(batch)
        ends = torch.tensor(lengths, device=network.device)
        rows = torch.arange(len(indices), device=network.device)
        token = network.logits(x[rows, ends - 1]).argmax(-1)
        position = batch.positions[:, rows, ends - 1].amax(0) + 1
        seen = batch.dialogue == 1
        said = [token]
        for _ in range(longest):
            seen = torch.cat((seen, seen.new_ones(len(indices), 1)), 1)
            token = network.logits(network.step(token, position, seen, kept)).argmax(-1)
            position = position + 1
            said.append(token)
            if len(said) % 8 == 0 and bool((torch.stack(said) == writer.stop).any(0).all()):
                break
        for row, at in enumerate(indices):
            ids = [int(each) for each in torch.stack(said)[:, row].tolist()]
            found[at] = writer.decode(ids[: ids.index(writer.stop)] if writer.stop in ids else ids)
    return found


@dataclass(frozen=True)
class Score:
    kind: str
    right: int
    asked: int
    wrong: tuple[tuple[str, str, str], ...]  # last question, answer, expected: a few

    @property
    def share(self) -> float:
        return self.right / self.asked


def score(
    network: Network, writer: Writer, asked: Sequence[Question], longest: int = LONGEST_ANSWER
) -> list[Score]:
    """How many greedy answers are right, by kind. Only where the written answer is not the greedy one is it decoded."""
    exact = foreseen(network, asked)
    open_ones = [at for at, right in enumerate(exact) if not right]
    said = dict(
        zip(open_ones, answers(network, writer, [asked[at] for at in open_ones], longest), strict=True)
    )
    scores = []
    for kind in dict.fromkeys(each.kind for each in asked):
        mine = [at for at, each in enumerate(asked) if each.kind == kind]
        wrong = []
        for at in mine:
            if not exact[at] and not asked[at].dialogue.score(said[at]):
                last = [message for message in asked[at].dialogue.messages if message.role != "assistant"][-1]
                wrong.append((last.text, said[at], asked[at].dialogue.expected))
        scores.append(Score(kind, len(mine) - len(wrong), len(mine), tuple(wrong[:4])))
    return scores
