"""The training of the demo model from the tokenizer to the card. Knows time and rates, not what is learned."""

from __future__ import annotations

import json
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from headrace.bench.demo import checkpoint
from headrace.bench.demo.card import card
from headrace.bench.demo.feed import IGNORED, Feed, Form, Packed
from headrace.bench.demo.kinds import KINDS
from headrace.bench.demo.layout import train_tokenizer
from headrace.bench.demo.muon import Muon
from headrace.bench.demo.network import CONTEXT, Batch, Network, Weights, starting_weights
from headrace.bench.demo.scoring import LONGEST_ANSWER, Question, Score, foreseen, questions, score
from headrace.bench.demo.written import Writer

MATRIX_RATE, OTHER_RATE = 0.02, 3e-3
WARM_UP = 150  # steps
STEADY = 0.45  # of the run, before the rate begins to fall
LONG_FROM = 0.86  # of the run: from here on, long dialogues
SHORT_FORM = Form(rows=128, length=512, pictures=128)
LONG_FORM = Form(rows=32, length=2048, pictures=128, long_share=0.5)
REPORT_SECONDS = 30.0
QUICK = 12  # questions of each kind in a report
SECOND_FORM_FIRST = 10_000_000  # number of the first batch of the second form


@dataclass(frozen=True)
class Plan:
    """How long and with what. steps: in place of seconds, so that a run can be repeated."""

    seconds: float
    seed: int = 0
    steps: int | None = None
    workers: int = 0
    forms: tuple[Form, Form] = (SHORT_FORM, LONG_FORM)
    compiled: bool = False
    quick: int = QUICK
    report_seconds: float = REPORT_SECONDS
    kinds: tuple[str, ...] = KINDS
    count: int = 200  # questions of each kind in the evaluation
    longest: int = LONGEST_ANSWER  # tokens of an answer in the evaluation


@dataclass(frozen=True)
class Trained:
    weights: Weights
    steps: int
    tokens: int
    pictures: int
    seconds: float


def rate_at(progress: float, step: int) -> float:
    """Share of the peak rates: up, level, then down to zero in a straight line."""
    falling = min(1.0, max(0.0, (1.0 - progress) / (1.0 - STEADY)))
    return min(1.0, (step + 1) / WARM_UP) * falling


class Staged:
    """Batches of a feed on the device, one ahead of their use."""

    def __init__(self, feed: Feed, device: torch.device) -> None:
        self._feed, self._device = feed, device
        self._ready: queue.Queue[tuple[Batch, Tensor, Packed, torch.cuda.Event | None] | BaseException] = (
            queue.Queue(2)
        )
        self._stream = torch.cuda.Stream() if device.type == "cuda" else None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for packed in self._feed:
                staged = self._stage(packed)
                while not self._ended.is_set():
                    try:
                        self._ready.put(staged, timeout=0.2)
                        break
                    except queue.Full:
                        continue
                if self._ended.is_set():
                    return
        except BaseException as error:  # told to who waits for the batch
            self._ready.put(error)

    def _stage(self, packed: Packed) -> tuple[Batch, Tensor, Packed, torch.cuda.Event | None]:
        names = ("ids", "dialogue", "positions", "places", "patches", "grids", "targets")
        tensors = [torch.from_numpy(getattr(packed, name)) for name in names]
        if self._stream is None:
            moved, event = tensors, None
        else:
            with torch.cuda.stream(self._stream):
                moved = [each.pin_memory().to(self._device, non_blocking=True) for each in tensors]
                event = torch.cuda.Event()
                event.record()
        return self._batch(moved), moved[-1], packed, event

    def _batch(self, moved: list[Tensor]) -> Batch:
        return Batch(*moved[:-1])

    def next(self) -> tuple[Batch, Tensor, Packed]:
        """The next batch and its targets, ready for the current stream."""
        got = self._ready.get()
        if isinstance(got, BaseException):
            raise got
        batch, targets, packed, event = got
        if event is not None:
            current = torch.cuda.current_stream()
            current.wait_event(event)
            for each in (*vars(batch).values(), targets):
                each.record_stream(current)
        whole = Batch(
            batch.ids.long(), batch.dialogue, batch.positions, batch.places.long(), batch.patches, batch.grids
        )
        return whole, targets.long(), packed

    def close(self) -> None:
        self._ended.set()
        self._thread.join(timeout=10)
        self._feed.close()


def split(weights: Weights) -> tuple[list[Tensor], list[Tensor]]:
    """Matrices for Muon, and the rest: embeddings, norms, biases."""
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, each in weights.items():
        hidden = each.dim() >= 2 and "embed_tokens" not in name and "pos_embed" not in name
        (matrices if hidden else rest).append(each)
    return matrices, rest


