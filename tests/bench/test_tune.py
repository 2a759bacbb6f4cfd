"""The tuner's parts that need no GPU: what is tried, and the table that comes of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from headrace.bench import tune
from headrace.bench.tune import LIBRARY, Product, Trial
from headrace.kernels.cases import WIDTHS
from headrace.kernels.tilings import Measured, Tiling, read_table

DOWN = Product("any down", "linear_add", 1024, 3072, 4)
HEAD = Product("any head", "norm_linear", 4096, 1024, 1)


def trial(product: Product, tiling: Tiling, us: float | None) -> Trial:
    return Trial(product, tiling, us, None if us is not None else "refused")


def test_products_cover_each_model_and_no_shape_twice() -> None:
    listed = tune.products(list(WIDTHS), [1, 8], "")
    assert len(listed) == len({(each.n, each.k, each.rows) for each in listed}) == 20
    assert {each.op for each in listed} == {"norm_linear", "gate_up", "linear_add"}
    assert [each.columns for each in listed if each.name == "qwen3-0.6b gate_up"] == [3072, 3072]
    assert {each.name for each in tune.products(list(WIDTHS), [1], "head")} == {
        "qwen3-0.6b head",
        "llama-3.1-8b head",
    }


def test_shares_hold_every_product_once() -> None:
    listed = tune.products(list(WIDTHS), [1, 2, 4, 8, 16], "")
    dealt = tune.shares(listed, 14)
    assert sorted(map(repr, (each for share in dealt for each in share))) == sorted(map(repr, listed))
    sizes = [sum(len(each.tilings()) for each in share) for share in dealt]
    assert max(sizes) < 2 * min(sizes)
    assert len(tune.shares(listed[:3], 14)) == 3


def test_the_fastest_tiling_wins_and_the_table_can_be_read_back() -> None:
    fast, slow = Tiling(8, 512, 2, 2, 1), Tiling(4, 1024, 4)
    down = [
        trial(DOWN, slow, 4.0), trial(DOWN, fast, 3.456), trial(DOWN, Tiling(2, 256, 1), None),
        trial(DOWN, LIBRARY, 7.0),
    ]  # fmt: skip
    head = [trial(HEAD, slow, 9.0), trial(HEAD, LIBRARY, 8.0)]
    rows = [tune.row_of(down), tune.row_of(head)]
    text = tune.written([row for row in rows if row is not None], {"device": "a card"}, [*down, *head])
    assert read_table(text) == {
        (1024, 3072, 4): Measured(fast, 3.46, 7.0),
        (4096, 1024, 1): Measured(slow, 9.0, 8.0),
    }
    assert '"refused"' in text


def test_no_row_where_no_tiling_works() -> None:
    assert tune.row_of([trial(DOWN, Tiling(4, 1024, 4), None), trial(DOWN, LIBRARY, 7.0)]) is None


def test_wrong_asks_and_a_machine_without_a_gpu_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for wrong in (["--rows", "3"], ["--models", "none"], ["--match", "nothing such"]):
        with pytest.raises(SystemExit):
            tune.main(wrong)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main(["--out", str(tmp_path / "table.json")]) == 2
    assert "needs a GPU" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
