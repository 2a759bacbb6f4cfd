"""Llama's structure as a chain of kernel launches over buffers that are allocated once: the GPU's forward pass.

The same chain runs eagerly, under capture and in Triton's interpreter. Two spellings of each matrix product:
kernels with norm and activation fused in where few rows make them faster, else cuBLAS between small kernels.
Nothing here allocates, and nothing looks at device data from the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.graphs.packed import TILE, PackedStep, StepKey
from headrace.kernels.activation import silu_mul
from headrace.kernels.attention_work import plan_work, work_shape
from headrace.kernels.decode_attention import (
    MOST_SPLITS,
    DecodeCut,
    cut_for,
    decode_attention,
    scratch_for,
    turn_and_attend,
)
from headrace.kernels.embed import embed
from headrace.kernels.extend_attention import extend_attention
from headrace.kernels.few_attention import attend_few, few_cut
from headrace.kernels.few_rows import Scratch
from headrace.kernels.gate_up import gate_up
from headrace.kernels.linear_add import linear_add
from headrace.kernels.norm import rms_norm
from headrace.kernels.norm_linear import norm_linear
from headrace.kernels.rope_store import rope_store
from headrace.kernels.tilings import MOST_ROWS
from headrace.runtime.device_slab import DeviceSlab
from headrace.runtime.device_weights import DeviceMatrix
from headrace.runtime.models.config import ModelConfig
from headrace.runtime.models.layers import GatedMLP
from headrace.runtime.models.llama import DecoderLayer, Layer, Llama
from headrace.runtime.step_images import StepImages

FEWEST = 4
# Bytes of a layer's weights. Measured: 31 MB gain 6 to 10 % with 8 and 16 rows, 436 MB lose 5 %; this is what the
# second cache of an H200 holds.
SHORT_LAYER = 50 << 20


@dataclass(frozen=True, slots=True)
class Buffers:
    """Activations of the largest step. All [rows, width]; views of their first rows are what a step uses."""

    stream: Tensor  # the residual stream
    normed: Tensor
    qkv: Tensor
    query: Tensor
    attended: Tensor
    gate_up: Tensor
    active: Tensor
    heads: Tensor
    logits: Tensor

    @classmethod
    def of(cls, config: ModelConfig, key: StepKey, dtype: torch.dtype, device: torch.device) -> Buffers:
        """Room for every step whose counts are at most those of `key`."""
        shapes = buffer_shapes(config, key)
        return cls(**{name: torch.zeros(shape, dtype=dtype, device=device) for name, shape in shapes.items()})


def buffer_shapes(config: ModelConfig, key: StepKey) -> dict[str, tuple[int, int]]:
    """What Buffers holds for steps up to `key`."""
    tokens, samples = key.tokens, key.samples
    wide = config.heads * config.head_dim
    return {
        "stream": (tokens, config.hidden_size),
        "normed": (max(tokens, samples), config.hidden_size),
        "qkv": (tokens, (config.heads + 2 * config.kv_heads) * config.head_dim),
        "query": (tokens, wide),
        "attended": (tokens, wide),
        "gate_up": (tokens, 2 * config.intermediate_size),
        "active": (tokens, config.intermediate_size),
        "heads": (samples, config.hidden_size),
        "logits": (samples, config.vocab_size),
    }


def attention_bytes(config: ModelConfig, slots: int) -> int:
    """What decode attention keeps beside the activations."""
    items = slots * MOST_SPLITS
    return items * config.heads * (config.head_dim + 2) * 4 + slots * config.kv_heads * 4 + items * 32


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The weights of one layer as kernels take them."""

    before_attention: Tensor
    qkv: DeviceMatrix
    query_norm: Tensor | None
    key_norm: Tensor | None
    out: DeviceMatrix
    before_mlp: Tensor
    gate_up: DeviceMatrix
    down: DeviceMatrix
    window: int

    @classmethod
    def of(cls, layer: Layer, heads: int) -> LayerWeights:
        """Those of a built layer."""
        assert isinstance(layer, DecoderLayer), "layers of another shape are refused before"
        attention, norm = layer.attention, layer.attention.norm
        assert isinstance(layer.mlp, GatedMLP), "mixtures of experts are refused before"
        return cls(
            layer.before_attention.weight,
            device_matrix(attention.qkv),
            None if norm is None else norm.weight[0],
            None if norm is None else norm.weight[heads],
            device_matrix(attention.out),
            layer.before_mlp.weight,
            device_matrix(layer.mlp.gate_up),
            device_matrix(layer.mlp.down),
            attention.window,
        )


def device_matrix(linear: object) -> DeviceMatrix:
    """`linear` of a model that was built from DeviceWeights."""
    assert isinstance(linear, DeviceMatrix), linear
    return linear


