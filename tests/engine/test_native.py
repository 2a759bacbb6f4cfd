"""Steps of few tokens as native code, against the same model run by torch."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from headrace.graphs.inputs import RowLayout
from headrace.runtime.backends import native_step
from headrace.runtime.backends.onednn import make_linear
from headrace.runtime.config import EngineConfig, Facts, SettingError, resolve
from headrace.runtime.cpu_engine import CpuEngine
from headrace.runtime.models import native
from headrace.runtime.models.host_decoder import HostDecoder, step_sizes

VARIANTS = ("llama", "llama-biased", "mistral", "qwen2-sliding", "qwen3", "phi3")
LENGTHS = (33, 1, 17, 60, 5, 16, 2, 45, 40, 41, 9, 47, 44, 3, 8, 7)  # tokens that the slots hold


def fill_slots(engine: CpuEngine) -> None:
    """Slot s holds LENGTHS[s] tokens that torch computed, and one sampled token, on pages in no order. Cells that
    were never written are NaN: whoever reads one is found out."""
    engine.kv.data.fill_(float("nan"))
    generator = torch.Generator().manual_seed(1)
    pages = list(range(engine.page_count))
    random.Random(3).shuffle(pages)
    width = engine.logits_width
    for slot, length in enumerate(LENGTHS):
        needed = -(-(length + 20) // engine.page_size)
        engine.kv.grant(slot, tuple(pages.pop() for _ in range(needed)))
        ids = torch.randint(0, width, (length,), generator=generator).tolist()
        inputs = engine.buffers.fill([], [RowLayout(slot, 0, length, ids, True)])
        engine.model.hidden(inputs, engine.kv)
        engine.kv.last_tokens[slot] = int(torch.randint(0, width, (1,), generator=generator))


def decode_rows(rows: int) -> list[RowLayout]:
    return [RowLayout(slot, LENGTHS[slot], 1, None, True) for slot in range(rows)]


def by_torch(
    engine: CpuEngine, decode: Sequence[RowLayout], prefill: Sequence[RowLayout] = ()
) -> torch.Tensor:
    inputs = engine.buffers.fill(decode, prefill)
    return engine.model.logits(engine.model.hidden(inputs, engine.kv)).float()


def natively(
    engine: CpuEngine, decode: Sequence[RowLayout], prefill: Sequence[RowLayout] = ()
) -> torch.Tensor:
    assert engine.decoder is not None
    return engine.decoder.run(engine.buffers.fill(decode, prefill))[1].clone()


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def on_worker(engine: CpuEngine, work: Callable[[], Any]) -> Any:
    return engine.backend.submit(work).result()


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_cells_are_torchs(name: str, tiny: Any, start: Any) -> None:
    engine = start(tiny(name).folder, decode="native")

    def work() -> None:
        fill_slots(engine)
        for rows in (1, 3, engine.decoder.most):
            expected = by_torch(engine, decode_rows(rows))
            cells = engine.kv.data.clone()
            assert distance(natively(engine, decode_rows(rows)), expected) < 1e-5
            torch.testing.assert_close(engine.kv.data, cells, equal_nan=True, atol=2e-5, rtol=1e-5)

    on_worker(engine, work)


def test_a_step_may_hold_several_tokens_of_one_slot(tiny: Any, start: Any) -> None:
    engine = start(tiny("mistral").folder, decode="native")
    new = RowLayout(2, LENGTHS[2], 5, (7, 8, 9, 10, 11), True)

    def work() -> None:
        fill_slots(engine)
        expected = by_torch(engine, decode_rows(2), [new])
        assert distance(natively(engine, decode_rows(2), [new]), expected) < 1e-5

    on_worker(engine, work)


@pytest.mark.parametrize("lanes", [4, 8])
def test_narrow_registers_compute_the_same(
    lanes: int, tiny: Any, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_step, "vector_width", lambda: (lanes, 16))
    native.compiled.cache_clear()
    engine = start(tiny("llama").folder, decode="native", dtype="bfloat16")
    native.compiled.cache_clear()  # who comes next wants the registers of this CPU

    def work() -> None:
        fill_slots(engine)
        for rows in (1, engine.decoder.most):
            assert distance(natively(engine, decode_rows(rows)), by_torch(engine, decode_rows(rows))) < 0.05

    assert engine.decoder.native.means.lanes == lanes
    on_worker(engine, work)


def filled(engine: CpuEngine, work: Callable[[], Any]) -> Any:
    """What `work` returns on the engine's thread, with slots filled."""

    def both() -> Any:
        fill_slots(engine)
        return work()

    return on_worker(engine, both)


