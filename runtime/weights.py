"""Safetensors files to weights: own header reader, memory-mapped, checked against what the model expects.

Everything about names, shapes, dtypes and places is checked on the headers, before any weight memory is touched.
Only `*.safetensors` files in the folder itself are opened, never a pickle and never code.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from headrace.runtime.backends.base import Backend, Linear
from headrace.runtime.checkpoint import CheckpointError, parse_object, read_json
from headrace.runtime.models.layers import Part

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEADER_LIMIT = 32 << 20
TENSOR_LIMIT = 200_000
DIMENSION_LIMIT = 1 << 40
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Sizes of the types a header may name; only the floats above may be weights.
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
# Tensors that older files carry and no model reads: rotary tables that are computed here, causal masks.
HARMLESS = re.compile(
    r"model\.(language_model\.)?rotary_emb\.inv_freq"
    r"|model\.(language_model\.)?layers\.\d+\.self_attn\.(rotary_emb\.inv_freq|masked_bias|bias)"
    r"|model\.vision_tower\.embeddings\.position_ids"
)
TIED_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor in one file: bytes [begin, end) of that file."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> tuple[dict[str, Entry], int]:
    """All tensors of one safetensors file, and its size. Refuses anything but a gapless, exact description."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(HEADER_LIMIT, size - 8):
                raise CheckpointError(f"{path.name} is not a safetensors file: its header does not fit")
            header = parse_object(file.read(length), f"the header of {path.name}")
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror or error}") from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise CheckpointError(f"the header of {path.name} has bad metadata")
    if len(header) > TENSOR_LIMIT:
        raise CheckpointError(f"{path.name} lists {len(header)} tensors; at most {TENSOR_LIMIT} are read")
    entries = {name: _entry(path.name, name, item, 8 + length) for name, item in header.items()}
    place = 8 + length
    for name, entry in sorted(entries.items(), key=lambda pair: (pair[1].begin, pair[1].end)):
        if entry.begin != place:
            raise CheckpointError(f"{path.name}: {name[:100]!r} overlaps its neighbour or leaves a gap")
        place = entry.end
    if place != size:
        raise CheckpointError(f"{path.name} has {size} bytes, its header describes {place}")
    return entries, size


def _entry(file: str, name: str, item: Any, data: int) -> Entry:
    where = f"{file}: {name[:100]!r}"
    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError(f"{where} has the unknown dtype {str(dtype)[:40]!r}")
    if not isinstance(shape, list) or len(shape) > 8 or not all(_is_count(size) for size in shape):
        raise CheckpointError(f"{where} has a bad shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(place) for place in offsets):
        raise CheckpointError(f"{where} has bad data_offsets")
    begin, end = offsets
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise CheckpointError(f"{where} has offsets that do not fit its shape")
    return Entry(file, dtype, tuple(shape), data + begin, data + end)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < DIMENSION_LIMIT


def list_shards(folder: Path) -> dict[str, set[str] | None]:
    """File names to read, each with the tensors the index says it holds (None: there is no index)."""
    if (folder / SINGLE).exists():
        return {SINGLE: None}
    if not (folder / INDEX).exists():
        raise CheckpointError(f"the folder has neither {SINGLE} nor {INDEX}")
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX} has no weight_map")
    shards: dict[str, set[str] | None] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors", file):
            raise CheckpointError(
                f"{INDEX} names {str(file)[:100]!r}, which is not a safetensors file in this folder"
            )
        held = shards.setdefault(file, set())
        assert held is not None
        held.add(tensor)
    return shards


