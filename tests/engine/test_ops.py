"""The CPU backend's ops against their plain twins, the packed linear against torch's, and the static inputs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from headrace.graphs.buckets import bucket_for, bucket_list
from headrace.graphs.inputs import FIELDS, FROM_SLOT, RowLayout, StepBuffers, StepInputs, StepShape
from headrace.kernels import reference
from headrace.runtime.backends import cpu_attention
from headrace.runtime.backends.cpu import CpuOps, free_bytes, has_bf16, physical_cores
from headrace.runtime.backends.cpu_attention import Cells
from headrace.runtime.backends.onednn import PlainLinear, make_linear, packs

DTYPES = (torch.float32, torch.bfloat16)
# A bfloat16 has 8 bits. One rounding more or less is 2^-7 of the value, or of a term (up to 4 here) that cancels.
CLOSE = {torch.float32: {"rtol": 2e-5, "atol": 2e-6}, torch.bfloat16: {"rtol": 2**-7, "atol": 2**-6}}


@pytest.fixture
def random_tensor() -> Callable[..., torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape, dtype=torch.float32: torch.randn(*shape, generator=generator).to(dtype)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


# -- matrices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "out", "size"), [(1, 96, 64), (8, 33, 20), (3, 1, 7), (130, 64, 48), (2, 512, 1)]
)
@pytest.mark.parametrize("biased", [False, True])
def test_packed_linear(
    dtype: torch.dtype,
    rows: int,
    out: int,
    size: int,
    biased: bool,
    random_tensor: Callable[..., torch.Tensor],
) -> None:
    """This test is the watch on the private torch call that onednn.py makes."""
    x, weight = random_tensor(rows, size, dtype=dtype), random_tensor(out, size, dtype=dtype)
    bias = random_tensor(out, dtype=dtype) if biased else None
    residual = random_tensor(rows, out, dtype=dtype)
    linear = make_linear(weight, bias)
    assert isinstance(linear, PlainLinear) != packs(dtype)
    expected = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    # Sums of `size` products of size one: the error grows with their root.
    close = {"rtol": CLOSE[dtype]["rtol"], "atol": CLOSE[dtype]["atol"] * size**0.5}
    for found, exact in ((linear(x), expected), (linear(x, residual), expected + residual.float())):
        assert found.dtype is dtype and found.shape == exact.shape
        torch.testing.assert_close(found.float(), exact, **close)
    plain = PlainLinear(weight, bias)
    torch.testing.assert_close(plain(x).float(), expected, **close)
    torch.testing.assert_close(plain(x, residual).float(), expected + residual.float(), **close)


def test_packed_bfloat16_equals_the_eager_linear(random_tensor: Callable[..., torch.Tensor]) -> None:
    if not packs(torch.bfloat16):
        assert isinstance(make_linear(random_tensor(4, 4, dtype=torch.bfloat16), None), PlainLinear)
        return
    weight = random_tensor(256, 128, dtype=torch.bfloat16)
    linear = make_linear(weight.clone(), None)
    for rows in (1, 2, 7, 8, 64):
        x = random_tensor(rows, 128, dtype=torch.bfloat16)
        torch.testing.assert_close(linear(x), F.linear(x, weight), **CLOSE[torch.bfloat16])


# -- ops and their twins -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 2, 8, 65])
def test_elementwise_twins(
    dtype: torch.dtype, tokens: int, random_tensor: Callable[..., torch.Tensor]
) -> None:
    ops, close = CpuOps(dtype), CLOSE[dtype]
    x = random_tensor(tokens, 48, dtype=dtype)
    weight = 1 + 0.1 * random_tensor(48, dtype=dtype)
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), **close)
    torch.testing.assert_close(ops.silu_mul(x), reference.silu_mul(x), **close)
    # Heads as they come: a slice of a wider row.
    heads = random_tensor(tokens, 6, 16, dtype=dtype)[:, :4]
    own = 1 + 0.1 * random_tensor(4, 16, dtype=dtype)
    before = heads.clone()
    torch.testing.assert_close(ops.rms_norm(heads, own, 1e-6), reference.rms_norm(heads, own, 1e-6), **close)
    cos, sin = random_tensor(tokens, 1, 16, dtype=dtype), random_tensor(tokens, 1, 16, dtype=dtype)
    torch.testing.assert_close(ops.rope(heads, cos, sin), reference.rope(heads, cos, sin), **close)
    assert torch.equal(heads, before), "inputs stay as they were"


def test_rms_norm_of_extreme_rows(random_tensor: Callable[..., torch.Tensor]) -> None:
    weight = torch.ones(32)
    for scale in (0.0, 1e-8, 1e4):
        x = random_tensor(3, 32) * scale
        torch.testing.assert_close(CpuOps.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6))


def test_store_and_copy(random_tensor: Callable[..., torch.Tensor]) -> None:
    keys, values = random_tensor(3, 2, 4), random_tensor(3, 2, 4)
    slabs = [random_tensor(24, 2, 4) for _ in range(2)]
    twins = [slab.clone() for slab in slabs]
    cells = torch.tensor([7, 0, 23])
    CpuOps.store_kv(keys, values, *slabs, cells)
    reference.store_kv(keys, values, *twins, cells)
    assert all(torch.equal(slab, twin) for slab, twin in zip(slabs, twins, strict=True))
    assert torch.equal(slabs[0][cells], keys) and torch.equal(slabs[1][cells], values)
    reference.store_kv(keys, values, *twins, torch.tensor([-1, -1, -1]))
    assert all(torch.equal(slab, twin) for slab, twin in zip(slabs, twins, strict=True)), (
        "padding is not written"
    )
    with pytest.raises(IndexError):
        CpuOps.store_kv(keys, values, *slabs, torch.tensor([-1, 0, 1]))
    slab = random_tensor(2, 2, 5, 3, 2, 4)
    copied = slab.clone()
    reference.copy_pages(copied, torch.tensor([4, 0]), torch.tensor([1, 2]))
    assert torch.equal(copied[:, :, 1], slab[:, :, 4]) and torch.equal(copied[:, :, 2], slab[:, :, 0])
    assert torch.equal(copied[:, :, [0, 3, 4]], slab[:, :, [0, 3, 4]])


def test_tokens_and_cells() -> None:
    ids = torch.tensor([FROM_SLOT, 5, FROM_SLOT, 0])
    last = torch.tensor([10, 11, 12])
    found = reference.resolve_tokens(ids, torch.tensor([2, 1, 0, -1], dtype=torch.int32), last)
    assert found.tolist() == [12, 5, 10, 0]
    table = torch.tensor([[3, 9], [7, 1]], dtype=torch.int32)
    slots = torch.tensor([0, 0, 1, -1], dtype=torch.int32)
    cells = reference.kv_cells(table, slots, torch.tensor([3, 4, 6, 0]), 4)
    assert cells.tolist() == [15, 36, 6, -1]


class World:
    """A slab whose unowned cells are NaN, random page tables, and random rows on them."""

    def __init__(
        self, seed: int, dtype: torch.dtype, heads: int, kv_heads: int, size: int, ordered: bool
    ) -> None:
        rng = random.Random(seed)
        self.page_size = rng.choice([1, 4, 16])
        pages = 400 // self.page_size
        self.table = torch.zeros((6, 100 // self.page_size + 2), dtype=torch.int32)
        generator = torch.Generator().manual_seed(seed)
        shape = (pages * self.page_size, kv_heads, size)
        self.keys = torch.full(shape, float("nan"), dtype=dtype)
        self.values = torch.full(shape, float("nan"), dtype=dtype)
        free = list(range(pages))
        if not ordered:
            rng.shuffle(free)
        rows = []
        for slot in rng.sample(range(6), rng.randrange(1, 6)):
            length = rng.randrange(1, 75)
            mine = [free.pop(0) for _ in range(-(-length // self.page_size))]
            self.table[slot, : len(mine)] = torch.tensor(mine)
            for place in range(length):
                cell = mine[place // self.page_size] * self.page_size + place % self.page_size
                for slab in (self.keys, self.values):
                    slab[cell] = torch.randn(kv_heads, size, generator=generator).to(dtype)
            rows.append((slot, length))
        split = rng.randrange(len(rows) + 1)
        decode = [RowLayout(slot, length - 1, 1, None, True) for slot, length in rows[:split]]
        prefill = []
        for slot, length in rows[split:]:
            count = rng.randrange(1, length + 1)
            prefill.append(RowLayout(slot, length - count, count, [1] * count, True))
        self.inputs = StepBuffers(600, 6).fill(decode, prefill)
        tokens = self.inputs.shape.tokens
        # A slice of a wider tensor, as the model has it.
        self.query = torch.randn(tokens, heads + kv_heads, size, generator=generator).to(dtype)[:, :heads]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 2, 16), (3, 3, 8), (8, 1, 20)])
@pytest.mark.parametrize("window", [0, 7, 40])
@pytest.mark.parametrize("products", [False, True])
def test_attention_twins(
    dtype: torch.dtype, heads: int, kv_heads: int, size: int, window: int, products: bool, monkeypatch: Any
) -> None:
    """Random rows over random pages. A cell that a row may not read is NaN, or another row's."""
    monkeypatch.setattr(cpu_attention, "MANY", 1 if products else 1 << 30)
    monkeypatch.setattr(cpu_attention, "SCORES", 500)  # some chunks are cut, some are not
    for seed in range(12):
        monkeypatch.setattr(cpu_attention, "CALL_BYTES", (1 << 20) if seed % 3 else 4096)
        monkeypatch.setattr(cpu_attention, "GATHER_BYTES", (1 << 20) if seed % 4 else 2048)
        ops = CpuOps(dtype, kv_heads * size)
        world = World(seed, dtype, heads, kv_heads, size, ordered=seed % 2 == 0)
        inputs = world.inputs
        reach = ops.reach(inputs, world.table, world.page_size, window)
        found = ops.attend(world.query, world.keys, world.values, reach, 0.3)
        expected = reference.extend_attention(
            world.query,
            world.keys,
            world.values,
            world.table,
            inputs.slots,
            inputs.lengths,
            inputs.row_offsets,
            world.page_size,
            0.3,
            window,
        )
        assert torch.isfinite(expected).all()
        torch.testing.assert_close(found, expected, **CLOSE[dtype])


