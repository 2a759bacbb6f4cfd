"""Llama's structure as one native call for a step of few tokens: the CPU's forward pass for streams.

A step of few tokens reads every weight once and computes little, so what torch costs beside the reading (some 20
ops a layer, a layout made for many rows) is a third of it in a large model and nearly all in a small one. Longer
chunks of prompts and steps of many streams stay with torch, whose products are better there.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.graphs.inputs import StepInputs
from headrace.runtime.backends.native_step import NativeStep
from headrace.runtime.backends.step_form import LANES, LAYER, PHASES, STATE, StepSizes
from headrace.runtime.models.config import ModelConfig
from headrace.runtime.models.layers import GatedMLP
from headrace.runtime.models.llama import DecoderLayer, Layer, Llama
from headrace.runtime.slab import KVSlab


def step_sizes(config: ModelConfig, dtype: torch.dtype, page_size: int) -> StepSizes:
    """What the native step of this model and slab is written for."""
    return StepSizes(
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        vocab=config.vocab_size,
        eps=config.norm_eps,
        scale=config.scale,
        head_norms=config.qk_norm,
        qkv_bias=config.qkv_bias,
        out_bias=config.output_bias,
        mlp_bias=config.mlp_bias,
        stored="float32" if dtype is torch.float32 else "bfloat16",
        page_size=page_size,
    )


class HostDecoder:
    """Steps of few tokens of a built Llama whose matrices kept their plain weights. Holds no request state.

    native: compiled for `sizes`. Used on the thread of the engine's steps alone."""

    def __init__(self, model: Llama, kv: KVSlab, sizes: StepSizes, native: NativeStep, threads: int) -> None:
        self.native = native
        self.most = native.most  # rows of a step
        self.frequencies = model.rotary.frequencies.numpy()
        self.factor = np.float32(model.rotary.attention)
        rows, half = self.most, sizes.head_dim // 2
        self._kept: list[Tensor] = []  # what native code points into
        self.stream = self._room(rows, sizes.hidden)
        self.logits = self._room(rows, sizes.vocab)
        self.cos = np.zeros((rows, half), np.float32)
        self.sin = np.zeros((rows, half), np.float32)
        self.counters = np.zeros(PHASES * len(model.layers) + 1, np.int64)
        pages = kv.page_table.shape[1]
        scores = pages * kv.page_size + LANES
        scratch = sizes.scratch(rows, scores)
        layers = []
        for layer, cells in zip(model.layers, kv.layers, strict=True):
            assert isinstance(layer, DecoderLayer), "other layers are an obstacle (native.py)"
            layers.append(self._layer(layer, cells))
        self.layers = np.array(layers)
        head = model.embedding.weight if model.config.tied_head else model.head.weight  # type: ignore[attr-defined]
        given = {
            "layer_count": len(model.layers),
            "pages_per_slot": pages,
            "thread_scratch": scratch,
            "scores": scores,
            "layers": self.layers.ctypes.data,
            "embedding": self._stored(model.embedding.weight),
            "final_norm": self._single(model.norm.weight),
            "head": self._stored(head),
            "page_table": kv.page_table.data_ptr(),
            "last_tokens": kv.last_tokens.data_ptr(),
            "cos": self.cos.ctypes.data,
            "sin": self.sin.ctypes.data,
            "counters": self.counters.ctypes.data,
            "stream": self.stream.data_ptr(),
            "qkv": self._room(rows, sizes.qkv).data_ptr(),
            "attended": self._room(rows, sizes.heads * sizes.head_dim).data_ptr(),
            "gate_up": self._room(rows, 2 * sizes.inner).data_ptr(),
            "logits": self.logits.data_ptr(),
            "scratch": self._room(threads, scratch).data_ptr(),
        }
        self.state = np.array([given.get(name, 0) for name in STATE], np.int64)
        self._address = self.state.ctypes.data

    def run(self, inputs: StepInputs, shift: NDArray[np.int64] | None = None) -> tuple[Tensor, Tensor]:
        """Write the step's KV; what the last layer gives [tokens, hidden] and logits [tokens, vocab], float32, of
        all tokens: valid until the next call. inputs: `most` tokens at most, of decode and prefill rows alike.
        shift: int64 [tokens], how far from its position each stands on the axes of a model that sees."""
        rows = inputs.shape.tokens
        assert 0 < rows <= self.most, inputs.shape
        stands = inputs.positions.numpy()
        if shift is not None:
            stands = stands + shift
        turns = stands.astype(np.float32)[:, None] * self.frequencies
        np.cos(turns, out=self.cos[:rows])
        np.sin(turns, out=self.sin[:rows])
        if self.factor != 1.0:
            self.cos[:rows] *= self.factor
            self.sin[:rows] *= self.factor
        self.counters.fill(0)
        state = self.state
        state[_ROWS] = rows
        state[_TOKENS] = inputs.token_ids.data_ptr()
        state[_SLOTS] = inputs.token_slots.data_ptr()
        state[_POSITIONS] = inputs.positions.data_ptr()
        next(run for most, run in self.native.runs if most >= rows)(self._address)
        return self.stream[:rows], self.logits[:rows]

    def _layer(self, layer: Layer, cells: tuple[Tensor, Tensor]) -> list[int]:
        assert isinstance(layer, DecoderLayer) and isinstance(layer.mlp, GatedMLP), (
            "others are refused before"
        )
        attention, mlp = layer.attention, layer.mlp
        norm = attention.norm
        given = {
            "norm": self._single(layer.before_attention.weight),
            "query_norm": 0 if norm is None else self._single(norm.weight[0]),
            "key_norm": 0 if norm is None else self._single(norm.weight[-1]),
            "mlp_norm": self._single(layer.before_mlp.weight),
            "keys": cells[0].data_ptr(),
            "values": cells[1].data_ptr(),
            "window": attention.window,
        }
        matrices = {"qkv": attention.qkv, "out": attention.out, "gate_up": mlp.gate_up, "down": mlp.down}
        for name, linear in matrices.items():
            given[name] = self._stored(linear.weight)  # type: ignore[attr-defined]
            bias = linear.bias  # type: ignore[attr-defined]
            given[f"{name}_bias"] = 0 if bias is None else self._single(bias)
        return [given[name] for name in LAYER]

    def _room(self, rows: int, width: int) -> Tensor:
        room = torch.zeros((rows, width))
        self._kept.append(room)
        return room

    def _stored(self, weight: Tensor | None) -> int:
        assert weight is not None and weight.is_contiguous(), "its plain weights were kept"
        self._kept.append(weight)
        return weight.data_ptr()

    def _single(self, weight: Tensor) -> int:
        return self._stored(weight.float().contiguous())


_ROWS, _TOKENS, _SLOTS, _POSITIONS = (STATE.index(name) for name in ("rows", "tokens", "slots", "positions"))
