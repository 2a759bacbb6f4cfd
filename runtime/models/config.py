"""A Hugging Face `config.json` as frozen facts. Reads data only; an architecture it does not know is refused.

A field that would change the answer and is not supported is refused by name. Fields that only matter for training
or bookkeeping are ignored by name; what is left over is reported in `ModelConfig.unread`, never dropped silently.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from headrace.runtime.checkpoint import CheckpointError, read_json
from headrace.runtime.models.vision_config import PlainVision, VisionConfig

SIZE_LIMIT = 1 << 24  # no width, head count or vocabulary is larger; keeps every product an ordinary number
CONTEXT_LIMIT = 1 << 31

# Read by nobody here because they do not change what the model answers.
HARMLESS = frozenset(
    {
        "architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "use_cache",
        "initializer_range", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "pretraining_tp",
        "bos_token_id", "pad_token_id", "unk_token_id", "_name_or_path", "name_or_path", "return_dict",
        "output_attentions", "output_hidden_states", "max_window_layers", "use_mrope", "_attn_implementation",
        "attn_implementation", "unsloth_version", "unsloth_fixed", "tokenizer_class", "task_specific_params",
        "id2label", "label2id", "is_encoder_decoder", "torchscript", "problem_type", "gradient_checkpointing",
        "chunk_size_feed_forward", "finetuning_task", "cross_attention_hidden_size", "is_decoder", "layer_types",
        "_attn_implementation_autoset", "add_cross_attention", "tie_encoder_decoder", "prefix", "sep_token_id",
        "decoder_start_token_id", "use_bfloat16", "tf_legacy_loss", "pruned_heads", "num_labels", "auto_map",
        "original_max_position_embeddings",
    }
)  # fmt: skip

# Would change the answer. Each may be present with a value that means "off".
REFUSED: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None, {}),
    "compression_config": (None, {}),
    "partial_rotary_factor": (None, 1, 1.0),
    "logit_scale": (None, 1, 1.0),
    "logits_scaling": (None, 1, 1.0),
    "final_logit_softcapping": (None,),
    "attn_logit_softcapping": (None,),
    "embedding_multiplier": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "attention_multiplier": (None,),
    "query_pre_attn_scalar": (None,),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "attention_sink": (None, False),
    "is_causal": (None, True),
    "rope_interleaved": (None, False),
    "no_rope_layers": (None, []),
    "cache_config": (None, {}),
    "adapter_config": (None, {}),
}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position settings; `kind` says which of the fields count.

    linear: factor. llama3: factor, low, high, original. yarn: factor, fast, slow, original, truncate and
    attention (the factor on cos and sin, resolved here).
    """

    kind: Literal["default", "linear", "llama3", "yarn"] = "default"
    theta: float = 10000.0
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    fast: float = 32.0
    slow: float = 1.0
    original: int = 0
    attention: float = 1.0
    truncate: bool = True
    sections: tuple[
        int, ...
    ] = ()  # pairs that turn with the time, the row and the column of a token; (): one axis
    interleaved: bool = False  # sections alternate pair by pair, where they otherwise follow each other


@dataclass(frozen=True, slots=True)
class ExpertTraits:
    """A mixture of `count` experts of `inner` numbers, `chosen` of them for each token; `renormalised`: their
    shares add up to one. name: of the block in a layer's tensors; parts: of an expert's gate, up and down. dense:
    layers that have a plain MLP all the same."""

    count: int
    chosen: int
    inner: int
    renormalised: bool
    name: str
    parts: tuple[str, str, str]
    dense: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class GemmaTraits:
    """Where a Gemma differs from Llama: norms behind attention and MLP too, each times one more than its weight; a
    GELU by its tanh formula; embeddings times `embedding_scale`; scores times `score_scale`.

    score_cap, logit_cap: scores and logits x become cap * tanh(x / cap); 0: they stay. local_rope: how the layers
    with a window turn, None: as the others do."""

    embedding_scale: float
    score_scale: float
    score_cap: float = 0.0
    logit_cap: float = 0.0
    local_rope: RopeConfig | None = None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything that shapes a decoder-only model. Sizes in elements; all checked to be positive.

    windows: one entry per layer, the number of newest tokens (the token itself included) that it may read, or 0
    for all. `vision` is None for a model without eyes. `unread` names fields of the file that nobody reads.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    max_positions: int
    rope: RopeConfig
    tied_head: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    fused: bool = False  # the files hold query, key and value as one matrix, and gate and up as one
    windows: tuple[int, ...] = ()
    prefix: str = "model"  # of the decoder's tensors in the checkpoint
    vision: VisionConfig | None = None
    experts: ExpertTraits | None = None
    gemma: GemmaTraits | None = None
    eos_ids: frozenset[int] = frozenset()
    unread: tuple[str, ...] = ()

    @property
    def spare(self) -> tuple[str, ...]:
        """How names of tensors begin that are in its files and take no part."""
        return self.vision.spare if isinstance(self.vision, PlainVision) else ()

    @property
    def image_row_size(self) -> int:
        """Numbers that one row of a picture becomes: for the embedding, and for each layer that takes its own."""
        return 0 if self.vision is None else (1 + self.vision.deep) * self.hidden_size

    @property
    def scale(self) -> float:
        """What queries times keys are multiplied with."""
        return self.head_dim**-0.5 if self.gemma is None else self.gemma.score_scale


