"""Time variants of decode and extend attention on the GPU at hand, to choose what the tables beside them say.

    python -P -m headrace.bench.tune_attention --out attention.json
    python -P -m headrace.bench.tune_attention --match "qwen3-0.6b turn .* rows=64" --seconds 60

Every variant is compiled (in processes of its own, all cores at once), compared with the shipped one's answer, and
timed in a graph that rotates over more KV than any cache holds. Per shape the fastest few are printed; `--out` gets
all of them, and the last line printed is the fastest of each shape as JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch

from headrace.bench.step_model import H200
from headrace.bench.timing import replayed
from headrace.kernels.attention_cases import (
    DECODE_SHAPES,
    EXTEND_SHAPES,
    decode_case,
    extend_case,
)
from headrace.kernels.cases import Case
from headrace.kernels.decode_attention import MOST_SPLITS, DecodeTuning, cut_for
from headrace.kernels.extend_attention import ExtendTuning
from headrace.kernels.paged_cases import Heads, PagedSets, timed_heads

KINDS = ("attend", "turn", "extend")
CLOSE = 2e-2  # of two bfloat16 results that round in different places
DTYPE = torch.bfloat16
SHOWN = 4

DECODE = [
    DecodeTuning(64, 4, 3, programs=3),
    DecodeTuning(64, 4, 2, programs=4),
    DecodeTuning(64, 4, 2, programs=3),
    DecodeTuning(64, 4, 3, programs=2),
    DecodeTuning(64, 4, 4, programs=2),
    DecodeTuning(64, 8, 3, programs=2),
    DecodeTuning(64, 8, 3, programs=1),
    DecodeTuning(128, 4, 2, programs=2),
    DecodeTuning(128, 8, 2, programs=2),
    DecodeTuning(128, 8, 3, programs=1),
    DecodeTuning(32, 4, 3, programs=4),
    DecodeTuning(32, 4, 4, programs=4),
    DecodeTuning(32, 4, 5, programs=3),
    DecodeTuning(32, 2, 4, programs=4),
    DecodeTuning(32, 2, 3, programs=6),
    DecodeTuning(64, 2, 3, programs=3),
    DecodeTuning(32, 2, 3, programs=4),
    DecodeTuning(32, 2, 2, programs=4),
    DecodeTuning(32, 2, 2, programs=6),
    DecodeTuning(64, 4, 3, programs=1),
    DecodeTuning(32, 4, 3, use_dot=False, programs=2),
    DecodeTuning(16, 4, 4, use_dot=False, programs=4),
]
SPLITS = (64, 128, 256, 512, 1024)
EXTEND = [
    ExtendTuning(rows, block, warps, stages, bulk, programs)
    for rows, block, warps, stages, programs in (
        (128, 64, 8, 2, 2),
        (128, 64, 8, 3, 1),
        (128, 64, 8, 4, 1),
        (128, 32, 8, 3, 2),
        (64, 64, 4, 2, 2),
        (64, 64, 4, 3, 1),
        (64, 32, 4, 3, 3),
        (128, 128, 8, 2, 1),
    )
    for bulk in (False, True)
    if not (bulk and block > 64)
]
TILES = (64, 128)


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to compute: a tuning, and how the work is cut (tokens of a split, or queries of a tile)."""

    tuning: DecodeTuning | ExtendTuning
    cut: int

    def __str__(self) -> str:
        return f"{self.cut} {astuple(self.tuning)}"


@dataclass(frozen=True, slots=True)
class Shape:
    """What is computed: `kind` of KINDS; `rows` rows (extend: queries of one row) of `length` tokens."""

    heads: Heads
    kind: str
    rows: int
    length: int

    def __str__(self) -> str:
        return f"{self.heads.model} {self.kind} rows={self.rows} context={self.length}"

    def paged(self, device: torch.device) -> PagedSets:
        return PagedSets(self.heads, 1 if self.kind == "extend" else self.rows, self.length, device, DTYPE)

    def variants(self) -> list[Variant]:
        """The shipped one first."""
        if self.kind == "extend":
            return [Variant(tuning, tile) for tile in TILES for tuning in EXTEND if tile <= tuning.rows]
        shipped = cut_for(self.heads.head_dim, DTYPE, self.rows).split
        cuts = [shipped, *(split for split in SPLITS if split != shipped and split < 2 * self.length)]
        return [Variant(tuning, split) for split in cuts for tuning in DECODE]

    def case(self, paged: PagedSets, variant: Variant | None) -> Case:
        """The shipped way with None. The same inputs every time: answers of two variants are compared."""
        torch.manual_seed(1)
        if self.kind == "extend":
            if variant is None:
                return extend_case(paged, self.rows)
            assert isinstance(variant.tuning, ExtendTuning)
            return extend_case(paged, self.rows, variant.cut, variant.tuning)
        fused = self.kind == "turn"
        if variant is None:
            return decode_case(paged, fused)
        assert isinstance(variant.tuning, DecodeTuning)
        return decode_case(paged, fused, variant.cut, MOST_SPLITS, variant.tuning)


def shapes(kinds: Sequence[str], match: str) -> list[Shape]:
    """Every timed shape of these kinds whose name has `match` in it."""
    found = [
        Shape(heads, kind, rows, length)
        for kind in kinds
        for heads in timed_heads()
        for rows, length in (EXTEND_SHAPES if kind == "extend" else DECODE_SHAPES)
    ]
    return [shape for shape in found if re.search(match, str(shape))]


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:160]


