"""The attention tuner's parts that need no GPU: which shapes and variants it tries; that it needs one."""

from __future__ import annotations

import pytest
import torch

from headrace.bench import tune_attention
from headrace.bench.tune_attention import KINDS, kernels_of, shapes


def test_every_kind_is_listed_and_matched() -> None:
    listed = shapes(KINDS, "")
    assert len({str(shape) for shape in listed}) == len(listed)
    assert {shape.kind for shape in listed} == set(KINDS)
    assert {shape.heads.model for shape in listed} == {"qwen3-0.6b", "llama-3.1-8b"}
    some = shapes(["turn"], "8b .* rows=64 ")
    assert [str(shape) for shape in some] == ["llama-3.1-8b turn rows=64 context=1024"]


def test_variants_are_distinct_and_few_need_compiling() -> None:
    listed = shapes(KINDS, "")
    for shape in listed:
        variants = shape.variants()
        assert len(set(map(str, variants))) == len(variants) > 10
    kernels = kernels_of(listed)
    kept = {(shape.heads, shape.kind) for shape, _ in kernels}
    assert kept == {(shape.heads, shape.kind) for shape in listed}
    assert len(kernels) < sum(len(shape.variants()) for shape in listed) / 4


def test_without_a_gpu_nothing_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune_attention.main(["--match", "rows=1 "]) == 2
    assert "needs a GPU" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tune_attention.main(["--match", "no such shape"])
    with pytest.raises(SystemExit):
        tune_attention.main(["--kinds", "sideways"])
