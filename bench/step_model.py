"""How long a step must take, and how long it should: the floor from bytes and operations, and a model of the rest.

    floor     = sum over matrices of max(weight bytes / read rate, operations / rate) + KV and activation traffic
    predicted = sum over matrices of (t_mem^3 + t_cmp^3)^(1/3), each term at the efficiency its kernels reach,
                + KV + attention of the prompt chunk + a fixed cost for every kernel and for the step

Both are computed from the shape of the model and the constants of one Machine. `refit` moves those constants to
where measured steps and kernels say they are; nothing that a report calls a floor or a target is typed in.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.kernels.cases import WIDTHS

if TYPE_CHECKING:
    from headrace.runtime.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a model decides its step time. Sizes in elements."""

    name: str
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    vocab: int

    @property
    def layer_matrices(self) -> tuple[tuple[str, int, int], ...]:
        """Name, outputs and inputs of the matrix products of one layer, as a fused chain runs them."""
        query = self.heads * self.head_dim
        return (
            ("qkv", query + 2 * self.kv_heads * self.head_dim, self.hidden),
            ("o", self.hidden, query),
            ("gate_up", 2 * self.inner, self.hidden),
            ("down", self.hidden, self.inner),
        )

    @property
    def layer_weights(self) -> int:
        """Elements of the matrices of all layers, without the head."""
        return self.layers * sum(rows * columns for _, rows, columns in self.layer_matrices)

    @property
    def kv_token(self) -> int:
        """Elements that one token of context holds in all layers, keys and values."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def activations(self) -> int:
        """Elements that one row reads and writes between the kernels of all layers, five kernels to a layer."""
        query, shared = self.heads * self.head_dim, 2 * self.kv_heads * self.head_dim
        qkv = self.hidden + query + shared
        attention = 2 * query
        out = query + 2 * self.hidden  # reads the residual and writes it
        gate_up = self.hidden + self.inner
        down = self.inner + 2 * self.hidden
        return self.layers * (qkv + attention + out + gate_up + down)


def shape_of(config: ModelConfig, name: str = "") -> Shape:
    """The shape of a model folder's config (headrace.runtime.models.registry.read_model_config)."""
    return Shape(
        name or config.architecture,
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        layers=config.layers,
        vocab=config.vocab_size,
    )


SHAPES = {name: Shape(name, **widths) for name, widths in WIDTHS.items()}
"""The two models that the design is measured on, by name."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Bytes of one element. The head keeps its own: quantised layers leave it alone."""

    weights: int = 2
    head: int = 2
    kv: int = 2
    activations: int = 2
    logits: int = 4


BF16 = Precision()
FP32 = Precision(4, 4, 4, 4)
FP8_WEIGHTS = Precision(weights=1)
FP8_WEIGHTS_AND_KV = Precision(weights=1, kv=1)


@dataclass(frozen=True, slots=True)
class Machine:
    """Every constant of the model. Rates per second, times in seconds, efficiencies as a share of a rate.

    flops: matrix rate by bytes of a weight. compute_efficiency: (rows, share), rising; between two points by
    the logarithm of the rows. attention_floor_flops bounds a prompt chunk's attention; attention_flops is what is
    expected. node_s is the fixed cost of one kernel, step_s of one step; request_s and parse_s are what a server
    adds to the first token, once and per request that arrives with it.
    """

    name: str
    read_bytes: float
    flops: Mapping[int, float]
    attention_floor_flops: float
    attention_flops: float
    weight_efficiency: float
    kv_efficiency: float
    compute_efficiency: tuple[tuple[int, float], ...]
    node_s: float
    step_s: float
    nodes_per_layer: int
    nodes_per_step: int
    request_s: float
    parse_s: float

    def __post_init__(self) -> None:
        assert self.flops and all(rate > 0 for rate in self.flops.values())
        rows = [point[0] for point in self.compute_efficiency]
        assert rows == sorted(set(rows)) and rows, "one efficiency per row count, rising"

    def compute_share(self, rows: int) -> float:
        """The share of the matrix rate that a product of this many rows reaches."""
        points = self.compute_efficiency
        place = bisect.bisect([point[0] for point in points], rows)
        if place == 0:
            return points[0][1]
        if place == len(points):
            return points[-1][1]
        (low, below), (high, above) = points[place - 1], points[place]
        return below + (above - below) * math.log(rows / low) / math.log(high / low)