class Fields:
    """Typed access to a parsed config.json; every refusal names the field. Remembers what was read."""

    def __init__(self, raw: Mapping[str, Any], name: str = "config.json") -> None:
        self.raw = raw
        self.name = name
        self.seen: set[str] = set()

    def refuse(self, key: str, why: str) -> CheckpointError:
        return CheckpointError(f"{self.name}: {key} {why}")

    def get(self, key: str) -> Any:
        self.seen.add(key)
        return self.raw.get(key)

    def inner(self, key: str, **outer: Any) -> Fields:
        """The object in field `key`, as fields of its own. `outer`: values of this one that outrank its own."""
        value = self.get(key)
        if not isinstance(value, dict):
            raise self.refuse(key, f"must be an object, not {_short(value)}")
        said = {name: each for name, each in outer.items() if each is not None}
        return Fields({**value, **said}, f"{self.name}: {key}")

    def pair(self, key: str, default: tuple[int, int]) -> tuple[int, int]:
        """Two whole numbers, written as a list of two or as one that stands for both."""
        value = self.get(key)
        found = default if value is None else value if isinstance(value, list | tuple) else (value, value)
        if len(found) != 2 or not all(type(each) is int and 1 <= each <= SIZE_LIMIT for each in found):
            raise self.refuse(key, f"must be one or two whole numbers, not {_short(value)}")
        return found[0], found[1]

    def integers(self, key: str, low: int, high: int) -> tuple[int, ...]:
        """A list of whole numbers from low to high; none if the field is absent."""
        value = self.get(key)
        found = () if value is None else value
        if not isinstance(found, list | tuple) or not all(
            type(each) is int and low <= each <= high for each in found
        ):
            raise self.refuse(key, f"must be a list of integers from {low} to {high}, not {_short(value)}")
        return tuple(found)

    def unread(self) -> tuple[str, ...]:
        """Names that nobody asked for and that are not known to be harmless."""
        return tuple(sorted(set(self.raw) - self.seen - HARMLESS))

    def has(self, key: str) -> bool:
        return self.raw.get(key) is not None

    def integer(self, key: str, default: int | None = None, low: int = 1, high: int = SIZE_LIMIT) -> int:
        value = self.get(key)
        if value is None:
            if default is None:
                raise self.refuse(key, "is missing")
            return default
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise self.refuse(key, f"must be an integer from {low} to {high}, not {_short(value)}")
        return value

    def number(self, key: str, default: float | None = None, low: float = 0.0, high: float = 1e12) -> float:
        """A finite number with low < value <= high."""
        value = self.get(key)
        if value is None:
            if default is None:
                raise self.refuse(key, "is missing")
            return default
        if type(value) not in (int, float) or not math.isfinite(value) or not low < value <= high:
            raise self.refuse(
                key, f"must be a number above {low:g} and at most {high:g}, not {_short(value)}"
            )
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if type(value) is not bool:
            raise self.refuse(key, f"must be true or false, not {_short(value)}")
        return value

    def ids(self, key: str, vocab_size: int) -> frozenset[int]:
        """One token id, a list of them, or nothing. Ids the model cannot produce are refused."""
        value = self.get(key)
        if value is None:
            return frozenset()
        found = value if isinstance(value, list) else [value]
        for item in found:
            if type(item) is not int or not 0 <= item < vocab_size:
                raise self.refuse(key, f"must hold token ids below {vocab_size}, not {_short(item)}")
        return frozenset(found)


