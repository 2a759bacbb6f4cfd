"""Choose the tilings of few-row products on the GPU at hand, beside cuBLAS, and write the table that is shipped.

    python -P -m headrace.bench.tune --out tuning.json
    python -P -m headrace.bench.tune --rows 32,64 --match linear_add --seconds 60 --out more.json

Every candidate of `headrace.kernels.tilings` is compiled (in processes of its own, all cores at once), checked
against cuBLAS, and timed in a graph that rotates over more weights than any cache holds. The library's side is
cuBLAS with the norm and gate kernels that it needs beside it. `--out` gets the table in the form that
kernels/tuning_h200.json has, and `all` in it every trial; the last line printed is the table as JSON.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from headrace.bench.timing import replayed
from headrace.kernels import reference
from headrace.kernels.activation import silu_mul
from headrace.kernels.cases import WIDTHS, sets_for
from headrace.kernels.few_rows import Scratch
from headrace.kernels.gate_up import gate_up
from headrace.kernels.linear_add import linear_add
from headrace.kernels.norm import rms_norm
from headrace.kernels.norm_linear import norm_linear
from headrace.kernels.tilings import ROW_CLASSES, Tiling, candidates

Op = Literal["norm_linear", "gate_up", "linear_add"]
EPS = 1e-6
CLOSE = 2e-2  # of two bfloat16 results that round in different places
ELEMENT = 2  # bytes of bfloat16


@dataclass(frozen=True, slots=True)
class Product:
    """One product of a model: the op, its matrix [n, k] (gate and up counted together) and the rows of x."""

    name: str
    op: Op
    n: int
    k: int
    rows: int

    @property
    def columns(self) -> int:
        return self.n // 2 if self.op == "gate_up" else self.n

    def tilings(self) -> list[Tiling]:
        return candidates(self.n, self.k, self.rows, pairs=self.op == "gate_up")


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of one tiling of a product: microseconds, or why there are none."""

    product: Product
    tiling: Tiling
    us: float | None
    trouble: str | None


def products(models: Sequence[str], rows: Sequence[int], match: str) -> list[Product]:
    """Every product of the models' layers and heads whose name or op has `match` in it, once per shape."""
    found: dict[tuple[int, int, int], Product] = {}
    for model in models:
        widths = WIDTHS[model]
        hidden, inner, head = widths["hidden"], widths["inner"], widths["head_dim"]
        query = widths["heads"] * head
        shapes: list[tuple[str, Op, int, int]] = [
            ("qkv", "norm_linear", query + 2 * widths["kv_heads"] * head, hidden),
            ("o", "linear_add", hidden, query),
            ("gate_up", "gate_up", 2 * inner, hidden),
            ("down", "linear_add", hidden, inner),
            ("head", "norm_linear", widths["vocab"], hidden),
        ]
        for part, op, n, k in shapes:
            for count in rows:
                if match in f"{model} {part} {op}":
                    found.setdefault((n, k, count), Product(f"{model} {part}", op, n, k, count))
    return list(found.values())


class Workplace:
    """Tensors that all products of a process share: one pool that weights are cut from, filled once."""

    def __init__(self, listed: Sequence[Product], device: torch.device, filled: bool) -> None:
        self.device = device
        most = max(self.sets(product) * product.n * product.k for product in listed)
        self.pool = torch.empty(most, dtype=torch.bfloat16, device=device)
        if filled:
            self.pool.normal_()
        splits = max(tiling.splits for product in listed for tiling in product.tilings())
        wide = max(product.n for product in listed if product.n < 1 << 15) if splits > 1 else 1
        self.scratch = Scratch(
            torch.empty(2 * splits * 64 * (wide + 128), dtype=torch.float32, device=device),
            torch.zeros(1 << 16, dtype=torch.int32, device=device),
        )

    @staticmethod
    def sets(product: Product) -> int:
        return sets_for(product.n * product.k * ELEMENT)

    def bench(self, product: Product) -> Bench:
        size = product.n * product.k
        weights = [
            self.pool[index * size : (index + 1) * size].view(product.n, product.k)
            for index in range(self.sets(product))
        ]

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, device=self.device) * scale).to(torch.bfloat16)

        small = product.k**-0.5
        return Bench(
            product,
            weights,
            x=draw(product.rows, product.k, scale=small if product.op == "linear_add" else 1.0),
            norm_weight=draw(product.k, scale=small),
            residual=draw(product.rows, product.columns),
            scratch=self.scratch,
        )


