"""`headrace bench soak`: a sound engine passes, and what it looks for is found when it is planted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.bench import soak as bench
from headrace.bench.shapes import CONFIGS, write_checkpoint
from headrace.runtime.config import EngineConfig
from headrace.runtime.cpu_engine import CpuEngine
from headrace.runtime.engine import open_engine
from headrace.runtime.pages import PagePool

SMALL = ["--prompt", "40", "--output", "16", "--max-running", "8", "--threads", "1", "--dtype", "float32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = torch.get_rng_state()
    folder = tmp_path_factory.mktemp("shapes") / "tiny"
    write_checkpoint(folder, CONFIGS["tiny"] | {"num_hidden_layers": 1})
    torch.set_rng_state(before)
    return folder


@pytest.fixture
def engine(folder: Path) -> Iterator[CpuEngine]:
    config = EngineConfig(device="cpu", dtype="float32", threads=1, max_running=8, max_context=64)
    engine = open_engine(folder, config)
    assert isinstance(engine, CpuEngine)
    yield engine
    engine.close()


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def small(engine: Any, seed: int = 3) -> bench.Soak:
    return bench.Soak(engine, seed, prompt=40, output=16, abort=0.2, check_every=4)


def test_a_whole_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "soak.json"
    command = [str(folder), "--device", "cpu", "--tokens", "12000", *SMALL, "--out", str(out)]
    assert bench.main(command) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert json.loads(out.read_text()) == result
    assert result["tokens"] >= 12000 and result["trouble"] is None
    assert set(result["met"]) == set(bench.STATES) and all(result["met"].values())


def test_a_state_that_was_never_met_fails_the_run(engine: CpuEngine) -> None:
    run = bench.Soak(engine, 1, prompt=40, output=16, abort=0.0, check_every=4)
    assert bench.soak(run, 400, 600.0, lulls=1) is not None
    assert "abort while decode" in (bench.soak(run, 500, 600.0, lulls=1) or "")


def test_a_goal_that_was_not_reached_fails_the_run(engine: CpuEngine) -> None:
    assert "only" in (bench.soak(small(engine), 10**9, 0.0, lulls=1) or "")


def test_a_page_that_does_not_come_back_is_found(engine: CpuEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, dropped = PagePool.drop, []

    def forgetful(pool: PagePool, page: int) -> None:
        dropped.append(page)
        if len(dropped) != 200:
            plain(pool, page)

    monkeypatch.setattr(PagePool, "drop", forgetful)
    trouble = bench.soak(small(engine), 20_000, 600.0)
    assert trouble is not None and "never met" not in trouble and len(dropped) >= 200


@pytest.mark.parametrize("which", ["the canary", "a neighbour"])
def test_a_wrong_token_is_found(engine: CpuEngine, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """Tokens that depend on who else is there, or on what was there before."""
    run = small(engine)
    run.lull()
    plain = engine.sampling.sample

    def wrong(
        logits: torch.Tensor, slots: list[int], positions: list[int], masks: Mapping[int, bytes]
    ) -> list[int]:
        tokens = plain(logits, slots, positions, masks)
        alone = len(slots) == 1
        return [(token + 1) % 512 if alone == (which == "the canary") else token for token in tokens]

    monkeypatch.setattr(engine.sampling, "sample", wrong)
    trouble = bench.soak(run, 3000, 600.0, lulls=2) or ""
    assert ("canary" if which == "the canary" else "another answer when it runs alone") in trouble


def test_a_number_that_is_not_finite_is_found(engine: CpuEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small(engine)
    run.lull()
    monkeypatch.setattr(engine.sampling, "sample", lambda logits, slots, positions, masks: [-1] * len(slots))
    assert "not finite" in (bench.soak(run, 1000, 600.0) or "")
