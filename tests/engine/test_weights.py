"""Safetensors files as hostile input: loaded rightly, or refused with one sentence before weights are read."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from headrace.runtime.backends.cpu import CpuBackend, CpuOps
from headrace.runtime.checkpoint import CheckpointError
from headrace.runtime.models.layers import Outline
from headrace.runtime.models.registry import model_class, read_model_config
from headrace.runtime.weights import Checkpoint, MappedWeights, read_header

Change = Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes]]


def write(path: Path, header: dict[str, Any] | bytes, data: bytes, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def item(dtype: str, shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


GOOD = {"a": item("F32", [2, 2], 0, 16), "b": item("BF16", [3], 16, 22)}
DATA = bytes(range(22))

REFUSED: dict[str, tuple[Any, bytes, int | None]] = {
    "empty header length": (b"", b"", 0),
    "length beyond the file": (GOOD, DATA, 10_000),
    "length of 2^62": (GOOD, DATA, 1 << 62),
    "length of 2^64 - 1": (GOOD, DATA, (1 << 64) - 1),
    "not JSON": (b"{nope", DATA, None),
    "not UTF-8": (b'{"\xff": 1}', DATA, None),
    "a list": (b"[]", DATA, None),
    "deep nesting": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", DATA, None),
    "a number of a million digits": (b'{"a":' + b"9" * 1_000_000 + b"}", DATA, None),
    "a name twice": (b'{"a":%s,"a":%s}' % ((json.dumps(GOOD["a"]).encode(),) * 2), DATA[:16], None),
    "NaN as size": (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', DATA[:4], None),
    "shape that overflows": ({"a": item("F32", [1 << 31, 1 << 31, 4], 0, 16)}, DATA[:16], None),
    "shape of 2^63": ({"a": item("F32", [1 << 63], 0, 16)}, DATA[:16], None),
    "negative size": ({"a": item("F32", [-4], 0, 16)}, DATA[:16], None),
    "true as size": ({"a": item("F32", [True], 0, 4)}, DATA[:4], None),
    "float as size": ({"a": item("F32", [4.0], 0, 16)}, DATA[:16], None),
    "too many dimensions": ({"a": item("F32", [1] * 99, 0, 4)}, DATA[:4], None),
    "overlap": ({"a": item("F32", [4], 0, 16), "b": item("F32", [4], 8, 24)}, bytes(24), None),
    "the same bytes twice": ({"a": item("F32", [4], 0, 16), "b": item("F32", [4], 0, 16)}, bytes(16), None),
    "hole": ({"a": item("F32", [1], 0, 4), "b": item("F32", [1], 8, 12)}, bytes(12), None),
    "hole at the start": ({"a": item("F32", [1], 4, 8)}, bytes(8), None),
    "end before begin": ({"a": item("F32", [1], 4, 0)}, bytes(4), None),
    "truncated data": (GOOD, DATA[:-1], None),
    "trailing bytes": (GOOD, DATA + b"x", None),
    "unknown dtype": ({"a": item("F33", [1], 0, 4)}, bytes(4), None),
    "dtype is a list": ({"a": item(["F32"], [1], 0, 4)}, bytes(4), None),  # type: ignore[arg-type]
    "offsets do not fit": ({"a": item("F32", [2], 0, 4)}, bytes(4), None),
    "three offsets": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}}, bytes(4), None),
    "offset is a string": ({"a": item("F32", [1], "0", 4)}, bytes(4), None),
    "missing field": ({"a": {"dtype": "F32", "shape": [1]}}, bytes(4), None),
    "extra field": ({"a": {**item("F32", [1], 0, 4), "path": "/etc/passwd"}}, bytes(4), None),
    "entry is null": ({"a": None}, b"", None),
    "metadata is a list": ({"__metadata__": [], **GOOD}, DATA, None),
    "metadata holds a number": ({"__metadata__": {"format": 1}, **GOOD}, DATA, None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_files_are_refused(name: str, tmp_path: Path) -> None:
    header, data, length = REFUSED[name]
    path = write(tmp_path / "model.safetensors", header, data, length)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("size", range(0, 40))
def test_a_file_cut_anywhere_is_refused(size: int, tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.safetensors", GOOD, DATA).read_bytes()
    cut = tmp_path / "model.safetensors"
    cut.write_bytes(whole[: len(whole) * size // 40])
    with pytest.raises(CheckpointError):
        read_header(cut)


def test_bytes_flipped_in_the_header_never_escape(tmp_path: Path) -> None:
    """300 damaged headers: still a gapless description of the file, or a CheckpointError; never anything else."""
    whole = write(tmp_path / "whole.safetensors", GOOD, DATA).read_bytes()
    rng = random.Random(1)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(whole) - len(DATA))] = rng.randrange(256)
        path = tmp_path / "model.safetensors"
        path.write_bytes(damaged)
        try:
            entries, size = read_header(path)
            assert max(entry.end for entry in entries.values()) == size
        except CheckpointError:
            refused += 1
    assert refused > 200


def test_a_good_header(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", {"__metadata__": {"format": "pt"}, **GOOD}, DATA)
    entries, size = read_header(path)
    assert set(entries) == {"a", "b"} and entries["b"].end == size == path.stat().st_size


@pytest.fixture
def checkpoint_of(tiny: Callable[[str], Any], tmp_path: Path) -> Callable[..., Path]:
    """checkpoint_of(name, change): a copy of a tiny model as one file, its tensors changed by `change`."""

    def make(
        name: str = "llama", change: Callable[[dict[str, torch.Tensor]], Any] = lambda tensors: None
    ) -> Path:
        source = tiny(name).folder
        tensors = {}
        for file in source.glob("*.safetensors"):
            tensors |= load_file(file)
        change(tensors)
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text((source / "config.json").read_text())
        return tmp_path

    return make


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model of `folder`, as the engine loads it."""
    config = read_model_config(folder)
    outline = Outline()
    model_class(config)(config, outline, CpuOps(dtype), dtype)
    checkpoint = Checkpoint(folder)
    checkpoint.match(outline.parts)
    backend = CpuBackend(1, dtype)
    try:
        with MappedWeights(checkpoint, dtype, backend) as source:
            return model_class(config)(config, source, backend.ops, dtype)
    finally:
        backend.close()