class Bench:
    """One product with its tensors."""

    def __init__(
        self,
        product: Product,
        weights: list[Tensor],
        x: Tensor,
        norm_weight: Tensor,
        residual: Tensor,
        scratch: Scratch,
    ) -> None:
        self.product = product
        self.weights = weights
        self.x = x
        self.norm_weight = norm_weight
        self.residual = residual
        self.scratch = scratch
        self.out = torch.empty_like(residual)
        self.normed = torch.empty_like(x)
        self.both = x.new_empty(product.rows, product.n)

    def call(self, tiling: Tiling, pdl: bool) -> Callable[[int], None]:
        op, x, norm, out = self.product.op, self.x, self.norm_weight, self.out
        early: dict[str, Any] = {"pdl": pdl, "lets": pdl}

        def run(index: int) -> None:
            weight = self.weights[index]
            if op == "gate_up":
                gate_up(x, norm, EPS, weight, None, out, tiling=tiling, **early)
            elif op == "norm_linear":
                norm_linear(x, norm, EPS, weight, None, out, scratch=self.scratch, tiling=tiling, **early)
            else:
                linear_add(x, weight, None, self.residual, out, scratch=self.scratch, tiling=tiling, **early)

        return run

    def library(self) -> Callable[[int], None]:
        """The same work by cuBLAS and what it needs beside it."""
        op, x = self.product.op, self.x

        def run(index: int) -> None:
            weight = self.weights[index].t()
            if op == "linear_add":
                torch.addmm(self.residual, x, weight, out=self.out)
                return
            rms_norm(x, self.norm_weight, EPS, self.normed)
            if op == "norm_linear":
                torch.mm(self.normed, weight, out=self.out)
            else:
                torch.mm(self.normed, weight, out=self.both)
                silu_mul(self.both, self.out)

        return run

    def twin(self) -> Tensor:
        op, weight = self.product.op, self.weights[0]
        if op == "linear_add":
            return torch.addmm(self.residual, self.x, weight.t())
        ask = reference.gate_up if op == "gate_up" else reference.norm_linear
        return ask(self.x, self.norm_weight, EPS, weight)

    def trial(self, tiling: Tiling, twin: Tensor, pdl: bool) -> Trial:
        """Check and time one tiling."""
        call = self.call(tiling, pdl)
        try:
            self.out.fill_(float("nan"))
            call(0)
            off = float((self.out.float() - twin.float()).norm() / twin.float().norm())
            if not off < CLOSE:
                return Trial(self.product, tiling, None, f"off by {off:.2g}")
            taken = replayed(call, len(self.weights), self.x.device)
        except Exception as error:  # one tiling that the compiler or the card refuses must not end the rest
            return Trial(self.product, tiling, None, first_line(error))
        return Trial(self.product, tiling, 1e6 * taken, None)


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:160]


def compile_all(listed: Sequence[Product], pdl: bool) -> list[str]:
    """Launch every tiling of these products once, so that its machine code lies in Triton's cache on disk, and
    return what went wrong. Runs in a process of its own; the weights are whatever the memory holds."""
    device = torch.device("cuda")
    place = Workplace(listed, device, filled=False)
    troubles = []
    for product in listed:
        bench = place.bench(product)
        for tiling in product.tilings():
            try:
                bench.call(tiling, pdl)(0)
            except Exception as error:
                troubles.append(f"{product.name} rows={product.rows} {astuple(tiling)}: {first_line(error)}")
    torch.cuda.synchronize()
    return troubles


def shares(listed: Sequence[Product], count: int) -> list[list[Product]]:
    """The products dealt out so that each share has about equally many tilings."""
    dealt: list[list[Product]] = [[] for _ in range(max(1, min(count, len(listed))))]
    for product in sorted(listed, key=lambda product: -len(product.tilings())):
        min(dealt, key=lambda share: sum(len(each.tilings()) for each in share)).append(product)
    return dealt


def measure(listed: Sequence[Product], place: Workplace, pdl: bool, until: float) -> Iterator[list[Trial]]:
    """All trials of one product after the other, the library's as one with tiling (0, 0, 0); ends at `until`
    (monotonic seconds)."""
    for product in listed:
        if time.monotonic() > until:
            return
        bench = place.bench(product)
        twin = bench.twin()
        trials = [bench.trial(tiling, twin, pdl) for tiling in product.tilings()]
        taken = replayed(bench.library(), len(bench.weights), place.device)
        yield [*trials, Trial(product, LIBRARY, 1e6 * taken, None)]


LIBRARY = Tiling(0, 0, 0)


def row_of(trials: Sequence[Trial]) -> dict[str, Any] | None:
    """The table's row for one product: its fastest tiling; None if none worked."""
    timed = [(trial.us, trial) for trial in trials if trial.us is not None]
    library = next(us for us, trial in timed if trial.tiling == LIBRARY)
    own = [(us, trial) for us, trial in timed if trial.tiling != LIBRARY]
    if not own:
        return None
    us, best = min(own, key=lambda pair: pair[0])
    product = best.product
    return {
        "n": product.n,
        "k": product.k,
        "rows": product.rows,
        "tiling": list(astuple(best.tiling)),
        "us": round(us, 2),
        "library_us": round(library, 2),
    }


