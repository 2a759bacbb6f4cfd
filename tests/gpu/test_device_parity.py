"""Logits of the GPU engine against transformers, after every token, from prompt chunks and from decode rows."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import engine_rig
import pytest
import torch
from device_rig import Exact, fill_pages, step
from interpreted import ON_GPU

from headrace.graphs.packed import StepKey, pack, places
from headrace.runtime.device_engine import DeviceEngine
from headrace.runtime.plan import PlanRow, SlotGrant
from headrace.runtime.request import SamplingParams

# Head sizes that a GPU takes: powers of two.
VARIANTS = ["llama-biased", "llama-3.1", "mistral-full", "qwen2-sliding", "qwen3", "qwen3-sliding"]
TOKENS, CHUNKS, DECODED = (200, (64, 13, 200), 40) if ON_GPU else (35, (33,), 2)
if ON_GPU:
    # Where they take no time. What is left out without a GPU differs from those above in nothing a kernel does,
    # but for the sizes of the last two: wide heads, whole tiles, matrices that cuBLAS multiplies.
    WIDE = {
        "vocab_size": 32000,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 6,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    }
    engine_rig.VARIANTS |= {
        "qwen3-wide": ("Qwen3", WIDE | {"tie_word_embeddings": True}),
        "llama-wide": ("Llama", WIDE | {"rope_parameters": engine_rig.LLAMA3, "head_dim": 64}),
    }
    VARIANTS += ["llama-linear", "llama-yarn", "qwen2", "qwen3-wide", "llama-wide"]


def logits_of(engine: DeviceEngine, key: StepKey, rows: list[PlanRow]) -> torch.Tensor:
    """Logits after every token of a step, where a step asks for the last one's only."""
    block = engine._ring[0]
    decode = [row for row in rows if row.ids is not None and key.decode]
    pack(key, block.array, decode, [row for row in rows if row not in decode])
    _, words = places(key)
    decoder = engine.decoder
    with engine.queue.turn(), torch.no_grad():
        engine._device_words[:words].copy_(block.words[:words])
        decoder.forward(engine._view(key))
        out = torch.empty(key.tokens, engine.logits_width, dtype=engine.dtype, device=engine.queue.device)
        decoder._norm_linear(decoder.buffers.stream[: key.tokens], decoder.norm, decoder.head, out)
        return out.float().cpu()


def all_logits(engine: DeviceEngine, ids: list[int], chunk: int, decoded: int) -> torch.Tensor:
    """Logits after every token of `ids`, on pages that do not lie in order: chunks, then `decoded` decode rows."""
    pages = list(range(engine.page_count))
    random.Random(5).shuffle(pages)
    fill_pages(engine, float("nan"))  # whoever reads a cell that was never written is found out
    needed = tuple(pages[: -(-len(ids) // engine.page_size)])
    step(engine, grants=(SlotGrant(2, 2, SamplingParams(temperature=0.0), len(ids), needed, ()),))
    engine.keys = Exact()  # type: ignore[assignment]
    found = []
    prompt = len(ids) - decoded
    for start in range(0, prompt, chunk):
        part = tuple(ids[start : min(start + chunk, prompt)])
        row = PlanRow(2, 2, start, len(part), part, True)
        found.append(logits_of(engine, StepKey(0, len(part), 1), [row]))
    for at in range(prompt, len(ids)):
        found.append(logits_of(engine, StepKey(1), [PlanRow(2, 2, at, 1, (ids[at],), True)]))
    return torch.cat(found)


def some_ids() -> list[int]:
    return torch.randint(0, 199, (TOKENS,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_in_float32(
    name: str, tiny: Callable[[str], Any], device_engine: Callable[..., DeviceEngine]
) -> None:
    model, ids = tiny(name), some_ids()
    with torch.no_grad():
        expected = model.reference(torch.tensor([ids])).logits[0]
    for chunk in CHUNKS:
        engine = device_engine(model.folder, max_context=256, chunk_tokens=256, kv_memory_mb=64)
        found = all_logits(engine, ids, chunk, DECODED)
        # A few float32 roundings through three layers; more of them through wide layers and long sums.
        off = 3e-4 if name.endswith("wide") else 3e-5
        torch.testing.assert_close(found, expected, rtol=off, atol=off * expected.std().item())


if ON_GPU:  # the interpreter multiplies bfloat16 wrongly

    @pytest.mark.parametrize("name", VARIANTS)
    def test_logits_in_bfloat16(name: str, tiny: Any, device_engine: Any) -> None:
        """Against float32 with the same weights, our error is that of transformers in bfloat16 on the same GPU."""
        model, ids = tiny(name), some_ids()
        # Rounded as from_pretrained does it: the weights, and not the rotary frequencies.
        rounded, exact_model = (copy.deepcopy(model.reference).cuda() for _ in range(2))
        for parameter, kept in zip(rounded.parameters(), exact_model.parameters(), strict=True):
            parameter.data = parameter.data.bfloat16()
            kept.data = kept.data.bfloat16().float()
        with torch.no_grad():
            given = torch.tensor([ids], device="cuda")
            exact = exact_model(given).logits[0].cpu()
            theirs = rounded(given).logits[0].float().cpu() - exact
        for chunk in CHUNKS:
            engine = device_engine(
                model.folder, dtype="bfloat16", max_context=256, chunk_tokens=256, kv_memory_mb=64
            )
            ours = all_logits(engine, ids, chunk, DECODED) - exact
            own, other = ours.square().mean().sqrt().item(), theirs.square().mean().sqrt().item()
            print(f"{name} in chunks of {chunk}: rms error {own:.4f}, transformers {other:.4f}")
            assert own <= 1.05 * other, f"rms error {own:.4f}, transformers {other:.4f}"
            # The largest of some thousands of errors is a matter of luck; a wrong row would stand out all the same.
            assert ours.abs().max() <= 3.0 * theirs.abs().max()