K_PROJ = "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(K_PROJ), f"1 tensors are missing, the first is '{K_PROJ}'"),
        (lambda t: t.pop("lm_head.weight"), "'lm_head.weight'"),
        (lambda t: t.update({"model.layers.9.mlp.up_proj.weight": torch.zeros(1)}), "do not belong"),
        (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(80)}), "do not belong"),
        (lambda t: t.update({K_PROJ: t[K_PROJ].T.contiguous()}), "has shape [64, 40], expected is [40, 64]"),
        (lambda t: t.update({K_PROJ: t[K_PROJ][:-1].clone()}), "has shape [39, 64]"),
        (lambda t: t.update({K_PROJ: t[K_PROJ].to(torch.float64)}), "is F64"),
        (lambda t: t.update({K_PROJ: t[K_PROJ].to(torch.float8_e4m3fn)}), "is F8_E4M3"),
        (lambda t: t.update({K_PROJ: t[K_PROJ].to(torch.int8)}), "is I8"),
    ],
)
def test_tensors_must_be_the_expected_ones(
    change: Any, words: str, checkpoint_of: Callable[..., Path]
) -> None:
    folder = checkpoint_of("llama", change)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert words in str(caught.value)


def test_harmless_extras_are_known_by_name(checkpoint_of: Callable[..., Path]) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        for layer in range(3):
            tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.zeros(10)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    load(checkpoint_of("qwen3", add))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_stored_floats_become_the_compute_type(
    dtype: torch.dtype, checkpoint_of: Callable[..., Path]
) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            tensors[name] = tensors[name].to(dtype)

    folder = checkpoint_of("llama", change)
    stored = load_file(folder / "model.safetensors")
    model = load(folder)
    assert torch.equal(model.embedding.weight, stored["model.embed_tokens.weight"].float())
    assert torch.equal(model.norm.weight, stored["model.norm.weight"].float())
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    parts = [stored[f"model.layers.2.self_attn.{part}_proj.weight"].float() for part in "qkv"]
    torch.testing.assert_close(model.layers[2].attention.qkv(x), x @ torch.cat(parts).T, rtol=1e-5, atol=1e-5)