def written(rows: Sequence[dict[str, Any]], facts: dict[str, str], trials: Sequence[Trial]) -> str:
    """The table as text, one row per line, for `tilings.read_table`; and all trials, which it does not look at."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    head = ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items())
    everything = defaultdict(list)
    for trial in trials:
        shape = f"{trial.product.n}x{trial.product.k} rows={trial.product.rows}"
        everything[shape].append([*astuple(trial.tiling), trial.us and round(trial.us, 2), trial.trouble])
    rest = f',\n"all": {json.dumps(everything)}' if trials else ""
    return f'{{{head}, "measured": [\n{lines}\n]{rest}}}\n'


def print_row(row: dict[str, Any], product: Product, trials: Sequence[Trial]) -> None:
    bytes_moved = ELEMENT * (product.n * product.k + product.rows * (product.k + product.columns))
    timed = sorted(trial.us for trial in trials if trial.us is not None and trial.tiling != LIBRARY)
    print(
        f"{product.name:<22}{product.n:>7}x{product.k:<6}{product.rows:>4}  {row['tiling']!s:<24}{row['us']:>9.2f}"
        f"{bytes_moved / row['us'] / 1e6:>7.2f}{row['library_us']:>10.2f}{row['library_us'] / row['us']:>7.2f}"
        f"   {len(timed)}/{len(trials) - 1} ran, second {timed[1] if len(timed) > 1 else timed[0]:.2f}",
        flush=True,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Tune; 0 if every product found a tiling in time."""
    parser = argparse.ArgumentParser(
        prog="headrace.bench.tune", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--models", default=",".join(WIDTHS), help="whose shapes")
    parser.add_argument("--rows", default="1,2,4,8,16", help=f"row classes, of {ROW_CLASSES}")
    parser.add_argument("--match", default="", help="only products with this in 'model part op'")
    parser.add_argument("--seconds", type=float, default=145.0, help="stop measuring after so many in all")
    parser.add_argument(
        "--processes", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="that compile"
    )
    parser.add_argument("--pdl", action="store_true", help="launch as programmatic dependents of one another")
    parser.add_argument("--out", type=Path, help="write the table and all trials to this file")
    given = parser.parse_args(argv)
    rows = [int(count) for count in given.rows.split(",")]
    if not set(rows) <= set(ROW_CLASSES) or not set(given.models.split(",")) <= set(WIDTHS):
        parser.error(f"rows are of {ROW_CLASSES}, models of {tuple(WIDTHS)}")
    listed = products(given.models.split(","), rows, given.match)
    if not listed:
        parser.error(f"nothing has {given.match!r} in its name")
    if not torch.cuda.is_available():
        print("needs a GPU: nothing was measured", file=sys.stderr)
        return 2
    return tune(listed, given.pdl, given.processes, given.seconds, given.out)


def tune(listed: Sequence[Product], pdl: bool, processes: int, seconds: float, out: Path | None) -> int:
    begin = time.monotonic()
    spawned = multiprocessing.get_context("spawn")  # a fork would inherit a CUDA context that it cannot use
    dealt = shares(listed, processes)
    with ProcessPoolExecutor(len(dealt), mp_context=spawned) as pool:
        troubles = [line for lines in pool.map(compile_all, dealt, [pdl] * len(dealt)) for line in lines]
    tilings = sum(len(product.tilings()) for product in listed)
    print(f"compiled {tilings} tilings in {time.monotonic() - begin:.0f} s, {len(troubles)} refused")
    for line in troubles:
        print(f"  {line}")
    device = torch.device("cuda")
    place = Workplace(listed, device, filled=True)
    print(f"{'product':<22}{'N x K':>12} rows  {'tiling':<24}{'us':>9}{'TB/s':>7}{'cuBLAS':>10}{'gain':>7}")
    table, everything = [], []
    with torch.no_grad():
        for trials in measure(listed, place, pdl, begin + seconds):
            everything += trials
            row = row_of(trials)
            if row is None:
                print(f"{trials[0].product}: no tiling works")
                continue
            table.append(row)
            print_row(row, trials[0].product, trials)
    for trial in everything:
        if trial.trouble is not None:
            print(
                f"  {trial.product.name} rows={trial.product.rows} {astuple(trial.tiling)}: {trial.trouble}"
            )
    facts = {
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton"),
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(written(table, facts, everything))
    print(f"{len(table)} of {len(listed)} products in {time.monotonic() - begin:.0f} s")
    print(json.dumps({**facts, "measured": table}))
    return 0 if len(table) == len(listed) else 1


if __name__ == "__main__":
    sys.exit(main())