def train(plan: Plan, tokenizer: Tokenizer, report: Callable[[str], None] = print) -> Trained:
    """The trained weights, float32. On a GPU the passes run in bfloat16."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    started = time.monotonic()
    rules = tokenizer.to_str()
    feeds = [
        Feed(rules, plan.seed, form, plan.workers, first)
        for form, first in zip(plan.forms, (0, SECOND_FORM_FIRST), strict=True)
    ]
    writer = Writer(tokenizer)
    checked = questions(writer, plan.quick, plan.kinds)
    weights = {name: each.to(device).requires_grad_() for name, each in starting_weights(plan.seed).items()}
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    network = Network(weights, dtype, plan.compiled)
    plain = Network(weights, dtype)
    matrices, rest = split(weights)
    muon = Muon(matrices)
    adam = torch.optim.AdamW(
        rest, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=device.type == "cuda"
    )
    staged = Staged(feeds[0], device)
    step = tokens = pictures = 0
    told = started
    learned = torch.zeros(2, device=device)  # sum of losses, count
    waited = 0.0
    long = False
    since = (0, started)
    report(f"begins: {sum(each.numel() for each in weights.values()) / 1e6:.2f} M parameters on {device}, "
           f"{len(checked)} questions in a report, ready after {time.monotonic() - started:.1f} s")  # fmt: skip
    while True:
        now = time.monotonic()
        progress = step / plan.steps if plan.steps is not None else (now - started) / plan.seconds
        if progress >= 1.0:
            break
        if progress >= LONG_FROM and not long:
            long = True
            staged.close()
            staged = Staged(feeds[1], device)
            report(f"step {step}: long dialogues from here")
        waiting = time.monotonic()
        batch, targets, packed = staged.next()
        waited += time.monotonic() - waiting
        count = (targets != IGNORED).sum()
        try:
            total = network.loss(batch, targets)
            (total / count).backward()
        except Exception as error:
            if network is plain:
                raise
            # Compiling is speed and nothing else: a run without it is slower and as good.
            report(
                f"step {step}: not compiled from here, because of {type(error).__name__}: {str(error)[:500]}"
            )
            network = plain
            for each in weights.values():
                each.grad = None
            total = network.loss(batch, targets)
            (total / count).backward()
        rate = rate_at(progress, step)
        muon.step(MATRIX_RATE * rate)
        for group in adam.param_groups:
            group["lr"] = OTHER_RATE * rate
        adam.step()
        adam.zero_grad(set_to_none=True)
        learned += torch.stack((total.detach(), count.float()))
        step += 1
        tokens += int((packed.dialogue > 0).sum())
        pictures += int((packed.grids[:, 0] > 0).sum())
        if step % 16 == 0 and device.type == "cuda":
            torch.cuda.synchronize()  # so that the clock tells the truth and little is queued
        if time.monotonic() - told >= plan.report_seconds or step == 1:
            loss = float(learned[0] / learned[1])
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} at step {step}")
            now = time.monotonic()
            pace = (step - since[0]) / (now - since[1])
            exact = foreseen(plain, checked)
            report(f"{now - started:6.1f} s  step {step:5}  loss {loss:.4f}  {pace:.2f} steps/s  {tokens / 1e6:.1f} M tokens  "
                   f"waited {waited:.1f} s  rate {rate:.2f}  foreseen {sum(exact) / len(exact):.1%}"
                   + _weakest(checked, exact))  # fmt: skip
            learned.zero_()
            told = time.monotonic()
            since = (step, told)
    staged.close()
    feeds[1 if not long else 0].close()
    return Trained(
        {n: each.detach() for n, each in weights.items()}, step, tokens, pictures, time.monotonic() - started
    )


def _weakest(asked: Sequence[Question], exact: Sequence[bool]) -> str:
    """The kinds that fail most, with their shares. Kinds with several right answers look worse here than they are."""
    shares: dict[str, list[bool]] = {}
    for each, right in zip(asked, exact, strict=True):
        shares.setdefault(each.kind, []).append(right)
    worst = sorted(shares, key=lambda kind: sum(shares[kind]) / len(shares[kind]))[:8]
    return "; weakest: " + ", ".join(f"{kind} {sum(shares[kind]) / len(shares[kind]):.0%}" for kind in worst)


def evaluate(weights: Weights, tokenizer: Tokenizer, plan: Plan) -> list[Score]:
    """Scores of the weights as they are shipped: rounded to bfloat16, computed in fp32."""
    writer = Writer(tokenizer)
    rounded = {name: each.bfloat16().float() for name, each in weights.items()}
    asked = questions(writer, plan.count, plan.kinds)
    return score(Network(rounded, torch.float32), writer, asked, plan.longest)


def _lines(scores: Sequence[Score]) -> Iterator[str]:
    for each in scores:
        yield f"{each.share:7.1%}  {each.kind}"
    for each in sorted(scores, key=lambda one: one.share)[:24]:
        for asked, said, expected in each.wrong[:2]:
            if each.share < 0.97:
                yield f"  wrong ({each.kind}): {asked[-120:]!r} -> {said[:120]!r}, expected {expected[:120]!r}"


def run(plan: Plan, out: Path, command: str, report: Callable[[str], None] = print) -> list[Score]:
    """Everything: tokenizer, training, folder, evaluation, card."""
    started = time.monotonic()
    tokenizer = train_tokenizer(plan.seed)
    report(f"tokenizer of {tokenizer.get_vocab_size()} tokens after {time.monotonic() - started:.1f} s")
    trained = train(plan, tokenizer, report)
    # Written before it is scored: whatever happens to the scores, the weights are there.
    checkpoint.write(trained.weights, tokenizer, out)
    report(f"trained: {trained.steps} steps, {trained.tokens / 1e6:.0f} M tokens, {trained.pictures / 1e6:.2f} M pictures "
           f"in {trained.seconds:.0f} s")  # fmt: skip
    scores = evaluate(trained.weights, tokenizer, plan)
    for line in _lines(scores):
        report(line)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    page = card(
        trained.weights,
        scores,
        steps=trained.steps,
        tokens=trained.tokens,
        pictures=trained.pictures,
        minutes=trained.seconds / 60,
        device=name,
        seed=plan.seed,
        command=command,
        context=CONTEXT,
    )
    (out / "README.md").write_text(page, encoding="utf-8")
    told = [
        {"kind": each.kind, "right": each.right, "asked": each.asked, "wrong": each.wrong} for each in scores
    ]
    (out / "scores.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    report(f"done after {time.monotonic() - started:.0f} s")
    return scores