def test_bfloat16_is_no_further_from_the_truth_than_torch(tiny: Any, start: Any) -> None:
    folder = tiny("qwen3-tiles").folder
    exact, rounded = start(folder), start(folder, decode="native", dtype="bfloat16")
    rows = decode_rows(rounded.decoder.most)
    truth = filled(exact, lambda: by_torch(exact, rows))
    torchs = filled(rounded, lambda: by_torch(rounded, rows))
    ours = filled(rounded, lambda: natively(rounded, rows))
    assert (ours - truth).square().mean() <= 1.1 * (torchs - truth).square().mean()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_does_not_notice_the_others(dtype: str, tiny: Any, start: Any) -> None:
    """Bit for bit: alone, among others, and beside a row that broke."""
    engine = start(tiny("qwen3-tiles").folder, decode="native", dtype=dtype)
    most = engine.decoder.most

    def work() -> None:
        alone = [natively(engine, [row])[0] for row in decode_rows(most)]
        for rows in range(2, most + 1):
            for row, found in enumerate(natively(engine, decode_rows(rows))):
                assert torch.equal(found, alone[row]), (rows, row)
        engine.kv.data[:, :, engine.kv.page_table[1, 0]] = float("nan")
        broken = natively(engine, decode_rows(2))
        assert torch.equal(broken[0], alone[0]) and broken[1].isnan().all()

    filled(engine, work)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_chunk_is_its_tokens_one_by_one(dtype: str, tiny: Any, start: Any) -> None:
    """Bit for bit: the tokens of a short chunk see each other's keys as if each had had a step of its own."""
    engine = start(tiny("qwen3-tiles").folder, decode="native", dtype=dtype)
    ids = [5, 6, 7, 8]

    def work() -> None:
        at = LENGTHS[3]
        one_by_one = [
            natively(engine, [], [RowLayout(3, at + place, 1, (token,), True)])[0]
            for place, token in enumerate(ids)
        ]
        together = natively(engine, [], [RowLayout(3, at, len(ids), ids, True)])
        assert torch.equal(together, torch.stack(one_by_one))

    filled(engine, work)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_team_computes_what_one_thread_computes(dtype: str, tiny: Any, start: Any) -> None:
    engine = start(tiny("qwen3-tiles").folder, decode="native", dtype=dtype)
    sizes = step_sizes(engine.model_config, engine.dtype, engine.page_size)
    rows = decode_rows(3)

    def work() -> None:
        team = HostDecoder(engine.model, engine.kv, sizes, native.compiled(sizes, 2), 2)
        alone = natively(engine, rows)
        for _ in range(3):  # whoever takes a part next is another one each time
            assert torch.equal(team.run(engine.buffers.fill(rows, []))[1], alone)

    filled(engine, work)


def test_torchs_products_do_not_notice(tiny: Any, start: Any) -> None:
    """Both use tiles: the shapes that the one gave them are there again for the other."""
    engine = start(tiny("qwen3-tiles").folder, decode="native", dtype="bfloat16")
    generator = torch.Generator().manual_seed(2)
    weight, x = (torch.randn(shape, generator=generator).bfloat16() for shape in ((96, 64), (40, 64)))
    linear = make_linear(weight, None)

    def work() -> None:
        before = linear(x)
        natively(engine, decode_rows(2))
        assert torch.equal(linear(x), before)

    filled(engine, work)


def test_an_engine_without_llvm_serves_with_torch(
    tiny: Any, start: Any, drive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "headrace.runtime.backends.native_step", None)
    model = tiny("qwen3")
    engine = start(model.folder)
    assert engine.decoder is None and engine.config.decode == "torch" and engine.sizes.plain == 0
    run = drive(engine)
    req = run.add(model.oracle(1)[0].prompt, 8)
    run.finish()
    assert req.tokens[req.prompt_len :] == model.oracle(1)[0].answer[:8]
    with pytest.raises(SettingError, match="decode native: the package llvmlite is not installed"):
        start(model.folder, decode="native")


@pytest.mark.parametrize(("name", "words"), [("mixtral", "mixtures of experts"), ("gemma3", "Gemma")])
def test_what_is_not_written_natively_stays_with_torch(name: str, words: str, tiny: Any, start: Any) -> None:
    assert start(tiny(name).folder).decoder is None
    with pytest.raises(SettingError, match=words):
        start(tiny(name).folder, decode="native")


def test_a_compiler_that_fails_leaves_torch(tiny: Any, start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("LLVM says no")

    monkeypatch.setattr(native, "compiled", fail)
    assert start(tiny("llama").folder).decoder is None
    with pytest.raises(RuntimeError, match="LLVM says no"):
        start(tiny("llama").folder, decode="native")


def test_what_is_kept_twice_is_counted(tiny: Any, start: Any) -> None:
    for name, own_head in (("llama", True), ("qwen3", False)):
        engine = start(tiny(name).folder, decode="native")
        reference = tiny(name).reference
        layers = sum(p.numel() for n, p in reference.named_parameters() if ".layers." in n and p.dim() == 2)
        assert engine.sizes.plain == 4 * (layers + own_head * reference.lm_head.weight.numel())


def test_the_choice() -> None:
    facts: dict[str, Any] = {
        "bf16": True,
        "cores": 2,
        "free_memory": 8 << 30,
        "weight_elements": 1 << 30,
        "kv_token_elements": 1 << 10,
        "max_positions": 1024,
        "plain_elements": 1 << 29,
        "native_obstacle": "",
    }

    def choice(config: EngineConfig | None = None, **changes: Any) -> str:
        return resolve(config or EngineConfig(), Facts(**{**facts, **changes})).decode

    assert choice() == "native"
    assert (
        choice(free_memory=3 << 30) == "torch"
    )  # 1 GiB is left by 2 of weights: not all of it for a second copy
    assert choice(EngineConfig(decode="native"), free_memory=4 << 30) == "native"
    assert choice(EngineConfig(decode="torch")) == "torch"
    assert choice(native_obstacle="no LLVM") == "torch"
    assert choice(EngineConfig(deterministic=True)) == "torch"
    assert choice(team_obstacle="no team") == "torch"
    assert choice(EngineConfig(threads=1), team_obstacle="no team") == "native"
    assert resolve(EngineConfig(), Facts(**facts)).kv_memory_mb <= (8 << 30) - (3 << 30) >> 20
    with pytest.raises(SettingError, match="decode native: deterministic"):
        choice(EngineConfig(decode="native", deterministic=True))
    with pytest.raises(SettingError, match="decode native: no LLVM"):
        choice(EngineConfig(decode="native"), native_obstacle="no LLVM")