def compile_share(listed: Sequence[tuple[Shape, Variant]]) -> list[str]:
    """Launch these once on little work, so that their machine code lies in Triton's cache on disk, and return what
    went wrong. Runs in a process of its own."""
    device = torch.device("cuda")
    troubles = []
    for shape, variant in listed:
        small = Shape(shape.heads, shape.kind, 64 if shape.kind == "extend" else 1, 1024)
        try:
            small.case(small.paged(device), variant).run(0)
        except Exception as error:  # one variant that the compiler refuses must not end the rest
            troubles.append(f"{small} {variant}: {first_line(error)}")
    torch.cuda.synchronize()
    return troubles


def kernels_of(listed: Sequence[Shape]) -> list[tuple[Shape, Variant]]:
    """Every (shape, variant) that is another machine code: rows, context and splits are not."""
    found: dict[tuple[Any, ...], tuple[Shape, Variant]] = {}
    for shape in listed:
        for variant in shape.variants():
            tile = variant.cut if shape.kind == "extend" else 0
            found.setdefault((shape.heads, shape.kind, variant.tuning, tile), (shape, variant))
    return list(found.values())


def trials(shape: Shape, device: torch.device) -> Iterator[dict[str, Any]]:
    """Each variant's microseconds, or why there are none; the shipped way first, as variant "shipped"."""
    paged = shape.paged(device)
    shipped = shape.case(paged, None)
    told = shipped.run(0)
    assert told is not None
    wanted = told.float().clone()
    for variant in (None, *shape.variants()):
        row: dict[str, Any] = {
            "shape": str(shape), "variant": "shipped" if variant is None else str(variant), "us": None,
        }  # fmt: skip
        try:
            case = shape.case(paged, variant)
            found = case.run(0)
            assert found is not None
            off = float((found.float() - wanted).norm() / wanted.norm())
            if off < CLOSE:
                row["us"] = round(1e6 * replayed(case.run, case.sets, device), 2)
                row["tb_s"] = round(case.bytes / row["us"] / 1e6, 3)
                row["tflop_s"] = round(case.flops / row["us"] / 1e6, 1)
            else:
                row["trouble"] = f"off by {off:.2g}"
        except Exception as error:  # one variant that the card refuses must not end the rest
            row["trouble"] = first_line(error)
        yield row


def main(argv: Sequence[str] | None = None) -> int:
    """Tune; 0 if every shape found a variant in time."""
    parser = argparse.ArgumentParser(
        prog="headrace.bench.tune_attention", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--kinds", default="turn,extend", help=f"of {', '.join(KINDS)}")
    parser.add_argument(
        "--match", default="", help="only shapes whose name has this regular expression in it"
    )
    parser.add_argument("--seconds", type=float, default=240.0, help="begin no shape after so many in all")
    parser.add_argument(
        "--processes", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="that compile"
    )
    parser.add_argument("--out", type=Path, help="write every trial to this file")
    given = parser.parse_args(argv)
    kinds = given.kinds.split(",")
    if not set(kinds) <= set(KINDS):
        parser.error(f"kinds are {', '.join(KINDS)}")
    listed = shapes(kinds, given.match)
    if not listed:
        parser.error(f"no shape has {given.match!r} in its name")
    if not torch.cuda.is_available():
        print("needs a GPU: nothing was measured", file=sys.stderr)
        return 2
    begin = time.monotonic()
    todo = kernels_of(listed)
    spawned = multiprocessing.get_context("spawn")  # a fork would inherit a CUDA context that it cannot use
    with ProcessPoolExecutor(given.processes, mp_context=spawned) as pool:
        shares = [todo[number :: given.processes] for number in range(given.processes)]
        for troubles in pool.map(compile_share, [share for share in shares if share]):
            for trouble in troubles:
                print(trouble, flush=True)
    print(f"{len(todo)} kernels compiled after {time.monotonic() - begin:.0f} s", flush=True)
    device = torch.device("cuda")
    everything: list[dict[str, Any]] = []
    best: dict[str, dict[str, Any]] = {}
    for shape in listed:
        if time.monotonic() - begin > given.seconds:
            print(f"out of time before {shape}", flush=True)
            continue
        rows = list(trials(shape, device))
        everything += rows
        timed = sorted((row for row in rows if row["us"] is not None), key=lambda row: row["us"])
        for row in [*timed[:SHOWN], *(row for row in timed[SHOWN:] if row["variant"] == "shipped")]:
            share = max(row["tb_s"] * 1e12 / H200.read_bytes, row["tflop_s"] * 1e12 / H200.flops[2])
            print(
                f"{row['shape']:<48}{row['variant']:<34}{row['us']:>9.2f} us{row['tb_s']:>7.3f} TB/s"
                f"{row['tflop_s']:>7.1f} TFLOP/s {100 * share:>5.1f} %",
                flush=True,
            )
        failed = [row for row in rows if row["us"] is None]
        for row in failed[:2]:
            print(
                f"{row['shape']:<48}{row['variant']:<34}{row['trouble']} ({len(failed)} like it)", flush=True
            )
        if timed:
            best[str(shape)] = timed[0]
        if given.out:
            given.out.write_text(json.dumps(everything) + "\n")
    print(json.dumps(best), flush=True)
    return 0 if len(best) == len(listed) else 1


if __name__ == "__main__":
    sys.exit(main())
