"""What a native decode step is written for, and what it is told when it runs. No code, only shapes and names."""

from __future__ import annotations

from dataclasses import dataclass

# What the function is told: one int64 or address each, in this order. thread_scratch: float32 numbers of each
# thread's scratch; scores: of these the room for the scores of one query head.
STATE = (
    "rows", "layer_count", "pages_per_slot", "thread_scratch", "scores", "layers", "embedding", "final_norm",
    "head", "tokens", "slots", "positions", "page_table", "last_tokens", "cos", "sin", "counters", "stream", "qkv",
    "attended", "gate_up", "logits", "scratch",
)  # fmt: skip
# The same for each layer.
LAYER = (
    "norm", "qkv", "qkv_bias", "query_norm", "key_norm", "out", "out_bias", "mlp_norm", "gate_up", "gate_up_bias",
    "down", "down_bias", "keys", "values", "window",
)  # fmt: skip
PHASES = 6  # of a layer, each with a counter of the parts that were taken; the head is one more
LANES = 16  # numbers of the widest vector: so far a loop may go beyond the end of the scores
# Products in tiles (Intel AMX): the sums of 16 outputs for all rows stand in one tile, their weights in another.
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