def with_defaults(fields: Fields, defaults: Mapping[str, Any]) -> Fields:
    """The fields, and what an absent one means: some makers leave out whatever is as in their reference."""
    found = Fields({**defaults, **fields.raw}, fields.name)
    found.seen |= fields.seen
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def read_config(folder: Path) -> tuple[str, Fields]:
    """The architecture that `folder/config.json` names, and its fields."""
    fields = Fields(read_json(folder / "config.json", 1 << 20))
    named = fields.get("architectures")
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
        raise fields.refuse("architectures", f"must be a list of one name, not {_short(named)}")
    return named[0], fields


def check_refused(fields: Fields, own: frozenset[str] = frozenset()) -> None:
    """Raise CheckpointError for a field that would change answers and is not supported. own: what the architecture
    reads by itself."""
    for key, neutral in REFUSED.items():
        if key in own:
            continue
        value = fields.get(key)
        if not any(value == off and type(value) is type(off) for off in neutral):
            raise fields.refuse(key, f"is {_short(value)}, which headrace does not support")


def read_rope(fields: Fields, max_positions: int) -> RopeConfig:
    """Rotary settings in the new spelling (`rope_parameters`) or the old one (`rope_theta`, `rope_scaling`)."""
    theta = fields.number("rope_theta", 10000.0, low=1.0)
    new, old = fields.get("rope_parameters"), fields.get("rope_scaling")
    if new is not None and old is not None and new != old:
        raise fields.refuse("rope_parameters", "and rope_scaling are both given and differ")
    key, given = ("rope_parameters", new) if new is not None else ("rope_scaling", old)
    if given is None:
        return RopeConfig(theta=theta)
    if not isinstance(given, dict):
        raise fields.refuse(key, f"must be an object, not {_short(given)}")
    if any(isinstance(value, dict) for value in given.values()):
        raise fields.refuse(key, "differs between layer types, which headrace does not support")
    rope = Fields(given, f"{fields.name}: {key}")
    rope_type, older_name = rope.get("rope_type"), rope.get("type")
    kind = rope_type if rope_type is not None else older_name if older_name is not None else "default"
    theta = rope.number("rope_theta", theta, low=1.0)
    rope.number("partial_rotary_factor", 1.0)
    if given.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise rope.refuse("partial_rotary_factor", "other than 1 is not supported")
    # A top-level length outranks the one among the rope settings, as in transformers.
    outer = fields.integer("original_max_position_embeddings", 0, low=0, high=CONTEXT_LIMIT)
    original = outer or rope.integer("original_max_position_embeddings", max_positions, high=CONTEXT_LIMIT)
    sections = rope.integers("mrope_section", 1, SIZE_LIMIT)
    if sections and len(sections) != 3:
        raise rope.refuse("mrope_section", "must have three parts: time, row and column")
    interleaved = rope.flag("mrope_interleaved", False)
    if kind in ("default", "mrope"):
        found = RopeConfig(theta=theta)
    elif kind == "linear":
        found = RopeConfig("linear", theta, factor=rope.number("factor"))
    elif kind == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if high <= low:
            raise rope.refuse("high_freq_factor", "must be above low_freq_factor")
        found = RopeConfig("llama3", theta, rope.number("factor"), low, high, original=original)
    elif kind == "yarn":
        found = _read_yarn(rope, theta, original)
    else:
        raise rope.refuse("rope_type", f"{_short(kind)} is not supported (default, linear, llama3, yarn are)")
    left = sorted(set(given) - rope.seen)
    if left:
        raise rope.refuse(", ".join(left)[:100], "is not known for this rope type")
    return replace(found, sections=sections, interleaved=interleaved)


def _read_yarn(rope: Fields, theta: float, original: int) -> RopeConfig:
    factor = rope.number("factor")
    attention = rope.number("attention_factor", 0.0)
    mscale, mscale_all = rope.number("mscale", 0.0, low=-1.0), rope.number("mscale_all_dim", 0.0, low=-1.0)

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1.0 else 0.1 * weight * math.log(factor) + 1.0

    if not attention:
        both = mscale and mscale_all
        attention = magnitude(mscale) / magnitude(mscale_all) if both else magnitude(1.0)
    fast, slow = rope.number("beta_fast", 32.0), rope.number("beta_slow", 1.0)
    truncate = rope.flag("truncate", True)
    return RopeConfig(
        "yarn", theta, factor, fast=fast, slow=slow, original=original, attention=attention, truncate=truncate
    )