H200 = Machine(
    name="h200",
    # Measured on one H200 (torch 2.11, driver 580): a pure read, and bf16 products of 8192 cubed.
    read_bytes=4.424e12,
    flops={
        2: 775e12,
        1: 1400e12,
        4: 60e12,
    },  # fp8 by estimate; float32 outside the matrix units by data sheet
    attention_floor_flops=600e12,
    attention_flops=400e12,
    weight_efficiency=0.90,
    kv_efficiency=0.85,
    compute_efficiency=((64, 0.70), (256, 0.72), (512, 0.78), (1024, 0.84), (2048, 0.90)),
    node_s=2.0e-6,
    step_s=10e-6,
    nodes_per_layer=5,
    nodes_per_step=4,
    request_s=0.8e-3,
    parse_s=0.1e-3,
)

# What the engine is at a stage of its building: kernels per layer, their fixed cost, and whether the next weights
# are fetched before a kernel may start.
STAGES: dict[int, Machine] = {
    0: dataclasses.replace(H200, name="h200, unfused in one graph", nodes_per_layer=13, kv_efficiency=0.75),
    1: H200,
    2: dataclasses.replace(
        H200, name="h200, dependent launch and prefetch", node_s=1.1e-6, weight_efficiency=0.91
    ),
    3: dataclasses.replace(H200, name="h200, persistent kernel", node_s=0.35e-6, weight_efficiency=0.91),
}


def _matrices(shape: Shape, precision: Precision) -> list[tuple[int, int, int]]:
    """(how many, elements, bytes of one element) of every matrix product but the head."""
    return [(shape.layers, rows * columns, precision.weights) for _, rows, columns in shape.layer_matrices]


@dataclass(frozen=True, slots=True)
class Work:
    """What one step does: decode rows with `context` tokens each (the new one included), and prompt tokens.

    chunk: prompt tokens computed. pairs: how many (query, key) pairs they attend to, by `triangle`. finished:
    prompts whose last token is among them; they are sampled with the decode rows.
    """

    rows: int
    context: float = 0.0
    chunk: int = 0
    pairs: float = 0.0
    finished: int = 0


def triangle(begin: int, end: int) -> float:
    """(query, key) pairs of prompt tokens [begin, end), each attending to all before it."""
    return (end**2 - begin**2) / 2


def _floor_s(shape: Shape, work: Work, machine: Machine, precision: Precision) -> float:
    tokens = work.rows + work.chunk
    total = 0.0
    for count, elements, item in _matrices(shape, precision):
        reading = elements * item / machine.read_bytes
        total += count * max(reading, 2 * tokens * elements / machine.flops[item])
    sampled = work.rows + work.finished
    head = shape.vocab * shape.hidden
    if sampled:
        total += max(
            head * precision.head / machine.read_bytes, 2 * sampled * head / machine.flops[precision.head]
        )
    traffic = work.rows * work.context * shape.kv_token * precision.kv
    # A chunk's activations move while its products compute; decode rows have no such cover.
    traffic += work.rows * shape.activations * precision.activations
    traffic += 2 * sampled * shape.vocab * precision.logits  # written by the head, read by the sampler
    return (
        total + traffic / machine.read_bytes + _chunk_attention(shape, work) / machine.attention_floor_flops
    )


def _chunk_attention(shape: Shape, work: Work) -> float:
    """Operations of the chunk's attention: two products, a multiply-add per pair and element."""
    return 4 * shape.heads * shape.head_dim * work.pairs * shape.layers


