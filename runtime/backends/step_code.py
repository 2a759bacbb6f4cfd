"""Writes a whole step of few tokens as one native function: Llama's structure, with every size a constant.

All threads of a team run the function side by side. What can be shared is cut into parts that whoever is free takes
next from a counter; between two phases the team waits for its slowest. What is cheap each thread does for itself.
No sum depends on who did it or on what other rows there are.

Activations stay float32 from the embedding to the logits; keys and values are rounded as they are stored.
"""

from __future__ import annotations

from llvmlite import ir

from headrace.runtime.backends.attention_code import AttentionCode
from headrace.runtime.backends.lane_products import LaneProducts
from headrace.runtime.backends.step_form import LAYER, Means, StepSizes
from headrace.runtime.backends.step_frame import Frame, Out
from headrace.runtime.backends.tile_products import TileProducts
from headrace.runtime.backends.vector_code import I32


class StepCode:
    """The function `name(state)` in `module`, written when this is born.

    rows: of the largest step. With tiles it runs all steps up to these; else it computes so many always."""

    def __init__(self, module: ir.Module, name: str, sizes: StepSizes, rows: int, means: Means) -> None:
        self.frame = frame = Frame(module, name, sizes, rows, means)
        self.sizes, self.code = sizes, frame.code
        self.products = TileProducts(frame) if means.tiles else LaneProducts(frame)
        self.attention = AttentionCode(frame)
        code = self.code
        self._embed()
        frame.wait()
        table = frame.told("layers")
        with code.loop(0, frame.number("layer_count")) as layer:
            self._layer(code.at(table, code.to.mul(layer, code.whole(len(LAYER))), 8))
        self._norm(frame.told("final_norm"))
        logits = frame.into(frame.told("logits"), sizes.vocab)
        self.products.write(frame.told("head"), None, sizes.hidden, sizes.vocab, logits, frame.scratch)
        self.products.end()
        code.finish()

    def _embed(self) -> None:
        """The first thread copies each row's embedding; a token of -1 is the one that its slot sampled last."""
        code, sizes, to = self.code, self.sizes, self.code.to
        table, tokens, slots, last = (
            self.frame.told(name) for name in ("embedding", "tokens", "slots", "last_tokens")
        )
        with (
            code.when(to.icmp_signed("==", self.frame.rank, code.whole(0))),
            code.loop(0, self.frame.live) as row,
        ):
            given = code.word(code.at(tokens, row, 8))
            slot = code.word(code.at(slots, row), I32)
            newest = code.word(code.at(last, slot, 8))
            token = to.select(to.icmp_signed("<", given, code.whole(0)), newest, given)
            source = code.at(table, to.mul(token, code.whole(sizes.hidden)), code.item)
            target = code.at(self.frame.stream, to.mul(row, code.whole(sizes.hidden)))
            code.over(
                sizes.hidden,
                lambda index, lanes: code.store(
                    code.load_stored(code.at(source, index, code.item), lanes), code.at(target, index)
                ),
            )

    def _layer(self, layer: ir.Value) -> None:
        frame, code, sizes, to = self.frame, self.code, self.sizes, self.code.to
        qkv, attended, gate_up = (frame.told(name) for name in ("qkv", "attended", "gate_up"))

        def product(
            name: str, biased: bool, columns: int, outputs: int, out: Out, source: ir.Value = frame.scratch
        ) -> None:
            bias = frame.told_of(layer, f"{name}_bias") if biased else None
            self.products.write(frame.told_of(layer, name), bias, columns, outputs, out, source)

        def onto_stream(row: ir.Value, output: ir.Value, value: ir.Value) -> None:
            place = code.at(frame.stream, to.add(to.mul(row, code.whole(sizes.hidden)), output))
            code.store(to.fadd(to.load(place, align=4, typ=value.type), value), place)

        hidden, inner, wide = sizes.hidden, sizes.inner, sizes.heads * sizes.head_dim
        self._norm(frame.told_of(layer, "norm"))
        product("qkv", sizes.qkv_bias, hidden, sizes.qkv, frame.into(qkv, sizes.qkv))
        frame.wait()
        parts = to.mul(frame.live, code.whole(sizes.kv_heads))
        with frame.parts(parts) as part:
            self.attention.store(layer, part, qkv)
        frame.wait()
        with frame.parts(parts) as part:
            self.attention.read(layer, part, qkv, attended)
        frame.wait()
        product("out", sizes.out_bias, wide, hidden, onto_stream, attended)
        frame.wait()
        self._norm(frame.told_of(layer, "mlp_norm"))
        product("gate_up", sizes.mlp_bias, hidden, 2 * inner, frame.into(gate_up, 2 * inner))
        frame.wait()
        self._silu_mul(gate_up)
        product("down", sizes.mlp_bias, inner, hidden, onto_stream)
        frame.wait()

    def _norm(self, weight: ir.Value) -> None:
        """The normed rows of the stream, for this thread."""
        size = self.sizes.hidden
        with self.code.loop(0, self.frame.live) as row:
            first = self.code.to.mul(row, self.code.whole(size))
            self.frame.norm(
                self.code.at(self.frame.stream, first), weight, self.code.at(self.frame.scratch, first), size
            )

    def _silu_mul(self, gate_up: ir.Value) -> None:
        """silu(gate) * up of every row, for this thread."""
        code, to, inner = self.code, self.code.to, self.sizes.inner
        with code.loop(0, self.frame.live) as row:
            gates = code.at(gate_up, to.mul(row, code.whole(2 * inner)))
            ups = code.at(gates, inner)
            target = code.at(self.frame.scratch, to.mul(row, code.whole(inner)))

            def work(index: ir.Value, lanes: int) -> None:
                gate = code.load(code.at(gates, index), lanes)
                turned = to.fadd(code.exp(to.fneg(gate)), code.splat(1.0, lanes))
                value = to.fmul(to.fdiv(gate, turned), code.load(code.at(ups, index), lanes))
                code.store(value, code.at(target, index))

            code.over(inner, work)
