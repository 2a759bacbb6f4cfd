"""Mixtures of experts and fused files against transformers, and what does not run on a GPU yet."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from headrace.runtime.backends.queue import HostQueue
from headrace.runtime.blueprint import Blueprint
from headrace.runtime.config import EngineConfig, SettingError
from headrace.runtime.engine import open_device_engine

NAMES = ("qwen3-moe", "mixtral")
ALL = (*NAMES, "phi3")


def parity() -> ModuleType:
    """The file beside this one: tests have no package."""
    spec = importlib.util.spec_from_file_location("engine_parity", Path(__file__).with_name("test_parity.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ALL)
def test_logits(name: str, tiny: Callable[[str], Any], start: Callable[..., Any]) -> None:
    model = tiny(name)
    engine = start(model.folder)
    assert engine.model_config.unread == ()
    ids = torch.randint(0, 199, (100,), generator=torch.Generator().manual_seed(3)).tolist()
    with torch.no_grad():
        expected = model.reference(torch.tensor([ids])).logits[0]
    all_logits = parity().all_logits
    for chunk in (64, 13):
        torch.testing.assert_close(all_logits(engine, ids, chunk), expected, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize("name", [*ALL, "gemma3"])
@pytest.mark.parametrize("chunk", [7, 64])
def test_greedy_answers(name: str, chunk: int, tiny: Any, start: Any, drive: Any) -> None:
    model = tiny(name)
    samples = model.oracle(6)
    run = drive(start(model.folder), chunk_tokens=chunk)
    reqs = [run.add(sample.prompt, 64) for sample in samples]
    run.finish()
    assert [req.tokens[req.prompt_len :] for req in reqs] == [sample.answer for sample in samples]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("qwen3-moe", "mixtures of experts run"),
        ("mixtral", "mixtures of experts run"),
        ("gemma2", "Gemma models run"),
        ("gemma3", "Gemma models run"),
    ],
)
def test_a_gpu_says_that_it_does_not_run_them(name: str, said: str, tiny: Any) -> None:
    with pytest.raises(SettingError, match=f"{said} on the CPU only"):
        open_device_engine(Blueprint(tiny(name).folder), EngineConfig(), HostQueue(), 8 << 30, 8 << 30)
