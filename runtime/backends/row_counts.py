"""Row counts at which a product gives a row the same bits, found by trying, and how rows are cut to them.

A library takes another kernel for another number of rows, and may then sum in another order. Which counts agree is
a fact of this machine and its libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Compute = Callable[[Tensor], Tensor]  # rows to rows


def agreeing(counts: Sequence[int], compute: Compute, x: Sequence[Tensor]) -> tuple[int, ...]:
    """Those of `counts`, ascending, at which `compute` gives a row the bits that it has at counts[0], at any place
    among the rows. x: draws of max(counts) rows, a multiple of counts[0]."""
    measure = counts[0]
    agreed = set(counts)
    for rows in x:
        expected = torch.cat([compute(part) for part in rows.split(measure)])
        for count in counts:
            moved = ((compute(rows[:count].roll(step, 0)), step) for step in {0, 1, count // 2, count - 1})
            if not all(torch.equal(found.roll(-step, 0), expected[:count]) for found, step in moved):
                agreed.discard(count)
    assert measure in agreed, (
        "a product depends on the place of a row: nothing can be promised on this machine"
    )
    return tuple(sorted(agreed))


def pieces(rows: int, counts: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """(begin, end, padded count) of the products that `rows` rows need. counts: ascending."""
    begin = 0
    while begin < rows:
        left = rows - begin
        fitting = [count for count in counts if count <= left]
        count = fitting[-1] if fitting and (left >= counts[-1] or fitting[-1] == left) else 0
        if not count:
            count = next(count for count in counts if count >= left)
        yield begin, min(rows, begin + count), count
        begin += count