def test_weights_need_no_alignment(tmp_path: Path) -> None:
    """A header of any length: the data may begin at an odd byte."""
    values = torch.arange(6, dtype=torch.float32)
    header = json.dumps({"w": item("F32", [6], 0, 24)}).encode()
    for spaces in range(4):
        folder = tmp_path / str(spaces)
        folder.mkdir()
        write(folder / "model.safetensors", header + b" " * spaces, values.numpy().tobytes())
        backend = CpuBackend(1, torch.float32)
        with MappedWeights(Checkpoint(folder), torch.float32, backend) as source:
            assert torch.equal(source.tensor([("w", (6,))]), values)
        backend.close()


# -- shards ----------------------------------------------------------------------------------------------------


@pytest.fixture
def shards(tiny: Callable[[str], Any], tmp_path: Path) -> Path:
    """A copy of a sharded checkpoint that a test may damage."""
    source = tiny("llama").folder
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    return tmp_path


def edit_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "file",
    [
        "../model-00001-of-00008.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "sub\\model.safetensors",
        "pytorch_model.bin",
        "model.pt",
        "model.safetensors.pkl",
        ".hidden.safetensors",
        "..safetensors",
        "a\x00.safetensors",
        "",
        None,
        7,
        ["model.safetensors"],
    ],
)
def test_an_index_that_names_anything_but_a_shard_is_refused(file: Any, shards: Path) -> None:
    edit_index(shards, lambda weights: weights.update({"model.norm.weight": file}))
    with pytest.raises(CheckpointError, match="not a safetensors file in this folder"):
        Checkpoint(shards)


def test_a_shard_that_is_missing(shards: Path) -> None:
    sorted(shards.glob("*.safetensors"))[1].unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        Checkpoint(shards)


def test_a_tensor_in_two_shards(shards: Path) -> None:
    first, second = sorted(shards.glob("*.safetensors"))[:2]
    tensors, others = load_file(first), load_file(second)
    name = sorted(tensors)[0]
    others[name] = tensors[name]
    save_file(others, second)
    with pytest.raises(CheckpointError, match=r"is in .* and in"):
        Checkpoint(shards)


def test_index_and_shards_that_disagree(shards: Path) -> None:
    name = "model.norm.weight"
    edit_index(shards, lambda weights: weights.pop(name))
    with pytest.raises(CheckpointError, match=r"disagree about 'model\.norm\.weight'"):
        Checkpoint(shards)


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"weight_map": []}', '{"weight_map": {}}', "{", '{"weight_map": null}']
)
def test_an_index_without_a_map(text: str, shards: Path) -> None:
    (shards / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError):
        Checkpoint(shards)


def test_only_safetensors_are_opened(
    tiny: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with pickles and code beside the weights: none of them is opened, none is imported."""
    source = tiny("qwen3").folder
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for trap in ("pytorch_model.bin", "weights.pt", "data.pkl", "modeling_qwen3.py", "configuration.py"):
        (tmp_path / trap).write_text("raise SystemExit('this must never run')")
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_qwen3.Evil", "AutoConfig": "configuration.Evil"}
    config["trust_remote_code"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened: list[str] = []
    real = Path.open

    def watched(self: Path, *arguments: Any, **named: Any) -> Any:
        opened.append(self.name)
        return real(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", watched)
    load(tmp_path)
    assert set(opened) <= {"config.json", "model.safetensors", "generation_config.json"}


def test_a_folder_with_pickles_alone(tiny: Callable[[str], Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny("qwen3").folder / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        load(tmp_path)