class Checkpoint:
    """The headers of all shards of one folder. Opening it reads no weights.

    renames: how a tensor's name begins in older files, and what it begins with here."""

    def __init__(self, folder: Path, renames: Sequence[tuple[str, str]] = ()) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        for file, promised in sorted(list_shards(folder).items()):
            found, _ = read_header(folder / file)
            for name in found:
                if name in self.entries:
                    raise CheckpointError(f"{name[:100]!r} is in {self.entries[name].file} and in {file}")
            if promised is not None and promised != set(found):
                odd = sorted(promised ^ set(found))[0]
                raise CheckpointError(f"{INDEX} and {file} disagree about {odd[:100]!r}")
            for name, entry in found.items():
                old, new = next((pair for pair in renames if name.startswith(pair[0])), ("", ""))
                self.entries[new + name.removeprefix(old)] = entry

    def match(self, expected: Mapping[str, tuple[int, ...]], spare: tuple[str, ...] = ()) -> None:
        """Raise CheckpointError unless the files hold exactly the expected tensors, in shape and a float type.

        Buffers on the HARMLESS list may be there; so may the head, where it is tied to the embedding, and names
        that begin with one of `spare`."""
        missing = sorted(set(expected) - set(self.entries))
        if missing:
            raise CheckpointError(f"{len(missing)} tensors are missing, the first is {missing[0]!r}")
        extra = [name for name in self.entries if name not in expected and not _may_be_extra(name, spare)]
        if extra:
            raise CheckpointError(
                f"{len(extra)} tensors do not belong to this architecture, the first is {min(extra)[:100]!r}"
            )
        for name, shape in expected.items():
            entry = self.entries[name]
            if entry.shape != shape:
                raise CheckpointError(f"{name!r} has shape {list(entry.shape)}, expected is {list(shape)}")
            if entry.dtype not in FLOATS:
                raise CheckpointError(f"{name!r} is {entry.dtype}; F32, F16 and BF16 are supported")


def _may_be_extra(name: str, spare: tuple[str, ...]) -> bool:
    # A tied head that is stored anyway is the embedding once more; an untied one is expected and never extra.
    return name == TIED_HEAD or name.startswith(spare) or HARMLESS.fullmatch(name) is not None


class MappedParts:
    """The numbers of a matched checkpoint: copies each part once, from the mapped file into host memory.

    A context manager: files are mapped while it is open."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        self.checkpoint = checkpoint
        self.dtype = dtype
        self._maps: dict[str, mmap.mmap] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for mapped in self._maps.values():
            mapped.close()
        self._maps.clear()

    def tensor(self, parts: Sequence[Part]) -> Tensor:
        shapes = [shape for _, shape in parts]
        whole = torch.empty((sum(shape[0] for shape in shapes), *shapes[0][1:]), dtype=self.dtype)
        row = 0
        for name, shape in parts:
            whole[row : row + shape[0]] = self._stored(name)
            row += shape[0]
        return whole

    def _stored(self, name: str) -> Tensor:
        """A view of the mapped file; it must be gone before the file is closed."""
        entry = self.checkpoint.entries[name]
        mapped = self._maps.get(entry.file)
        if mapped is None:
            with (self.checkpoint.folder / entry.file).open("rb") as file:
                # Copy-on-write only because torch wants writable memory; nobody writes.
                mapped = self._maps[entry.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if entry.end > len(mapped):
            raise CheckpointError(f"{entry.file} became shorter while it was read")
        dtype = FLOATS[entry.dtype]
        count = (entry.end - entry.begin) // dtype.itemsize
        if count == 0:
            return torch.empty(entry.shape, dtype=dtype)
        return torch.frombuffer(mapped, dtype=dtype, count=count, offset=entry.begin).view(entry.shape)


class MappedWeights(MappedParts):
    """A WeightSource over a matched checkpoint, its matrices packed by `backend`.

    keep(name): whether the matrix whose first part is `name` stays in its plain form as well."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        backend: Backend,
        keep: Callable[[str], bool] = lambda name: False,
    ) -> None:
        super().__init__(checkpoint, dtype)
        self.backend = backend
        self.keep = keep

    def linear(self, weight: Sequence[Part], bias: Sequence[Part] | None) -> Linear:
        # A convolution whose steps do not overlap is a matrix over flat patches.
        matrix = self.tensor(weight).flatten(1)
        added = None if bias is None else self.tensor(bias)
        return self.backend.linear(matrix, added, self.keep(weight[0][0]))