def test_scores_of_matrix_products_are_not_rounded(monkeypatch: Any) -> None:
    """Scores around 60 that differ by a few hundredths: rounded to bfloat16 (steps of 0.25) the answer would be the
    plain mean. The products must be as near to the truth as the fused attention, which sums in float32."""
    generator = torch.Generator().manual_seed(2)
    query = (torch.randn(64, 2, 32, generator=generator) * 0.02 + 1.0).to(torch.bfloat16)
    keys = (torch.randn(64, 2, 32, generator=generator) * 0.02 + 1.9).to(torch.bfloat16)
    values = torch.randn(64, 2, 32, generator=generator).to(torch.bfloat16)
    table = torch.zeros((1, 1), dtype=torch.int32)
    inputs = StepBuffers(64, 1).fill([], [RowLayout(0, 0, 64, [1] * 64, True)])
    exact = F.scaled_dot_product_attention(
        query.float().transpose(0, 1), keys.float().transpose(0, 1), values.float().transpose(0, 1), is_causal=True,
        scale=1.0,
    ).transpose(0, 1)  # fmt: skip
    errors = []
    for many in (1 << 30, 1):
        monkeypatch.setattr(cpu_attention, "MANY", many)
        ops = CpuOps(torch.bfloat16)
        found = ops.attend(query, keys, values, ops.reach(inputs, table, 64, 0), 1.0)
        errors.append((found.float() - exact).square().mean().sqrt().item())
    assert errors[1] <= 1.5 * errors[0]


