"""The soak bench over the GPU engine; `bench/hopper.sh soak` runs its million tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from device_rig import write_small
from interpreted import ON_GPU

from headrace.bench import soak as bench


def test_mixed_load_with_aborts(tmp_path: Path, device_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "CANARY_TOKENS", 16 if ON_GPU else 2)
    monkeypatch.setattr(bench, "REPLAYS", 2 if ON_GPU else 1)
    slots, tokens, lulls = (16, 60_000, 10) if ON_GPU else (3, 60, 1)
    engine = device_engine(write_small(tmp_path / "small"), max_running=slots)
    engine.warm(budget=30.0 if ON_GPU else 0.0)
    run = bench.Soak(engine, 2, prompt=40, output=24 if ON_GPU else 5, abort=0.2, check_every=2)
    trouble = bench.soak(run, tokens, 3600.0, lulls=lulls)
    # So few tokens as the interpreter takes meet few of the states; nothing else may be wrong.
    assert trouble is None or (not ON_GPU and trouble.startswith("never met")), trouble