def _predicted_s(shape: Shape, work: Work, machine: Machine, precision: Precision) -> float:
    tokens = work.rows + work.chunk

    def product(elements: int, item: int, rows: int) -> float:
        reading = elements * item / (machine.read_bytes * machine.weight_efficiency)
        computing = 2 * rows * elements / (machine.flops[item] * machine.compute_share(rows))
        return float((reading**3 + computing**3) ** (1 / 3))

    total = machine.step_s + machine.node_s * (
        shape.layers * machine.nodes_per_layer + machine.nodes_per_step
    )
    for count, elements, item in _matrices(shape, precision):
        total += count * product(elements, item, tokens)
    sampled = work.rows + work.finished
    if sampled:
        total += product(shape.vocab * shape.hidden, precision.head, sampled)
    kv = work.rows * work.context * shape.kv_token * precision.kv
    total += kv / (machine.read_bytes * machine.kv_efficiency)
    return total + _chunk_attention(shape, work) / machine.attention_flops


def floor_ms(
    shape: Shape, rows: int, context: float, machine: Machine = H200, precision: Precision = BF16
) -> float:
    """The least time of a decode step, ms: `rows` streams, each reading `context` tokens of KV."""
    return 1e3 * _floor_s(shape, Work(rows, context), machine, precision)


def predicted_ms(
    shape: Shape, rows: int, context: float, machine: Machine = H200, precision: Precision = BF16
) -> float:
    """What a decode step should take, ms, on a machine with these efficiencies and fixed costs."""
    return 1e3 * _predicted_s(shape, Work(rows, context), machine, precision)


def prefill_floor_ms(
    shape: Shape, tokens: int, machine: Machine = H200, precision: Precision = BF16
) -> float:
    """The least time to compute one prompt and its first token, ms: weights or operations, and attention."""
    return 1e3 * _floor_s(shape, Work(0, 0.0, tokens, triangle(0, tokens), 1), machine, precision)


def work_floor_ms(shape: Shape, work: Work, machine: Machine = H200, precision: Precision = BF16) -> float:
    """The least time of any step, ms."""
    return 1e3 * _floor_s(shape, work, machine, precision)


def work_ms(shape: Shape, work: Work, machine: Machine = H200, precision: Precision = BF16) -> float:
    """What any step should take, ms."""
    return 1e3 * _predicted_s(shape, work, machine, precision)


def percent_of_floor(floor: float, measured: float) -> float:
    """How much of a measured time was unavoidable: 100 when nothing was wasted, 50 at twice the floor."""
    assert floor > 0 and measured > 0
    return 100 * floor / measured


def roof_s(bytes_moved: float, flops: float, machine: Machine, item: int = 2) -> float:
    """The least time of one kernel, seconds: its bytes at the read rate or its operations at the matrix rate."""
    return max(bytes_moved / machine.read_bytes, flops / machine.flops[item])


# Which constants `refit` may move, and how far a share may go: prepacked weights on a CPU are read faster than the
# plain read that measured the machine, so a share above one is not a mistake there.
FITTED = ("weight_efficiency", "kv_efficiency", "node_s", "step_s", "attention_flops")
COMPUTE = "compute_efficiency"
PRIOR = (
    0.02  # weight of staying where one is, per squared logarithm: decides what the measurements leave open
)


@dataclass(frozen=True, slots=True)
class Observation:
    """One measured time, seconds, and how the model computes it from a machine's constants."""

    name: str
    seconds: float
    predict: Callable[[Machine], float]


def observations(measurements: Iterable[Mapping[str, Any]]) -> list[Observation]:
    """What `bench step` and `bench kernels` results say about a machine. Other results are refused by name.

    A step counts by its decode cells ("rows", "context", "step_ms") and its prompt cells ("begin", "chunk",
    "step_ms"), a kernel by its cases ("op", "bytes", "flops", "kernel_us"): attention as KV, all else as weights.
    """
    found: list[Observation] = []
    for result in measurements:
        kind = result.get("bench")
        if kind == "step":
            shape = Shape(**result["shape"])
            precision = Precision(**result["precision"])
            cells = [*result["sweep"], *result.get("prompts", ())]
            found += [_step_observation(shape, precision, cell) for cell in cells if "step_ms" in cell]
        elif kind == "kernels":
            found += [
                _kernel_observation(case) for case in result["cases"] if case.get("kernel_us") is not None
            ]
        else:
            raise ValueError(f"results of bench {kind!r} say nothing about a machine (step and kernels do)")
    return found