def test_the_decode_twin_is_the_extend_twin_with_one_token_rows() -> None:
    world = World(3, torch.float32, 4, 2, 16, ordered=False)
    slots, lengths = world.inputs.slots, world.inputs.lengths
    query = torch.randn(len(slots), 4, 16, generator=torch.Generator().manual_seed(1))
    arguments = (world.keys, world.values, world.table)
    padded_slots = torch.cat((slots, torch.tensor([-1], dtype=torch.int32)))
    padded_lengths = torch.cat((lengths, torch.tensor([0], dtype=torch.int32)))
    padded = torch.cat((query, query[:1]))
    found = reference.decode_attention(
        padded, *arguments, padded_slots, padded_lengths, world.page_size, 0.25, 0
    )
    edges = torch.arange(len(slots) + 1, dtype=torch.int32)
    expected = reference.extend_attention(query, *arguments, slots, lengths, edges, world.page_size, 0.25, 0)
    assert torch.equal(found[:-1], expected) and not found[-1].any()


def test_pages_in_a_row_are_read_in_place() -> None:
    table = torch.tensor([[4, 5, 6], [6, 5, 4], [4, 6, 5]], dtype=torch.int32)
    for slot, run in ((0, True), (1, False), (2, False)):
        inputs = StepBuffers(4, 3).fill([RowLayout(slot, 10, 1, None, True)], [])
        cells: Cells = CpuOps(torch.float32).reach(inputs, table, 4, 0).decode[0].cells
        assert (cells.index is None) == run
        slab = torch.arange(40.0).view(40, 1, 1)
        expected = [page * 4 + offset for page in table[slot].tolist() for offset in range(4)][:11]
        assert cells.read(slab).flatten().tolist() == expected


