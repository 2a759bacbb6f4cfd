"""What an Engine promises beside the right logits: order of a plan's parts, failed rows, sizes, its end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from headrace.runtime.checkpoint import CheckpointError
from headrace.runtime.config import EngineConfig, SettingError
from headrace.runtime.cpu_engine import CpuEngine
from headrace.runtime.engine import open_engine
from headrace.runtime.plan import NON_FINITE, PageCopy, PagePatch, PlanRow, SlotGrant, StepPlan
from headrace.runtime.request import FinishReason, ForkPoint, Req, SamplingParams

GREEDY = SamplingParams(temperature=0.0)


def step(engine: CpuEngine, **parts: Any) -> tuple[int, ...]:
    empty: dict[str, Any] = {"grants": (), "patches": (), "copies": (), "decode": (), "prefill": ()}
    return engine.launch(StepPlan(0, **{**empty, **parts})).result().tokens


def grant(slot: int, *pages: int, prompt_len: int = 1, params: SamplingParams = GREEDY) -> SlotGrant:
    return SlotGrant(slot, slot, params, prompt_len, pages, ())


def test_the_card(tiny: Any, start: Any) -> None:
    model = tiny("qwen3")
    engine = start(model.folder)
    assert engine.card.id == "qwen3" and engine.card.architecture == "Qwen3ForCausalLM"
    assert engine.card.parameters == sum(p.numel() for p in model.reference.parameters())
    assert (engine.card.dtype, engine.card.vocab_size) == ("float32", 199)
    assert engine.card.context_len == engine.max_context == 512
    assert engine.logits_width == engine.embedding_rows == 199


def test_sizes_are_what_is_allocated(tiny: Any, start: Any) -> None:
    engine = start(tiny("llama").folder)
    kv = engine.kv
    assert engine.sizes.kv == kv.data.nbytes
    assert engine.sizes.tables == kv.page_table.nbytes + kv.last_tokens.nbytes
    stored = sum(p.numel() for p in tiny("llama").reference.parameters())
    assert engine.sizes.weights == stored * 4
    assert kv.data.nbytes <= 4 << 20 < kv.data.nbytes + kv.data.nbytes // engine.page_count


def test_nothing_grows_while_serving(tiny: Any, start: Any, drive: Any) -> None:
    engine = start(tiny("llama").folder)
    before = {name: tensor.data_ptr() for name, tensor in engine.buffers.device.items()}
    slab = engine.kv.data.data_ptr()
    run = drive(engine)
    for sample in tiny("llama").oracle(16):
        run.add(sample.prompt, 10)
    run.finish()
    assert {name: tensor.data_ptr() for name, tensor in engine.buffers.device.items()} == before
    assert engine.kv.data.data_ptr() == slab


def test_parts_of_a_plan_run_in_order(tiny: Any, start: Any) -> None:
    """One plan grants a slot, patches its table, copies a page into the patched one and decodes from there."""
    engine = start(tiny("llama").folder, page_size=4)
    prompt = tuple(range(20, 30))
    whole = step(
        engine, grants=(grant(0, 1, 2, 3, prompt_len=10),), prefill=(PlanRow(0, 0, 0, 10, prompt, True),)
    )
    # Slot 5 takes over pages 1 and 2, and a copy of the part page 3, then feeds the last prompt token again.
    copied = step(
        engine,
        grants=(grant(5, 1, 2, 7, prompt_len=10),),
        patches=(PagePatch(5, 2, 9),),
        copies=(PageCopy(3, 9),),
        prefill=(PlanRow(5, 5, 9, 1, prompt[9:], True),),
    )
    assert copied == whole
    # Both go on from the last token that each slot sampled; pages 3 and 9 are theirs alone.
    both = step(engine, decode=(PlanRow(0, 0, 10, 1, None, True), PlanRow(5, 5, 10, 1, None, True)))
    again = step(engine, decode=(PlanRow(5, 5, 11, 1, None, True), PlanRow(0, 0, 11, 1, None, True)))
    assert both[0] == both[1] and again[0] == again[1]


def test_a_token_is_drawn_for_its_own_index(tiny: Any, start: Any, monkeypatch: Any) -> None:
    """The index of the token being chosen keys its randomness: start + count, for chunks and decode rows alike."""
    engine = start(tiny("llama").folder)
    seen: list[tuple[list[int], list[int]]] = []
    real = engine.sampling.sample

    def watched(logits: torch.Tensor, slots: list[int], positions: list[int], *masks: Any) -> list[int]:
        seen.append((slots, positions))
        return real(logits, slots, positions, *masks)

    monkeypatch.setattr(engine.sampling, "sample", watched)
    chunk = PlanRow(2, 2, 0, 3, (1, 2, 3), False), PlanRow(1, 1, 0, 5, (1, 2, 3, 4, 5), True)
    step(engine, grants=(grant(1, 0, prompt_len=5), grant(2, 1, prompt_len=4)), prefill=chunk)
    step(engine, decode=(PlanRow(1, 1, 5, 1, None, True),), prefill=(PlanRow(2, 2, 3, 1, (4,), True),))
    assert seen == [([1], [5]), ([1, 2], [6, 4])]


def test_a_new_owner_finds_clean_tables(tiny: Any, start: Any) -> None:
    engine = start(tiny("llama").folder)
    step(engine, grants=(grant(3, 5, 6, 7),), prefill=(PlanRow(3, 3, 0, 2, (1, 2), True),))
    assert engine.kv.page_table[3].any()
    step(engine, grants=(grant(3, 9),))
    assert engine.kv.page_table[3].tolist() == [9] + [0] * (engine.kv.page_table.shape[1] - 1)
    assert engine.kv.last_tokens[3] == 0


def test_a_plan_without_rows_and_one_without_samples(tiny: Any, start: Any) -> None:
    engine = start(tiny("llama").folder)
    assert step(engine, grants=(grant(0, 1),), copies=(PageCopy(1, 2),)) == ()
    assert step(engine, prefill=(PlanRow(0, 0, 0, 3, (1, 2, 3), False),)) == ()


def test_results_come_in_the_order_of_the_rows(tiny: Any, start: Any) -> None:
    model = tiny("llama")
    engine = start(model.folder, page_size=16)
    samples = [sample for sample in model.oracle(16) if len(sample.prompt) <= 16][:5]
    rows = tuple(
        PlanRow(slot, slot, 0, len(sample.prompt), tuple(sample.prompt), True)
        for slot, sample in enumerate(samples)
    )
    grants = tuple(grant(slot, slot, prompt_len=len(sample.prompt)) for slot, sample in enumerate(samples))
    expected = tuple(sample.answer[0] for sample in samples)
    assert step(engine, grants=grants, prefill=rows) == expected
    assert step(engine, grants=grants[::-1], prefill=rows[::-1]) == expected[::-1]


@pytest.fixture
def poisoned(tiny: Any, tmp_path: Path) -> Path:
    """A model whose token 77 has a NaN embedding: whoever reads it fails."""
    folder = tiny("mistral-full").folder
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][77] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    return tmp_path


def test_a_failed_row_fails_alone(poisoned: Path, tiny: Any, start: Any, drive: Any) -> None:
    """Requests with a NaN come and go; the others, also those who get their pages next, answer as alone."""
    samples = [
        sample
        for sample in tiny("mistral-full").oracle(16)
        if 77 not in sample.prompt and 77 not in sample.answer
    ]
    assert len(samples) >= 5
    run = drive(start(poisoned, page_size=4), page_count=110, prefix_cache=False)
    reqs, bad = [], []
    for sample in samples:
        bad.append(run.add([3, 77, 5, 9, 1, 4, 2], 20))
        reqs.append(run.add(sample.prompt, 64))
    run.finish()
    assert [req.finish for req in bad] == [FinishReason.ERROR] * len(bad)
    assert [req.tokens[req.prompt_len :] for req in reqs] == [sample.answer for sample in samples]


def test_a_failed_row_is_told_by_its_token(poisoned: Path, start: Any) -> None:
    engine = start(poisoned)
    grants = (grant(0, 0), grant(1, 1))
    first = step(
        engine, grants=grants, prefill=(PlanRow(0, 0, 0, 1, (77,), True), PlanRow(1, 1, 0, 1, (5,), True))
    )
    assert first[0] == NON_FINITE and first[1] >= 0
    # The next step is often launched before anybody saw that: it must run, and the good row must not notice.
    decode = (PlanRow(0, 0, 1, 1, None, True), PlanRow(1, 1, 1, 1, None, True))
    second = step(engine, decode=decode)
    assert second[0] == NON_FINITE and second[1] >= 0


def test_drawing_depends_on_seed_and_position_alone(tiny: Any, start: Any, drive: Any) -> None:
    model = tiny("llama")
    engine = start(model.folder)
    prompts = [sample.prompt for sample in model.oracle(16)]
    params = [SamplingParams(temperature=0.8, top_p=0.9, seed=number) for number in range(16)]

    def answers(chunk: int, together: bool) -> list[list[int]]:
        found = []
        run = drive(engine, prefix_cache=False, chunk_tokens=chunk)
        for prompt, settings in zip(prompts, params, strict=True):
            found.append(run.add(prompt, 24, settings))
            if not together:
                run.finish()
        run.finish()
        return [req.tokens[req.prompt_len :] for req in found]

    one = answers(64, True)
    assert answers(7, True) == one and answers(64, False) == one
    assert len({tuple(answer) for answer in one}) == 16


def test_a_fork_answers_like_its_parent(tiny: Any, start: Any, drive: Any) -> None:
    model = tiny("qwen2")
    sample = max(model.oracle(3), key=lambda sample: len(sample.prompt))
    run = drive(start(model.folder, page_size=8), prefix_cache=False)
    parent = run.add(sample.prompt, 64)
    while parent.output_len < 21:
        assert run.step()
    at = parent.prompt_len + 13
    tokens = parent.tokens[:at]
    child = Req(99, "", list(tokens), at, at + 30, GREEDY, ForkPoint(parent, at))
    run.scheduler.add(child)
    run.finish()
    assert run.scheduler.counters.copied_pages == 1
    assert parent.tokens[parent.prompt_len :] == sample.answer
    assert child.tokens[child.prompt_len :] == sample.answer[13:43]


def test_warming_changes_no_answer(tiny: Any, start: Any, drive: Any) -> None:
    model = tiny("qwen3")
    engine = start(model.folder, max_running=3)
    engine.warm()
    run = drive(engine)
    reqs = [run.add(sample.prompt, 64) for sample in model.oracle(3)]
    run.finish()
    assert [req.tokens[req.prompt_len :] for req in reqs] == [sample.answer for sample in model.oracle(3)]


@pytest.mark.parametrize(
    "settings",
    [
        {"max_running": 1, "chunk_tokens": 1},
        {"page_size": 1, "max_context": 2},
        {"page_size": 256, "kv_memory_mb": 1, "max_context": 9},
    ],
)
def test_warming_the_smallest_engines(settings: dict[str, Any], tiny: Any, start: Any) -> None:
    start(tiny("llama").folder, **settings).warm()


def test_an_exception_in_a_step_is_in_its_future(tiny: Any, start: Any) -> None:
    engine = start(tiny("llama").folder)
    bad = StepPlan(0, (grant(0, engine.page_count),), (), (), (), ())
    with pytest.raises(AssertionError):
        engine.launch(bad).result()


def test_close_waits_and_may_be_repeated(tiny: Any, start: Any) -> None:
    engine = start(tiny("llama").folder)
    futures = [
        engine.launch(StepPlan(0, (grant(0, 0),), (), (), (), (PlanRow(0, 0, 0, 4, (1, 2, 3, 4), True),)))
        for _ in range(5)
    ]
    engine.close()
    engine.close()
    assert all(future.done() for future in futures)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_context": 9999}, "more than the 512 positions"),
        ({"kv_memory_mb": 1 << 40}, "free beside weights"),
    ],
)
def test_settings_that_do_not_fit_the_model(settings: dict[str, Any], words: str, tiny: Any) -> None:
    with pytest.raises(SettingError) as caught:
        open_engine(tiny("llama").folder, EngineConfig(device="cpu", **settings))
    assert words in str(caught.value)


def test_a_config_and_weights_that_differ(tiny: Any, tmp_path: Path) -> None:
    source = tiny("mistral").folder
    (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    config = json.loads((source / "config.json").read_text())
    for change in ({"num_hidden_layers": 4}, {"head_dim": 26}, {"architectures": ["Qwen2ForCausalLM"]}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError):
            open_engine(tmp_path, EngineConfig())
    with pytest.raises(CheckpointError, match="is not a folder"):
        open_engine(tmp_path / "nowhere", EngineConfig())


def test_memory_is_checked_before_weights_are_read(tiny: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """A config that asks for terabytes is refused on the headers, without trying."""
    source = tiny("llama").folder
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"hidden_size": 1 << 20, "intermediate_size": 1 << 22, "num_attention_heads": 1024}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(torch, "empty", refuse_large(torch.empty))
    with pytest.raises(CheckpointError, match="has shape"):
        open_engine(tmp_path, EngineConfig())


def refuse_large(real: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def guarded(*arguments: Any, **named: Any) -> torch.Tensor:
        outlined = named.get("device") == "meta"
        assert outlined or torch.Size(*arguments[:1]).numel() == 0, "weights were allocated"
        return real(*arguments, **named)

    return guarded