def _step_observation(shape: Shape, precision: Precision, cell: Mapping[str, Any]) -> Observation:
    if "chunk" in cell:
        begin, end = cell["begin"], cell["begin"] + cell["chunk"]
        work = Work(0, 0.0, cell["chunk"], triangle(begin, end))
        name = f"{shape.name} prompt {begin}..{end}"
    else:
        work = Work(cell["rows"], cell["context"])
        name = f"{shape.name} rows={work.rows} context={work.context:g}"

    def predict(machine: Machine) -> float:
        return _predicted_s(shape, work, machine, precision)

    return Observation(name, cell["step_ms"] / 1e3, predict)


def _kernel_observation(case: Mapping[str, Any]) -> Observation:
    moved, flops, attention = case["bytes"], case["flops"], "attention" in case["op"]
    item, rows = case.get("item", 2), max(1, case.get("rows", 1))

    def predict(machine: Machine) -> float:
        share = machine.kv_efficiency if attention else machine.weight_efficiency
        reading = moved / (machine.read_bytes * share)
        rate = machine.attention_flops if attention else machine.flops[item] * machine.compute_share(rows)
        return float((reading**3 + (flops / rate) ** 3) ** (1 / 3)) + machine.node_s

    return Observation(f"{case['op']}: {case['name']}", case["kernel_us"] / 1e6, predict)


def _moved(machine: Machine, steps: Sequence[float]) -> Machine:
    """`machine` with each fitted constant times e to its step; the last step is for all matrix shares alike."""
    scales = [math.exp(step) for step in steps]
    changed: dict[str, Any] = {
        name: getattr(machine, name) * scale for name, scale in zip(FITTED, scales[:-1], strict=True)
    }
    changed[COMPUTE] = tuple((rows, share * scales[-1]) for rows, share in machine.compute_efficiency)
    return dataclasses.replace(machine, **changed)


def refit(measurements: Iterable[Mapping[str, Any]], machine: Machine = H200) -> Machine:
    """The machine whose predictions are nearest to these measurements, by least squares of logarithms.

    Starts from `machine`, which also decides whatever the measurements leave open: one model's steps cannot tell
    weights from fixed cost, and then the split stays as it was. Gauss-Newton whose step halves until it helps.
    """
    seen = observations(measurements)
    if not seen:
        raise ValueError("no measurement to fit to")

    def misses(steps: np.ndarray) -> np.ndarray:
        at = _moved(machine, steps.tolist())
        off = [math.log(item.predict(at) / item.seconds) for item in seen]
        return np.array(off + (math.sqrt(PRIOR) * steps).tolist())

    steps = np.zeros(len(FITTED) + 1)
    off = misses(steps)
    for _ in range(50):
        slope = np.stack([(misses(steps + 1e-5 * unit) - off) / 1e-5 for unit in np.eye(len(steps))], axis=1)
        change = np.linalg.lstsq(slope, -off, rcond=None)[0]
        stride = 1.0
        while stride > 1e-4 and (nearer := misses(steps + stride * change)) @ nearer >= off @ off:
            stride /= 2
        if stride <= 1e-4:
            break
        steps = steps + stride * change
        gained = off @ off - nearer @ nearer
        off = nearer
        if gained < 1e-12:
            break
    return dataclasses.replace(_moved(machine, steps.tolist()), name=f"{machine.name}, refitted")


def residuals(measurements: Iterable[Mapping[str, Any]], machine: Machine) -> list[tuple[str, float]]:
    """For each measurement its name and predicted over measured time: 1 where the model is right."""
    return [(item.name, item.predict(machine) / item.seconds) for item in observations(measurements)]