class DeviceDecoder:
    """`forward` of a built Llama whose weights lie on the device. Holds the buffers, no request state.

    early: kernels start before the one before them has ended, and wait where they need its results."""

    def __init__(
        self,
        model: Llama,
        slab: DeviceSlab,
        largest: StepKey,
        dtype: torch.dtype,
        processors: int,
        early: bool,
    ) -> None:
        config = model.config
        self.config = config
        self.slab = slab
        self.early = early
        device = slab.arena.device
        self.buffers = Buffers.of(config, largest, dtype, device)
        self.embedding = model.embedding.weight
        self.layers = [LayerWeights.of(layer, config.heads) for layer in model.layers]
        self.norm = model.norm.weight
        self.head = device_matrix(model.head)
        self.frequencies = model.rotary.frequencies.to(device)
        self.rotary_factor = float(model.rotary.attention)
        self.axes = model.rotary.axes.to(device, torch.int32)
        self.shifts = slab.shifts if config.rope.sections else None
        self.windows = model.windows
        slots = slab.page_table.shape[0]
        # Layers of one window share their list of work; all share the scratch, since one runs after the other.
        self.items = {
            window: torch.zeros(work_shape(slots, MOST_SPLITS), dtype=torch.int32, device=device)
            for window in self.windows
        }
        self.counts = {window: torch.zeros(1, dtype=torch.int32, device=device) for window in self.windows}
        self.scratch = scratch_for(slots, MOST_SPLITS, config.heads, config.kv_heads, config.head_dim, device)
        matrices = [self.head, *(m for layer in self.layers for m in (layer.qkv, layer.out, layer.down))]
        shapes = sorted({(matrix.weight.shape[0], matrix.weight.shape[1]) for matrix in matrices})
        self.shares = Scratch.of(shapes, MOST_ROWS, device)
        self.processors = processors
        self.dtype = dtype
        layer = self.layers[0]
        parts = (layer.qkv, layer.out, layer.gate_up, layer.down)
        self.short = sum(part.weight.numel() for part in parts) * dtype.itemsize <= SHORT_LAYER

    def forward(self, step: PackedStep, seen: StepImages | None = None) -> Tensor:
        """Write the step's KV and return logits [samples, vocab], valid until the next forward.

        seen: what of this step comes from pictures; a step with it runs eagerly, and may allocate."""
        key, slab, buffers = step.key, self.slab, self.buffers
        x = buffers.stream[: key.tokens]
        embed(step.token_ids, step.token_slots, slab.last_tokens, self.embedding, x)
        if seen is not None:
            x.index_copy_(0, seen.tokens, seen.rows[:, 0])
        if key.decode:
            slots = step.token_slots[: key.decode]
            for window in self.windows:
                items, count = self.items[window], self.counts[window]
                split = self._cut(key).split
                plan_work(
                    slots,
                    step.decode_lengths,
                    items,
                    count,
                    split,
                    MOST_SPLITS,
                    window,
                    slab.page_table,
                    slab.page_size,
                )
        for index, layer in enumerate(self.layers):
            self._attention(layer, index, step, x, None if seen is None else seen.angles)
            self._mlp(layer, x, self._early(key))
            if seen is not None and index + 1 < seen.rows.shape[1]:
                x.index_add_(0, seen.tokens, seen.rows[:, index + 1])
        if key.rows:
            rows = buffers.heads[: key.samples]
            torch.index_select(x, 0, step.sample_tokens, out=rows)
        else:
            rows = x  # decode rows only: each is sampled, in order
        logits = buffers.logits[: key.samples]
        self._norm_linear(rows, self.norm, self.head, logits)
        return logits

    def logits(self, first: int, count: int) -> Tensor:
        """Logits [count, vocab] of `count` tokens from `first` on of the last forward, in place of those that it
        returned."""
        logits = self.buffers.logits[:count]
        self._norm_linear(self.buffers.stream[first : first + count], self.norm, self.head, logits)
        return logits

    def _cut(self, key: StepKey) -> DecodeCut:
        few = self._few(key)
        return cut_for(self.config.head_dim, self.dtype, key.decode) if few is None else few

    def _few(self, key: StepKey) -> DecodeCut | None:
        """How attention of this step is cut if it is a chain of waits, not a stream of bytes, else None. With more
        than FEWEST rows that is so only beside short products: long ones hold the card where it would begin.
        """
        if key.chunk or (key.decode > FEWEST and not self.short):
            return None
        return few_cut(self.config.head_dim, self.dtype, key.decode, self.slab.page_size)

    def _early(self, key: StepKey) -> bool:
        """Whether the kernels of this step start before the one ahead of each has ended: few rows make them so
        short that their beginnings count, and what they begin with is weights, which nobody writes."""
        return self.early and self._few(key) is not None

    def _norm_linear(
        self,
        x: Tensor,
        norm: Tensor,
        matrix: DeviceMatrix,
        out: Tensor,
        *,
        early: bool = False,
        lets: bool = False,
    ) -> None:
        eps = self.config.norm_eps
        if matrix.read_once(x.shape[0]):
            norm_linear(
                x, norm, eps, matrix.weight, matrix.bias, out, scratch=self.shares, pdl=early, lets=lets
            )
            return
        normed = self.buffers.normed[: x.shape[0]]
        rms_norm(x, norm, eps, normed)
        if matrix.bias is None:
            torch.mm(normed, matrix.weight.t(), out=out)
        else:
            torch.addmm(matrix.bias, normed, matrix.weight.t(), out=out)

    def _add_linear(self, x: Tensor, matrix: DeviceMatrix, stream: Tensor, early: bool) -> None:
        """stream += x Wᵀ + b."""
        if matrix.read_once(x.shape[0]):
            shares = self.shares
            linear_add(x, matrix.weight, matrix.bias, stream, stream, scratch=shares, pdl=early, lets=early)
            return
        stream.addmm_(x, matrix.weight.t())
        if matrix.bias is not None:
            stream.add_(matrix.bias)

    def _attention(
        self, layer: LayerWeights, index: int, step: PackedStep, x: Tensor, angles: Tensor | None
    ) -> None:
        key, config, slab, buffers = step.key, self.config, self.slab, self.buffers
        key_pages, value_pages = slab.layers[index]
        qkv = buffers.qkv[: key.tokens]
        tuning = self._cut(key).tuning
        programs = self.processors * tuning.programs
        early = self._early(key)
        # The first one waits in full: the list of work, which attention reads early, is written just before it.
        self._norm_linear(x, layer.before_attention, layer.qkv, qkv, early=early and index > 0, lets=early)
        attended = buffers.attended[: key.tokens]
        if self._few(key) is not None:
            attend_few(
                qkv,
                layer.query_norm,
                layer.key_norm,
                config.norm_eps,
                self.frequencies,
                self.rotary_factor,
                key_pages,
                value_pages,
                slab.page_table,
                self.items[layer.window],
                self.counts[layer.window],
                self.scratch,
                attended,
                config.scale,
                key.decode * MOST_SPLITS * config.kv_heads,
                tuning,
                pdl=early,
                lets=early,
            )
            self._add_linear(attended, layer.out, x, early)
            return
        if not key.chunk:
            turn_and_attend(
                qkv,
                layer.query_norm,
                layer.key_norm,
                config.norm_eps,
                self.frequencies,
                self.rotary_factor,
                key_pages,
                value_pages,
                slab.page_table,
                self.items[layer.window],
                self.counts[layer.window],
                self.scratch,
                attended,
                config.scale,
                programs,
                tuning,
                shifts=self.shifts,
            )
            self._add_linear(attended, layer.out, x, False)
            return
        query = buffers.query[: key.tokens].view(-1, config.heads, config.head_dim)
        rope_store(
            qkv,
            layer.query_norm,
            layer.key_norm,
            config.norm_eps,
            self.frequencies,
            self.rotary_factor,
            step.positions,
            step.token_slots,
            slab.page_table,
            key_pages,
            value_pages,
            query,
            shifts=self.shifts if angles is None else None,
            angles=angles,
            axes=None if angles is None else self.axes,
        )
        if key.decode:
            decode_attention(
                query[: key.decode],
                key_pages,
                value_pages,
                slab.page_table,
                self.items[layer.window],
                self.counts[layer.window],
                self.scratch,
                attended[: key.decode],
                config.scale,
                programs,
                tuning,
            )
        extend_attention(
            query[key.decode :],
            key_pages,
            value_pages,
            slab.page_table,
            step.row_slots,
            step.row_lengths,
            step.row_offsets,
            step.tile_rows,
            step.tile_starts,
            attended[key.decode :],
            config.scale,
            layer.window,
            TILE,
        )
        self._add_linear(attended, layer.out, x, False)

    def _mlp(self, layer: LayerWeights, x: Tensor, early: bool) -> None:
        buffers = self.buffers
        active = buffers.active[: x.shape[0]]
        matrix = layer.gate_up
        if matrix.read_once(x.shape[0]):
            eps = self.config.norm_eps
            gate_up(x, layer.before_mlp, eps, matrix.weight, matrix.bias, active, pdl=early, lets=early)
        else:
            both = buffers.gate_up[: x.shape[0]]
            self._norm_linear(x, layer.before_mlp, matrix, both)
            silu_mul(both, active)
        self._add_linear(active, layer.down, x, early)
