"""Logprobs of given tokens and of the most likely ones, from rows of logits that lie on the device. Two
launches.

`_survey` reads each row once, a program per tile of 1024 tokens: the tile's peak, its mass (sum of exp(x -
peak)) and its own best tokens. `_rank`, one program per row, joins the masses, picks the best of the tiles'
best and subtracts. What a tile leaves depends on its row alone, so a logprob does not depend on the batch.
The arithmetic is that of reference_logprobs.py: value = (x - peak) - log(mass), for every token of a row with
the same two numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from headrace.kernels import reference_logprobs
from headrace.kernels.cases import WIDTHS, Case
from headrace.kernels.gumbel import NO_TOKEN

TILE = 1024
MOST_TOP = 20
IDS = 1  # where the ranked ids of a place begin in its words; word 0 is the value of the wanted token
TOPS = IDS + MOST_TOP
PLACE_WORDS = 44  # a multiple of 4: whichever place an output begins at, it lies as Triton likes its pointers
SURVEY_WARPS = 4
RANK_WARPS = 8

_MOST = tl.constexpr(MOST_TOP)
_IDS = tl.constexpr(IDS)
_TOPS = tl.constexpr(TOPS)
_WORDS = tl.constexpr(PLACE_WORDS)


@dataclass(frozen=True, slots=True)
class LogprobScratch:
    """Device memory between the two launches, for up to `rows` places; nothing in it outlives a call.

    peaks, masses: float32 [rows, tiles]. best: float32, and who: int32 [rows, tiles, MOST_TOP]: each tile's
    best."""

    peaks: Tensor
    masses: Tensor
    best: Tensor
    who: Tensor


def scratch(rows: int, vocab: int, device: torch.device | str) -> LogprobScratch:
    """Memory for `logprobs` of at most `rows` places."""
    tiles = triton.cdiv(vocab, TILE)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(rows, *shape, dtype=dtype, device=device)

    return LogprobScratch(
        peaks=empty(tiles),
        masses=empty(tiles),
        best=empty(tiles, MOST_TOP),
        who=empty(tiles, MOST_TOP, dtype=torch.int32),
    )


def logprobs(
    logits: Tensor, rows: Tensor, targets: Tensor, top: int, space: LogprobScratch, out: Tensor
) -> None:
    """out[i] tells of logits[rows[i]]: word 0 the logprob of token targets[rows[i]], words IDS + k the id of
    the k-th most likely token, words TOPS + k its logprob, for k < top; floats bit for bit. Other words stay
    as they are.

    logits: float32, bfloat16 or float16 [R, V], the last dim contiguous. rows: int32 [n], in [0, R). targets:
    int32, at least [R]; one below 0 reads token 0. out: int32 [n, PLACE_WORDS], contiguous. A row with a NaN
    tells NaN, and ids that mean nothing."""
    count, vocab = rows.numel(), logits.shape[1]
    assert logits.stride(1) == 1 or vocab == 1
    assert logits.dtype in (torch.float32, torch.bfloat16, torch.float16), logits.dtype
    assert rows.dtype == targets.dtype == out.dtype == torch.int32
    assert rows.is_contiguous() and targets.is_contiguous() and out.is_contiguous()
    assert out.shape == (count, PLACE_WORDS) and targets.numel() >= logits.shape[0], (
        out.shape,
        targets.shape,
    )
    assert 0 <= top <= min(MOST_TOP, vocab), top
    tiles = triton.cdiv(vocab, TILE)
    assert count <= space.peaks.shape[0] and space.peaks.shape[1] == tiles, (
        "scratch is made for this vocabulary"
    )
    if not count:
        return
    _survey[(tiles, count)](
        logits, logits.stride(0), rows, space.peaks, space.masses, space.best, space.who,
        vocab, tiles, top, TILE=TILE, num_warps=SURVEY_WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    _rank[(count,)](
        logits, logits.stride(0), rows, targets, space.peaks, space.masses, space.best, space.who, out,
        tiles, top, TILE_SPAN=max(16, triton.next_power_of_2(tiles)),
        BEST_SPAN=max(32, triton.next_power_of_2(tiles * MOST_TOP)),
        num_warps=RANK_WARPS, enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit(do_not_specialize=["tiles", "top"])
def _survey(
    logits, logits_stride, rows, peaks, masses, best, who, vocab, tiles, top, TILE: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    i = tl.program_id(1).to(tl.int64)
    row = tl.load(rows + i).to(tl.int64)
    token = tile * TILE + tl.arange(0, TILE)
    free = token < vocab
    x = tl.load(logits + row * logits_stride + token, mask=free, other=float("-inf")).to(tl.float32)
    peak = tl.max(x)
    shift = tl.where(peak > float("-inf"), peak, 0.0)
    place = i * tiles + tile
    tl.store(peaks + place, peak)
    tl.store(masses + place, tl.sum(tl.exp(x - shift)))
    for rank in range(top):
        most = tl.max(tl.where(free, x, float("-inf")))
        first = tl.min(tl.where(free & (x == most), token, NO_TOKEN))
        tl.store(best + place * _MOST + rank, most)
        tl.store(who + place * _MOST + rank, first)
        free = free & (token != first)


@triton.jit(do_not_specialize=["tiles", "top"])
def _rank(
    logits, logits_stride, rows, targets, peaks, masses, best, who, out, tiles, top,
    TILE_SPAN: tl.constexpr, BEST_SPAN: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + i).to(tl.int64)
    tile = tl.arange(0, TILE_SPAN)
    peak_of = tl.load(peaks + i * tiles + tile, mask=tile < tiles, other=float("-inf"))
    mass_of = tl.load(masses + i * tiles + tile, mask=tile < tiles, other=0.0)
    peak = tl.max(peak_of)
    total = tl.log(tl.sum(mass_of * tl.exp(peak_of - peak)))
    target = tl.maximum(tl.load(targets + row), 0)
    words = out + i * _WORDS
    x = tl.load(logits + row * logits_stride + target).to(tl.float32)
    tl.store(words, ((x - peak) - total).to(tl.int32, bitcast=True))
    one = tl.arange(0, BEST_SPAN)
    free = (one < tiles * _MOST) & (one % _MOST < top)
    value = tl.load(best + i * tiles * _MOST + one, mask=free, other=float("-inf"))
    token = tl.load(who + i * tiles * _MOST + one, mask=free, other=NO_TOKEN)
    free = free & (token < NO_TOKEN)
    for rank in range(top):
        most = tl.max(tl.where(free, value, float("-inf")))
        first = tl.min(tl.where(free & (value == most), token, NO_TOKEN))
        tl.store(words + _IDS + rank, first)
        tl.store(words + _TOPS + rank, ((most - peak) - total).to(tl.int32, bitcast=True))
        free = free & (token != first)


def bench_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """The chosen token alone, and with the twenty most likely ones."""
    for model, rows in (("qwen3-0.6b", 1), ("qwen3-0.6b", 64), ("llama-3.1-8b", 64), ("llama-3.1-8b", 256)):
        for top in (0, MOST_TOP):
            yield _case(f"{model} top={top} rows={rows}", WIDTHS[model]["vocab"], rows, top, device, dtype)


def _case(name: str, vocab: int, rows: int, top: int, device: torch.device, dtype: torch.dtype) -> Case:
    logits = (torch.randn(rows, vocab, device=device) * 4.0).to(dtype)
    which = torch.arange(rows, dtype=torch.int32, device=device)
    targets = torch.randint(vocab, (rows,), dtype=torch.int32, device=device)
    out = torch.zeros(rows, PLACE_WORDS, dtype=torch.int32, device=device)
    space = scratch(rows, vocab, device)

    def run(_: int) -> Tensor:
        logprobs(logits, which, targets, top, space, out)
        return out[:, 0].view(torch.float32)

    def twin(_: int) -> Tensor:
        return reference_logprobs.logprobs(logits, targets, top)[0]

    def peer(_: int) -> Tensor:
        """As plain torch is written for a batch."""
        wide = logits.float().log_softmax(-1)
        if top:
            wide.topk(top, -1)
        return wide.gather(1, targets.long()[:, None])[:, 0]

    return Case(
        name=name,
        run=run,
        twin=twin,
        peer=peer,
        bytes=logits.numel() * logits.element_size(),
        flops=2 * logits.numel(),
    )