def test_decode_rows_share_calls_by_length() -> None:
    """Long and short rows do not pad each other, and a call stays within what the cache holds."""
    table = torch.zeros((6, 100), dtype=torch.int32)

    def rows_of_calls(lengths: list[int], cell_elements: int) -> list[tuple[int, int]]:
        rows = [RowLayout(slot, length - 1, 1, None, True) for slot, length in enumerate(lengths)]
        inputs = StepBuffers(8, 8).fill(rows, [])
        groups = CpuOps(torch.float32, cell_elements).reach(inputs, table, 16, 0).decode
        return [(group.cells.rows, group.cells.length) for group in groups]

    assert rows_of_calls([1000, 20, 990, 70, 1500, 10], 1) == [(1, 1500), (2, 1000), (3, 70)]
    assert rows_of_calls([100, 99, 98, 97], cpu_attention.CALL_BYTES // 4 // 250) == [(2, 100), (2, 98)]
    assert rows_of_calls([100, 99], cpu_attention.CALL_BYTES) == [(1, 100), (1, 99)], "one row always fits"


# -- static inputs -----------------------------------------------------------------------------------------------


def test_inputs_of_a_mixed_step() -> None:
    buffers = StepBuffers(32, 8)
    decode = [RowLayout(5, 9, 1, None, True), RowLayout(2, 0, 1, [7], False)]
    prefill = [RowLayout(3, 4, 3, (1, 2, 3), True)]
    inputs = buffers.fill(decode, prefill)
    assert inputs.shape == StepShape(2, 1, 5, 2)
    assert inputs.token_ids.tolist() == [FROM_SLOT, 7, 1, 2, 3]
    assert inputs.positions.tolist() == [9, 0, 4, 5, 6]
    assert inputs.token_slots.tolist() == [5, 2, 3, 3, 3]
    assert inputs.slots.tolist() == [5, 2, 3] and inputs.lengths.tolist() == [10, 1, 7]
    assert inputs.row_offsets.tolist() == [0, 1, 2, 5]
    assert inputs.sample_tokens.tolist() == [0, 4]


def test_padding_follows_the_policies() -> None:
    buffers = StepBuffers(32, 8)
    buffers.fill([RowLayout(slot, 100, 1, [9], True) for slot in range(8)], [])  # old values in every tail
    rows = [RowLayout(3, 6, 1, None, True), RowLayout(1, 2, 1, None, True)]
    inputs = buffers.fill(rows, [], StepShape(4, 0, 4, 4))
    for name, field in FIELDS.items():
        tensor = getattr(inputs, name)
        assert tensor.dtype is field.dtype
        assert tensor[-2:].tolist() == ([2, 2] if name == "row_offsets" else [field.pad] * 2), name
    assert inputs.token_ids.data_ptr() == buffers.device["token_ids"].data_ptr(), (
        "a view of the static tensor"
    )


def test_padded_rows_change_nothing() -> None:
    """The ops of a padded step, run by the twins: live rows have the values of the unpadded step."""
    world = World(8, torch.float32, 4, 2, 16, ordered=False)
    rows = [RowLayout(int(slot), int(length) - 1, 1, None, True) for slot, length in zip(
        world.inputs.slots, world.inputs.lengths, strict=True)]  # fmt: skip
    count = len(rows)
    shape = StepShape(8, 0, 8, 8)
    query = torch.randn(8, 4, 16, generator=torch.Generator().manual_seed(1))
    last = torch.arange(6)

    def run(inputs: StepInputs, keys: torch.Tensor, values: torch.Tensor) -> tuple[Any, ...]:
        size = inputs.shape.tokens
        ids = reference.resolve_tokens(inputs.token_ids, inputs.token_slots, last)
        cells = reference.kv_cells(world.table, inputs.token_slots, inputs.positions, world.page_size)
        fresh = query[:size, :2] + ids[:, None, None]
        reference.store_kv(fresh, fresh, keys, values, cells)
        out = reference.decode_attention(
            query[:size], keys, values, world.table, inputs.slots, inputs.lengths, world.page_size, 0.25, 0
        )
        return ids[:count], cells[:count], out[:count]

    slabs = [(world.keys.clone(), world.values.clone()) for _ in range(2)]
    exact = run(StepBuffers(8, 8).fill(rows, []), *slabs[0])
    padded = run(StepBuffers(8, 8).fill(rows, [], shape), *slabs[1])
    for one, other in zip((*exact, *slabs[0]), (*padded, *slabs[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("maximum", [1, 2, 3, 7, 8, 9, 63, 64, 65, 100, 256, 300, 1000])
def test_buckets(maximum: int) -> None:
    buckets = bucket_list(maximum)
    assert list(buckets) == sorted(set(buckets)) and buckets[0] == 1 and buckets[-1] == maximum
    for count in range(1, maximum + 1):
        bucket = bucket_for(count, buckets)
        assert bucket >= count and not any(count <= smaller < bucket for smaller in buckets)


def test_facts_of_this_machine() -> None:
    assert 1 <= physical_cores() <= 1024 and isinstance(has_bf16(), bool)
    assert 1 << 20 < free_bytes() < 1 << 50
