"""The shipped table and the rule beside it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from headrace.kernels import tilings
from headrace.kernels.tilings import ROW_CLASSES, TABLE, Tiling, candidates, fits, pays, row_class, tiling_for

REAL = [
    (4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072), (151936, 1024),
    (6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096),
]  # fmt: skip


def powers_of_two(tiling: Tiling) -> bool:
    return all(size > 0 and size & (size - 1) == 0 for size in (tiling.block_n, tiling.block_k, tiling.warps))


def test_every_measured_tiling_can_be_launched() -> None:
    assert {(n, k) for n, k, _ in TABLE} >= set(REAL)
    for (n, k, rows), found in TABLE.items():
        assert rows in ROW_CLASSES and powers_of_two(found.tiling) and found.us > 0
        assert fits(found.tiling, rows, 2, pairs=False), (n, k, rows)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 9, 16, 17, 33, 64])
@pytest.mark.parametrize(
    ("n", "k"), [*REAL, (64, 64), (50, 100), (1, 1), (320, 96), (5120, 5120), (262144, 8192)]
)
def test_any_shape_has_a_tiling_and_candidates(n: int, k: int, rows: int) -> None:
    assert powers_of_two(tiling_for(n, k, rows))
    for pairs in (False, True):
        found = candidates(n, k, rows, pairs)
        assert found and len(found) == len(set(found)) <= 56
        assert all(powers_of_two(one) and fits(one, rows, 2, pairs) for one in found)
        assert not (pairs and any(one.splits > 1 for one in found))


def test_rows_share_the_tiling_of_their_class() -> None:
    assert [row_class(rows) for rows in (1, 2, 3, 4, 5, 8, 9, 16, 17, 64)] == [
        1,
        2,
        4,
        4,
        8,
        8,
        16,
        16,
        32,
        64,
    ]
    for rows in (0, 65):
        with pytest.raises(AssertionError):
            row_class(rows)


def test_the_table_decides_against_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps(
        {
            "device": "any",
            "measured": [
                {"n": 128, "k": 64, "rows": 4, "tiling": [8, 32, 4, 1, 1], "us": 2.0, "library_us": 3.0},
                {"n": 128, "k": 64, "rows": 16, "tiling": [8, 32, 4, 1, 1], "us": 4.0, "library_us": 3.0},
                {"n": 128, "k": 64, "rows": 32, "tiling": [8, 32, 4, 1, 1], "us": 4.0, "library_us": None},
            ],
        }
    )
    monkeypatch.setattr(tilings, "TABLE", tilings.read_table(text))
    assert tiling_for(128, 64, 3) == Tiling(8, 32, 4, 1, 1)
    assert dataclasses.astuple(tiling_for(128, 64, 1)) != (8, 32, 4, 1, 1)
    assert [pays(128, 64, rows) for rows in (1, 3, 8, 9, 17, 33, 65)] == [
        True,
        True,
        True,
        False,
        True,
        False,
        False,
    ]
