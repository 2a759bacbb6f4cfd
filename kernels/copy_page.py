"""Whole pages copied inside the KV slab, in every layer: what a fork of a request needs before it writes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from headrace.kernels import reference
from headrace.kernels.cases import WIDTHS, Case
from headrace.kernels.paged_cases import PAGE_SIZE, timed_heads

BLOCK = 4096  # elements that one program moves at a time; two pages of a large model need 16 to 32 such moves


def copy_pages(slab: Tensor, sources: Tensor, targets: Tensor) -> None:
    """Page targets[i] is a copy of page sources[i], keys and values, in all layers.

    slab [L, 2, P, page_size, G, D] whose pages are dense: the page_size * G * D elements of one page lie without a
    gap, in any order. sources, targets int32 [n]; an entry whose source or target is -1 copies nothing. Targets are
    distinct and none of them is a source.
    """
    assert slab.ndim == 6 and slab.shape[1] == 2, slab.shape
    assert slab[0, 0, 0].numel() > 0 and _dense(slab), slab.stride()
    assert sources.dtype == targets.dtype == torch.int32
    assert sources.shape == targets.shape and sources.ndim == 1
    assert sources.is_contiguous() and targets.is_contiguous()
    count = len(sources)
    if count == 0:
        return
    elements = slab[0, 0, 0].numel()
    _copy_pages[(count, slab.shape[0] * 2)](
        slab, sources, targets, slab.stride(0), slab.stride(1), slab.stride(2),
        elements=elements, block=min(BLOCK, triton.next_power_of_2(elements)), num_warps=8,
    )  # fmt: skip


def _dense(slab: Tensor) -> bool:
    """Whether the elements of each page are one block of memory."""
    step = 1
    for stride, size in sorted(zip(slab.stride()[3:], slab.shape[3:], strict=True)):
        if size > 1 and stride != step:
            return False
        step *= size
    return True


@triton.jit
def _copy_pages(
    slab,
    sources,
    targets,
    layer_stride,
    side_stride,
    page_stride,
    elements: tl.constexpr,
    block: tl.constexpr,
):
    entry = tl.program_id(0)
    layer = (tl.program_id(1) // 2).to(tl.int64)
    side = (tl.program_id(1) % 2).to(tl.int64)
    source = tl.load(sources + entry).to(tl.int64)
    target = tl.load(targets + entry).to(tl.int64)
    if (source >= 0) & (target >= 0):
        base = slab + layer * layer_stride + side * side_stride
        for start in range(0, elements, block):
            offsets = start + tl.arange(0, block)
            inside = offsets < elements
            part = tl.load(base + source * page_stride + offsets, mask=inside)
            tl.store(base + target * page_stride + offsets, part, mask=inside)


def bench_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """One page and four in all layers; the rest of eight entries are empty."""
    for heads in timed_heads():
        layers = WIDTHS[heads.model]["layers"]
        shape = (layers, 2, 16, heads.kv_heads, PAGE_SIZE, heads.head_dim)
        slab = torch.randn(shape, device=device, dtype=dtype).transpose(3, 4)
        for count in (1, 4):
            bytes_moved = 2 * count * layers * heads.kv_bytes(PAGE_SIZE, dtype)
            yield _case(f"{heads.model} pages={count}", slab, count, bytes_moved)


def _case(name: str, slab: Tensor, count: int, bytes_moved: int) -> Case:
    sources = torch.full((8,), -1, dtype=torch.int32, device=slab.device)
    targets = sources.clone()
    sources[:count] = torch.arange(count)
    targets[:count] = torch.arange(8, 8 + count)
    wide = (sources[:count].long(), targets[:count].long())
    return Case(
        name=name,
        run=lambda _: copy_pages(slab, sources, targets),
        twin=lambda _: reference.copy_pages(slab, *wide),
        peer=None,
        bytes=bytes_moved,
        flops=0,
    )
