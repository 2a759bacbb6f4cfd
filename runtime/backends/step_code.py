"""Writes a whole decode step of few rows as one native function: Llama's structure, with every size a constant.

All threads of a team run the function side by side. What can be shared is cut into parts that whoever is free takes
next from a counter; between two phases the team waits for its slowest. What is cheap each thread does for itself.
No sum depends on who did it or on what other rows there are.

Activations stay float32 from the embedding to the logits; keys and values are rounded as they are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llvmlite import ir

from headrace.runtime.backends.vector_code import F32, I8, I16, I32, I64, POINTER, Code, pieces

# What the function is told: one int64 or address each, in this order. thread_scratch: float32 numbers of each
# thread's scratch; scores: of these the room for the scores of one query head.
STATE = (
    "rows", "layer_count", "pages_per_slot", "thread_scratch", "scores", "layers", "embedding", "final_norm", "head", "tokens", "slots", "lengths", "page_table", "last_tokens",
    "cos", "sin", "counters", "stream", "qkv", "attended", "gate_up", "logits", "scratch",
)  # fmt: skip
# The same for each layer.
LAYER = (
    "norm", "qkv", "qkv_bias", "query_norm", "key_norm", "out", "out_bias", "mlp_norm", "gate_up", "gate_up_bias",
    "down", "down_bias", "keys", "values", "window",
)  # fmt: skip
Out = Callable[[ir.Value, ir.Value, ir.Value], None]  # row, first output, its value or a vector of values
PHASES = 5  # of a layer; the head is one more
PART_BYTES = 128 << 10  # weights that a thread takes at a time
LANES = 16  # numbers of the widest vector: so far a loop may go beyond the end of the scores
# Products in tiles (Intel AMX): sums of 16 outputs for all rows stand in one tile, their weights in another.
TILE, TILE_COLUMNS = 16, 32
SUMS, WEIGHTS, INPUTS = (0, 1, 2, 3), (4, 5), (6, 7)  # numbers of the tiles
ACROSS, ALONG = 2, 2  # tiles of outputs side by side, and into how many sums each is split along its columns
TILE_FORM_BYTES = 64


@dataclass(frozen=True, slots=True)
class StepSizes:
    """What of a model and its pages is written into the function. stored: "float32" or "bfloat16", of weights of
    matrices, of the embedding and of KV; all other weights are float32."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    eps: float
    scale: float
    head_norms: bool
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    stored: str
    page_size: int

    @property
    def shared(self) -> int:
        """Query heads of one kv head."""
        return self.heads // self.kv_heads

    @property
    def qkv(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    def prepared(self, rows: int) -> int:
        """float32 numbers that hold the inputs of the widest product."""
        return rows * max(self.hidden, self.inner, self.heads * self.head_dim)

    def scratch(self, rows: int, scores: int) -> int:
        """float32 numbers that each thread needs for itself."""
        tiles = len(SUMS) * TILE * rows + 2 * TILE_FORM_BYTES // 4
        # The inputs of a product as float32, and once more as tiles want them.
        return self.prepared(rows) + self.prepared(rows) // 2 + tiles + self.shared * (self.head_dim + scores)

    @property
    def tileable(self) -> bool:
        """True if tiles fit all matrices."""
        inputs = (self.hidden, self.inner, self.heads * self.head_dim)
        outputs = (self.qkv, self.hidden, 2 * self.inner, self.vocab)
        return (
            self.stored == "bfloat16"
            and all(size % TILE_COLUMNS == 0 for size in inputs)
            and all(size >= ACROSS * TILE for size in outputs)
            and self.hidden % (ACROSS * TILE) == 0  # what is added to the stream must be added once
        )


@dataclass(frozen=True, slots=True)
class Means:
    """What the CPU offers. lanes: float32 numbers of a vector register; registers: how many there are. tiles: it
    has AMX. team: several threads run the function."""

    lanes: int
    registers: int
    tiles: bool
    team: bool


class StepCode:
    """The function `name(state)` in `module`, written when this is born.

    rows: of the largest step. With tiles it runs all steps up to these; else it computes so many always."""

    def __init__(self, module: ir.Module, name: str, sizes: StepSizes, rows: int, means: Means) -> None:
        self.sizes, self.rows, self.means = sizes, rows, means
        self.code = code = Code(module, name, [POINTER], means.lanes, sizes.stored)
        # Outputs computed side by side: half of the registers hold sums, the others weights and inputs.
        self.block = max(1, min(8, means.registers // 2 // rows))
        self.state = code.function.args[0]
        self.rank = code.whole(0)
        if means.team:
            rank = self._outside("omp_get_thread_num", ir.FunctionType(I32, []))
            self.rank = code.to.sext(code.to.call(rank, []), I64)
        at = code.to
        size, self.room = (
            code.word(code.at(self.state, STATE.index(name), 8)) for name in ("thread_scratch", "scores")
        )
        self.scratch = code.at(self.told("scratch", STATE, self.state), at.mul(self.rank, size))
        self.packed = code.at(self.scratch, sizes.prepared(rows))
        self.sums = code.at(self.packed, sizes.prepared(rows) // 2)
        self.form = code.at(self.sums, len(SUMS) * TILE * rows)
        self.query = code.at(self.form, 2 * TILE_FORM_BYTES // 4)
        self.scores = code.at(self.query, sizes.shared * sizes.head_dim)
        self.live = code.word(code.at(self.state, STATE.index("rows"), 8))
        self.stream = self.told("stream", STATE, self.state)
        self.phase = code.variable(self.told("counters", STATE, self.state))
        if means.tiles:
            self._form_tiles()
        self._embed()
        self._wait()
        table = self.told("layers", STATE, self.state)
        count = code.word(code.at(self.state, STATE.index("layer_count"), 8))
        with code.loop(0, count) as layer:
            self._layer(code.at(table, at.mul(layer, code.whole(len(LAYER))), 8))
        self._norm(self.told("final_norm", STATE, self.state))
        logits = self.told("logits", STATE, self.state)
        self._product(
            self.told("head", STATE, self.state),
            None,
            sizes.hidden,
            sizes.vocab,
            self._into(logits, sizes.vocab),
        )
        if means.tiles:
            self._tile_op("ldtilecfg", code.at(self.form, TILE_FORM_BYTES, 1))
        code.finish()

    def _outside(self, name: str, kind: ir.FunctionType) -> ir.Function:
        found = self.code.module.globals.get(name)
        return found if found is not None else ir.Function(self.code.module, kind, name)

    def told(self, name: str, names: tuple[str, ...], base: ir.Value) -> ir.Value:
        """The address that stands under `name`."""
        return self.code.pointer(self.code.at(base, names.index(name), 8))

    def _wait(self) -> None:
        """Go on when all threads are here."""
        if self.means.team:
            self.code.to.call(self._outside("GOMP_barrier", ir.FunctionType(ir.VoidType(), [])), [])

    @contextmanager
    def _parts(self, count: ir.Value) -> Iterator[ir.Value]:
        """Whoever is free takes the next of `count` parts. Then the next phase has its own counter."""
        code = self.code
        counter = code.read(self.phase)
        if self.means.team:
            with code.forever() as leave_if:
                part = code.to.atomic_rmw("add", counter, code.whole(1), "monotonic")
                leave_if(code.to.icmp_signed(">=", part, count))
                yield part
        else:
            with code.loop(code.whole(0), count) as part:
                yield part
        code.to.store(code.at(counter, 1, 8), self.phase)

    # -- phases ------------------------------------------------------------------------------------------------

    def _embed(self) -> None:
        """The first thread copies each row's embedding; a token of -1 is the one that its slot sampled last."""
        code, sizes, to = self.code, self.sizes, self.code.to
        table, tokens, slots, last = (
            self.told(name, STATE, self.state) for name in ("embedding", "tokens", "slots", "last_tokens")
        )
        with code.when(to.icmp_signed("==", self.rank, code.whole(0))), code.loop(0, self.live) as row:
            given = code.word(code.at(tokens, row, 8))
            slot = code.word(code.at(slots, row), I32)
            newest = code.word(code.at(last, slot, 8))
            token = to.select(to.icmp_signed("<", given, code.whole(0)), newest, given)
            source = code.at(table, to.mul(token, code.whole(sizes.hidden)), code.item)
            target = code.at(self.stream, to.mul(row, code.whole(sizes.hidden)))
            code.over(
                sizes.hidden,
                lambda index, lanes: code.store(
                    code.load_stored(code.at(source, index, code.item), lanes), code.at(target, index)
                ),
            )

    def _layer(self, layer: ir.Value) -> None:
        code, sizes, to = self.code, self.sizes, self.code.to

        def here(name: str, kept: bool = True) -> ir.Value | None:
            return self.told(name, LAYER, layer) if kept else None

        qkv, attended, gate_up = (
            self.told(name, STATE, self.state) for name in ("qkv", "attended", "gate_up")
        )

        def onto_stream(row: ir.Value, output: ir.Value, value: ir.Value) -> None:
            place = code.at(self.stream, to.add(to.mul(row, code.whole(sizes.hidden)), output))
            code.store(to.fadd(to.load(place, align=4, typ=value.type), value), place)

        self._norm(here("norm"))
        self._product(
            here("qkv"), here("qkv_bias", sizes.qkv_bias), sizes.hidden, sizes.qkv, self._into(qkv, sizes.qkv)
        )
        self._wait()
        with self._parts(to.mul(self.live, code.whole(sizes.kv_heads))) as part:
            self._attend(layer, part, qkv, attended)
        self._wait()
        wide = sizes.heads * sizes.head_dim
        self._product(
            here("out"), here("out_bias", sizes.out_bias), wide, sizes.hidden, onto_stream, attended
        )
        self._wait()
        self._norm(here("mlp_norm"))
        self._product(
            here("gate_up"),
            here("gate_up_bias", sizes.mlp_bias),
            sizes.hidden,
            2 * sizes.inner,
            self._into(gate_up, 2 * sizes.inner),
        )
        self._wait()
        self._silu_mul(gate_up)
        self._product(here("down"), here("down_bias", sizes.mlp_bias), sizes.inner, sizes.hidden, onto_stream)
        self._wait()

    def _into(self, buffer: ir.Value, width: int) -> Out:
        """Takes outputs to the rows of `buffer`."""
        code, to = self.code, self.code.to

        def out(row: ir.Value, output: ir.Value, value: ir.Value) -> None:
            code.store(value, code.at(buffer, to.add(to.mul(row, code.whole(width)), output)))

        return out

    def _norm(self, weight: ir.Value) -> None:
        """The normed rows of the stream, for this thread."""
        size = self.sizes.hidden
        with self.code.loop(0, self.live) as row:
            first = self.code.to.mul(row, self.code.whole(size))
            self._norm_one(self.code.at(self.stream, first), weight, self.code.at(self.scratch, first), size)

    def _norm_one(self, source: ir.Value, weight: ir.Value, target: ir.Value, size: int) -> None:
        """target = source over its root mean square, times weight."""
        code, to = self.code, self.code.to
        squares = {
            lanes: code.variable(code.splat(0.0, lanes))
            for lanes in dict.fromkeys(lanes for _, lanes in pieces(size, code.lanes))
        }

        def square(index: ir.Value, lanes: int) -> None:
            value = code.load(code.at(source, index), lanes)
            to.store(code.mul_add(value, value, code.read(squares[lanes])), squares[lanes])

        code.over(size, square)
        mean = code.real(0.0)
        for place in squares.values():
            mean = to.fadd(mean, code.total(code.read(place)))
        mean = to.fadd(to.fdiv(mean, code.real(size)), code.real(self.sizes.eps))
        factor = to.fdiv(code.real(1.0), code.root(mean))

        def scale(index: ir.Value, lanes: int) -> None:
            value = to.fmul(code.load(code.at(source, index), lanes), code.splat(factor, lanes))
            value = to.fmul(value, code.load(code.at(weight, index), lanes))
            code.store(value, code.at(target, index))

        code.over(size, scale)

    def _silu_mul(self, gate_up: ir.Value) -> None:
        """silu(gate) * up of every row, for this thread."""
        code, to, inner = self.code, self.code.to, self.sizes.inner
        with code.loop(0, self.live) as row:
            gates = code.at(gate_up, to.mul(row, code.whole(2 * inner)))
            ups = code.at(gates, inner)
            target = code.at(self.scratch, to.mul(row, code.whole(inner)))

            def work(index: ir.Value, lanes: int) -> None:
                gate = code.load(code.at(gates, index), lanes)
                turned = to.fadd(code.exp(to.fneg(gate)), code.splat(1.0, lanes))
                value = to.fmul(to.fdiv(gate, turned), code.load(code.at(ups, index), lanes))
                code.store(value, code.at(target, index))

            code.over(inner, work)

    def _product(
        self,
        weight: ir.Value,
        bias: ir.Value | None,
        columns: int,
        outputs: int,
        out: Out,
        source: ir.Value | None = None,
    ) -> None:
        """out(row, output, value) for each number of source Wᵀ + bias; source: this thread's prepared rows."""
        code, to = self.code, self.code.to
        source = self.scratch if source is None else source
        if self.means.tiles:
            self._tiled_product(weight, bias, columns, outputs, out, source)
            return
        size = max(1, PART_BYTES // (columns * code.item) // 8) * 8
        with self._parts(code.whole(-(-outputs // size))) as part:
            begin = to.mul(part, code.whole(size))
            end = code.smaller_whole(to.add(begin, code.whole(size)), code.whole(outputs))
            if outputs % self.block:
                even = to.sub(end, to.srem(to.sub(end, begin), code.whole(self.block)))
            else:
                even = end
            with code.loop(begin, even, self.block) as output:
                self._block(weight, bias, columns, output, self.block, out, source)
            if outputs % self.block:
                with code.loop(even, end) as output:
                    self._block(weight, bias, columns, output, 1, out, source)

    def _block(
        self,
        weight: ir.Value,
        bias: ir.Value | None,
        columns: int,
        output: ir.Value,
        count: int,
        out: Out,
        source: ir.Value,
    ) -> None:
        """The outputs [output, output + count) of all rows."""
        code, to, rows = self.code, self.code.to, range(self.rows)
        lines = [
            code.at(weight, to.mul(to.add(output, code.whole(each)), code.whole(columns)), code.item)
            for each in range(count)
        ]
        sums = {
            (each, row, lanes): code.variable(code.splat(0.0, lanes))
            for lanes in dict.fromkeys(lanes for _, lanes in pieces(columns, code.lanes))
            for each in range(count)
            for row in rows
        }

        def work(index: ir.Value, lanes: int) -> None:
            weights = [code.load_stored(code.at(line, index, code.item), lanes) for line in lines]
            for row in rows:
                given = code.load(code.at(source, to.add(index, code.whole(row * columns))), lanes)
                for each in range(count):
                    place = sums[each, row, lanes]
                    to.store(code.mul_add(weights[each], given, code.read(place)), place)

        code.over(columns, work)
        for each in range(count):
            number = to.add(output, code.whole(each))
            start = None if bias is None else to.load(code.at(bias, number), align=4, typ=F32)
            for row in rows:
                value = start
                for (other, mine, _), place in sums.items():
                    if (other, mine) == (each, row):
                        found = code.total(code.read(place))
                        value = found if value is None else to.fadd(value, found)
                out(code.whole(row), number, value)

    # -- products in tiles ---------------------------------------------------------------------------------------

    def _tile_op(self, name: str, *arguments: ir.Value | int) -> None:
        """One instruction of AMX; an int names a tile."""
        given = [ir.Constant(I8, each) if isinstance(each, int) else each for each in arguments]
        kind = ir.FunctionType(ir.VoidType(), [each.type for each in given])
        self.code.to.call(self._outside(f"llvm.x86.{name}", kind), given)

    def _form_tiles(self) -> None:
        """Tiles get their shapes for as many rows as live. What shapes they had stands behind the new ones."""
        code, to = self.code, self.code.to
        self._tile_op("sttilecfg", code.at(self.form, TILE_FORM_BYTES, 1))
        for word in range(0, TILE_FORM_BYTES, 8):
            to.store(code.whole(0), code.at(self.form, word, 1), align=4)
        to.store(ir.Constant(I8, 1), self.form, align=1)
        per_row = to.trunc(to.mul(self.live, code.whole(4)), I16)
        wide = ir.Constant(I16, 4 * TILE)
        for tile in (*SUMS, *WEIGHTS, *INPUTS):
            to.store(wide if tile in WEIGHTS else per_row, code.at(self.form, 16 + 2 * tile, 1), align=2)
            to.store(ir.Constant(I8, TILE), code.at(self.form, 48 + tile, 1), align=1)
        self._tile_op("ldtilecfg", self.form)

    def _pack(self, source: ir.Value, columns: int) -> None:
        """`source` rounded to bfloat16, for this thread: pairs of columns, the pair of each row side by side."""
        code, to = self.code, self.code.to
        with code.loop(0, self.live) as row:
            line = code.at(source, to.mul(row, code.whole(columns)))

            def work(index: ir.Value, lanes: int) -> None:
                short = code.round_short(code.load(code.at(line, index), lanes))
                pairs = to.bitcast(short, ir.VectorType(I32, lanes // 2))
                first = to.sdiv(index, code.whole(2))
                for pair in range(lanes // 2):
                    place = to.add(to.mul(to.add(first, code.whole(pair)), self.live), row)
                    word = to.extract_element(pairs, ir.Constant(I32, pair))
                    to.store(word, code.at(self.packed, place), align=4)

            code.over(columns, work)

    def _tiled_product(
        self, weight: ir.Value, bias: ir.Value | None, columns: int, outputs: int, out: Out, source: ir.Value
    ) -> None:
        """`_product` in tiles, some outputs at a time. The last of them overlap those before where they do not come out even."""
        code, to = self.code, self.code.to
        self._pack(source, columns)
        block = ACROSS * TILE
        stride = ALONG * TILE_COLUMNS
        line = code.whole(columns * 2)
        pitch = to.mul(self.live, code.whole(4))
        with self._parts(code.whole(-(-outputs // block))) as part:
            first = code.smaller_whole(to.mul(part, code.whole(block)), code.whole(outputs - block))
            rows = code.at(weight, to.mul(first, code.whole(columns)), 2)
            for tile in SUMS:
                self._tile_op("tilezero", tile)

            def multiply(column: ir.Value, step: int) -> None:
                """All outputs times 32 columns, onto the sums of this step."""
                inputs = INPUTS[step % len(INPUTS)]
                place = code.at(self.packed, to.mul(to.sdiv(column, code.whole(2)), self.live))
                self._tile_op("tileloadd64", inputs, place, pitch)
                for each in range(ACROSS):
                    tile = step * ACROSS + each
                    mine = WEIGHTS[tile % len(WEIGHTS)]
                    place = code.at(rows, to.add(code.whole(each * TILE * columns), column), 2)
                    self._tile_op("tileloadd64", mine, place, line)
                    self._tile_op("tdpbf16ps", tile, mine, inputs)

            with code.loop(0, columns // stride * stride, stride) as column:
                for step in range(ALONG):
                    multiply(to.add(column, code.whole(step * TILE_COLUMNS)), step)
            for step in range(columns % stride // TILE_COLUMNS):
                multiply(code.whole(columns // stride * stride + step * TILE_COLUMNS), step)
            for tile in SUMS:
                place = code.at(self.sums, to.mul(code.whole(tile * TILE), self.live))
                self._tile_op("tilestored64", tile, place, pitch)
            for each in range(ACROSS):
                output = to.add(first, code.whole(each * TILE))
                added = None if bias is None else code.load(code.at(bias, output), TILE)
                with code.loop(0, self.live) as row:
                    total = added
                    for step in range(ALONG):
                        found = self._tile_column(step * ACROSS + each, row)
                        total = found if total is None else to.fadd(total, found)
                    out(row, output, total)

    def _tile_column(self, tile: int, row: ir.Value) -> ir.Value:
        """The 16 sums of one row in a stored tile."""
        code, to = self.code, self.code.to
        found = ir.Constant(ir.VectorType(F32, TILE), ir.Undefined)
        for each in range(TILE):
            place = to.add(to.mul(code.whole(tile * TILE + each), self.live), row)
            number = to.load(code.at(self.sums, place), align=4, typ=F32)
            found = to.insert_element(found, number, ir.Constant(I32, each))
        return found

    # -- attention ---------------------------------------------------------------------------------------------

    def _attend(self, layer: ir.Value, part: ir.Value, qkv: ir.Value, attended: ir.Value) -> None:
        """One row and one kv head: its new key and value are stored, then its query heads read all of theirs."""
        code, sizes, to = self.code, self.sizes, self.code.to
        dim, shared, heads, kv_heads = sizes.head_dim, sizes.shared, sizes.heads, sizes.kv_heads
        row, head = to.sdiv(part, code.whole(kv_heads)), to.srem(part, code.whole(kv_heads))
        mine = code.at(qkv, to.mul(row, code.whole(sizes.qkv)))
        slot = code.word(code.at(self.told("slots", STATE, self.state), row), I32)
        length = code.word(code.at(self.told("lengths", STATE, self.state), row), I32)
        pages = code.word(code.at(self.state, STATE.index("pages_per_slot"), 8))
        table = code.at(self.told("page_table", STATE, self.state), to.mul(slot, pages))
        angles = [
            code.at(self.told(name, STATE, self.state), to.mul(row, code.whole(dim // 2)))
            for name in ("cos", "sin")
        ]
        # Cells lie token after token, heads side by side.
        keys, values = (
            code.at(self.told(name, LAYER, layer), to.mul(head, code.whole(dim)), code.item)
            for name in ("keys", "values")
        )
        pitch = kv_heads * dim

        first_query = to.mul(to.mul(head, code.whole(shared)), code.whole(dim))
        for each in range(shared):
            source = code.at(mine, to.add(first_query, code.whole(each * dim)))
            if sizes.head_norms:
                self._norm_one(source, self.told("query_norm", LAYER, layer), source, dim)
            self._turn(
                source,
                angles,
                lambda at, v, each=each: code.store(
                    v, code.at(self.query, to.add(at, code.whole(each * dim)))
                ),
            )
        key = code.at(mine, to.add(code.whole(heads * dim), to.mul(head, code.whole(dim))))
        value = code.at(key, kv_heads * dim)
        if sizes.head_norms:
            self._norm_one(key, self.told("key_norm", LAYER, layer), key, dim)
        newest = to.sub(length, code.whole(1))
        cell = to.mul(self._cell(table, newest), code.whole(pitch))
        new_key, new_value = (code.at(base, cell, code.item) for base in (keys, values))
        self._turn(key, angles, lambda at, v: code.store_stored(v, code.at(new_key, at, code.item)))
        code.over(
            dim,
            lambda at, lanes: code.store_stored(
                code.load(code.at(value, at), lanes), code.at(new_value, at, code.item)
            ),
        )

        window = code.word(code.at(layer, LAYER.index("window"), 8))
        first = to.sub(length, window)
        none = to.or_(to.icmp_signed("==", window, code.whole(0)), to.icmp_signed("<", first, code.whole(0)))
        first = to.select(none, code.whole(0), first)
        count = to.sub(length, first)

        def score(cell: ir.Value, place: ir.Value) -> None:
            line = code.at(keys, to.mul(cell, code.whole(pitch)), code.item)
            loaded = [
                (at, code.load_stored(code.at(line, at, code.item), lanes))
                for at, lanes in pieces(dim, code.lanes)
            ]
            for each in range(shared):
                sums: dict[int, ir.Value] = {}
                for at, numbers in loaded:
                    lanes = numbers.type.count
                    query = code.load(code.at(self.query, each * dim + at), lanes)
                    if lanes in sums:
                        sums[lanes] = code.mul_add(query, numbers, sums[lanes])
                    else:
                        sums[lanes] = to.fmul(query, numbers)
                total = None
                for vector in sums.values():
                    found = code.total(vector)
                    total = found if total is None else to.fadd(total, found)
                total = to.fmul(total, code.real(sizes.scale))
                code.store(total, code.at(self.scores, to.add(place, to.mul(self.room, code.whole(each)))))

        self._cells(table, first, length, score)
        sums = [
            self._soften(code.at(self.scores, to.mul(self.room, code.whole(each))), count)
            for each in range(shared)
        ]
        # As many query heads at once as leave registers for their sums.
        cuts = pieces(dim, code.lanes)
        together = max(1, 16 // len(cuts))
        for begin in range(0, shared, together):
            group = range(begin, min(shared, begin + together))
            read = {(each, at): code.variable(code.splat(0.0, lanes)) for each in group for at, lanes in cuts}

            def gather(cell: ir.Value, place: ir.Value, group: range = group, read: dict = read) -> None:
                line = code.at(values, to.mul(cell, code.whole(pitch)), code.item)
                weights = [
                    to.load(
                        code.at(self.scores, to.add(place, to.mul(self.room, code.whole(each)))),
                        align=4,
                        typ=F32,
                    )
                    for each in group
                ]
                for at, lanes in cuts:
                    numbers = code.load_stored(code.at(line, at, code.item), lanes)
                    for each, weight in zip(group, weights, strict=True):
                        place_ = read[each, at]
                        to.store(code.mul_add(numbers, code.splat(weight, lanes), code.read(place_)), place_)

            self._cells(table, first, length, gather)
            for each in group:
                part_ = code.at(attended, to.add(to.mul(row, code.whole(heads * dim)), first_query))
                share = to.fdiv(code.real(1.0), sums[each])
                for at, lanes in cuts:
                    found = to.fmul(code.read(read[each, at]), code.splat(share, lanes))
                    code.store(found, code.at(part_, each * dim + at))

    def _turn(
        self, source: ir.Value, angles: list[ir.Value], out: Callable[[ir.Value, ir.Value], None]
    ) -> None:
        """out(place, vector) for one head turned by its position."""
        code, to, half = self.code, self.code.to, self.sizes.head_dim // 2
        for at, lanes in pieces(half, code.lanes):
            first, second = (code.load(code.at(source, place), lanes) for place in (at, half + at))
            cos, sin = (code.load(code.at(base, at), lanes) for base in angles)
            out(code.whole(at), to.fsub(to.fmul(first, cos), to.fmul(second, sin)))
            out(code.whole(half + at), code.mul_add(first, sin, to.fmul(second, cos)))

    def _cell(self, table: ir.Value, token: ir.Value) -> ir.Value:
        code, to, size = self.code, self.code.to, self.code.whole(self.sizes.page_size)
        page = code.word(code.at(table, to.udiv(token, size)), I32)
        return to.add(to.mul(page, size), to.urem(token, size))

    def _cells(
        self, table: ir.Value, first: ir.Value, end: ir.Value, work: Callable[[ir.Value, ir.Value], None]
    ) -> None:
        """work(cell, place) for the tokens [first, end) of one slot, page after page; place 0 is the first."""
        code, to, size = self.code, self.code.to, self.code.whole(self.sizes.page_size)
        token = code.variable(first)
        with code.forever() as leave_if:
            now = code.read(token)
            leave_if(to.icmp_signed(">=", now, end))
            cell = self._cell(table, now)
            run = code.smaller_whole(to.sub(size, to.urem(now, size)), to.sub(end, now))
            with code.loop(0, run) as index:
                work(to.add(cell, index), to.add(to.sub(now, first), index))
            to.store(to.add(now, run), token)

    def _soften(self, scores: ir.Value, count: ir.Value) -> ir.Value:
        """Scores become weights whose sum is returned. What fills the last vector weighs nothing."""
        code, to, lanes = self.code, self.code.to, self.code.lanes
        low = code.splat(float("-inf"), lanes)
        code.store(low, code.at(scores, count))
        most = code.variable(low)
        with code.loop(code.whole(0), count, lanes) as at:
            to.store(code.larger(code.load(code.at(scores, at), lanes), code.read(most)), most)
        highest = to.extract_element(code.read(most), ir.Constant(I32, 0))
        for lane in range(1, lanes):
            highest = code.larger(to.extract_element(code.read(most), ir.Constant(I32, lane)), highest)
        total = code.variable(code.splat(0.0, lanes))
        with code.loop(code.whole(0), count, lanes) as at:
            weight = code.exp(to.fsub(code.load(code.at(scores, at), lanes), code.splat(highest, lanes)))
            code.store(weight, code.at(scores, at))
            to.store(to.fadd(code.read(total), weight), total)
        return code.total(code.read(total))