def read_decoder(architecture: str, fields: Fields, **traits: Any) -> ModelConfig:
    """The fields that all Llama-like architectures share; `traits` are ModelConfig fields of this one."""
    act = fields.get("hidden_act")
    if "gemma" not in traits and act not in (None, "silu", "swish"):
        raise fields.refuse("hidden_act", f"{_short(act)} is not supported (silu is)")
    hidden = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise fields.refuse(
            "num_attention_heads", f"{heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    if not fields.has("head_dim") and hidden % heads:
        raise fields.refuse("hidden_size", f"{hidden} is not a multiple of num_attention_heads {heads}")
    head_dim = fields.integer("head_dim", hidden // heads, high=4096)
    if head_dim % 2:
        raise fields.refuse("head_dim", f"{head_dim} is odd, which rotary positions cannot be")
    vocab = fields.integer("vocab_size")
    positions = fields.integer("max_position_embeddings", high=CONTEXT_LIMIT)
    layers = fields.integer("num_hidden_layers", high=4096)
    traits.setdefault("windows", (0,) * layers)
    config = ModelConfig(
        architecture=architecture,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=fields.number("rms_norm_eps", 1e-6, high=1.0),
        max_positions=positions,
        rope=traits.pop("rope", None) or read_rope(fields, positions),
        tied_head=fields.flag("tie_word_embeddings", False),
        eos_ids=fields.ids("eos_token_id", vocab),
        unread=fields.unread(),
        **traits,
    )
    assert len(config.windows) == layers, "one window per layer"
    sections = config.rope.sections
    if sections and sum(sections) != head_dim // 2:
        raise fields.refuse(
            "mrope_section", f"{list(sections)} does not sum up to half of head_dim {head_dim}"
        )
    return config


def read_windows(fields: Fields, window: int) -> tuple[int, ...]:
    """Which layers slide, for architectures that say it by layer: `layer_types`, or `max_window_layers`."""
    layers = fields.integer("num_hidden_layers", high=4096)
    types = fields.get("layer_types")
    if types is None:
        first = fields.integer("max_window_layers", layers, low=0) if window else layers
        return tuple(window if layer >= first else 0 for layer in range(layers))
    if not isinstance(types, list) or len(types) != layers:
        raise fields.refuse("layer_types", f"must list one type for each of {layers} layers")
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise fields.refuse("layer_types", f"holds {_short(kind)}, which is not supported")
    if "sliding_attention" in types and not window:
        raise fields.refuse("layer_types", "names sliding layers, but no sliding window is in use")
    return tuple(window if kind == "sliding_attention" else 0 for kind in types)


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What the model folder says about generating: ids that end an answer, and sampling defaults by name."""

    eos_ids: frozenset[int]
    sampling: Mapping[str, float | int]


def read_generation(folder: Path, config: ModelConfig) -> GenerationDefaults:
    """`generation_config.json`, if there is one. Its end ids outrank those of config.json.

    `sampling` holds those of temperature, top_k, top_p, min_p and repetition_penalty that the file gives;
    `do_sample: false` is temperature 0.
    """
    path = folder / "generation_config.json"
    if not path.exists():
        return GenerationDefaults(config.eos_ids, MappingProxyType({}))
    fields = Fields(read_json(path, 1 << 20), path.name)
    eos_ids = fields.ids("eos_token_id", config.vocab_size) or config.eos_ids
    sampling: dict[str, float | int] = {}
    for key, low, high in (
        ("temperature", -1e-9, 100.0),
        ("top_p", 0.0, 1.0),
        ("min_p", -1e-9, 1.0),
        ("repetition_penalty", 0.0, 100.0),
    ):
        if fields.has(key):
            sampling[key] = max(0.0, fields.number(key, low=low, high=high))
    if fields.has("top_k"):
        sampling["top_k"] = fields.integer("top_k", low=0, high=CONTEXT_LIMIT)
    if not fields.flag("do_sample", True):
        sampling["temperature"] = 0.0
    return GenerationDefaults(eos_ids, MappingProxyType(sampling))
