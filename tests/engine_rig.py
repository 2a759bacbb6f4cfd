"""Tiny random checkpoints in the hub's layout, made by transformers, and a way to run requests through them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from headrace.runtime.config import EngineConfig
from headrace.runtime.cpu_engine import CpuEngine
from headrace.runtime.engine import open_engine
from headrace.runtime.gallery import Gallery
from headrace.runtime.image import ImageSpan
from headrace.runtime.plan import StepPlan, StepResult
from headrace.runtime.request import FinishReason, Req, SamplingParams
from headrace.runtime.scheduler import Scheduler

VOCAB = 199

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}

# name -> (architecture, settings that differ from SHAPE)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"head_dim": 20}),
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    "llama-3.1": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-linear": (
        "Llama",
        {
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
            "num_key_value_heads": 1,
        },
    ),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "mistral": ("Mistral", {"sliding_window": 11, "head_dim": 24}),
    "mistral-full": ("Mistral", {"sliding_window": None}),
    "qwen2": (
        "Qwen2",
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "qwen2-sliding": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-moe": (
        "Qwen3Moe",
        {
            "head_dim": 16,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
            "use_sliding_window": False,
        },
    ),
    # Sizes that fit the tiles of AMX.
    "qwen3-tiles": ("Qwen3", {"head_dim": 32, "intermediate_size": 160, "tie_word_embeddings": True}),
    "phi3": ("Phi3", {"sliding_window": 21, "pad_token_id": 0}),
    "mixtral": (
        "Mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None, "head_dim": 16},
    ),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 20,
            "sliding_window": 19,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 4.0,
        },
    ),
    "gemma3": (
        "Gemma3Text",
        {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            "head_dim": 24,
            "sliding_window": 13,
            "query_pre_attn_scalar": 31,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "qwen3-sliding": (
        "Qwen3",
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": 13, "max_window_layers": 2},
    ),
}
SHARDED = {"llama", "qwen3-sliding"}
OLD_SPELLING = {"llama-3.1", "llama-linear", "mistral"}


@dataclass
class Sample:
    """A prompt and what transformers answers greedily, at most 64 tokens."""

    prompt: list[int]
    answer: list[int]


@dataclass
class TinyModel:
    """A checkpoint folder, and the same model in transformers (float32)."""

    name: str
    folder: Path
    reference: Any
    samples: dict[int, list[Sample]] = field(default_factory=dict)

    def oracle(self, count: int, new_tokens: int = 64) -> list[Sample]:
        """`count` prompts of mixed lengths with their greedy answers. Only prompts whose every choice is clear by
        a margin far above float32 noise: what is compared here is the model, not the rounding of ties."""
        if count not in self.samples:
            generator = torch.Generator().manual_seed(7)
            found: list[Sample] = []
            lengths = [1, 3, 16, 17, 40, 31, 5, 64, 2, 23, 48, 33, 11, 70, 15, 32]
            while len(found) < count:
                length = lengths[len(found) % len(lengths)]
                ids = torch.randint(0, VOCAB, (1, length), generator=generator)
                out = self.reference.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=new_tokens,
                    do_sample=False,
                    return_dict_in_generate=True,
                    output_logits=True,
                )
                two = torch.stack(out.logits).topk(2, -1).values
                if (two[..., 0] - two[..., 1]).min() > 5e-4:
                    found.append(Sample(ids[0].tolist(), out.sequences[0, length:].tolist()))
            self.samples[count] = found
        return self.samples[count]


def scramble(model: Any, seed: int, grown: bool = False) -> None:
    """Random values everywhere, norms and biases too: a forgotten one must show. grown: norms of the decoder
    add one to their weights."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        wide = 0.3 if "embed" in name or "bias" in name else 1.6 / parameter.shape[-1] ** 0.5
        base = 0.0 if grown and "vision" not in name else 1.0
        parameter.data.copy_(base + 0.2 * noise if "norm" in name else wide * noise)


def build_model(name: str, folder: Path) -> TinyModel:
    import transformers

    architecture, settings = VARIANTS[name]
    config = getattr(transformers, f"{architecture}Config")(**{**SHAPE, **settings})
    # Capped scores are lost in torch's fused attention, and transformers does not say so.
    config._attn_implementation = "eager" if name == "gemma2" else "sdpa"
    model = getattr(transformers, f"{architecture.removesuffix('Text')}ForCausalLM")(config).float().eval()
    model.generation_config.eos_token_id = None
    scramble(model, seed=len(name), grown="gemma" in name)
    model.save_pretrained(folder, max_shard_size="60KB" if name in SHARDED else "5GB")
    assert (folder / "model.safetensors.index.json").exists() == (name in SHARDED)
    if name in OLD_SPELLING:
        respell(folder / "config.json")
    return TinyModel(name, folder, model)


def respell(path: Path) -> None:
    """The rope settings as configs said them before transformers 5."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyModel]:
    """tiny(name): one of VARIANTS, made once."""
    torch.set_num_threads(1)
    made: dict[str, TinyModel] = {}

    def get(name: str) -> TinyModel:
        if name not in made:
            made[name] = build_model(name, tmp_path_factory.mktemp("models") / name)
        return made[name]

    return get


@pytest.fixture
def start() -> Iterator[Callable[..., CpuEngine]]:
    """start(folder, **settings): an engine that is closed when the test ends. One thread, float32, small slab."""
    engines: list[CpuEngine] = []

    def build(folder: Path, **settings: Any) -> CpuEngine:
        defaults = {
            "device": "cpu",
            "dtype": "float32",
            "threads": 1,
            "kv_memory_mb": 4,
            "max_running": 24,
            "chunk_tokens": 64,
        }
        engine = open_engine(folder, EngineConfig(**{**defaults, **settings}))
        assert isinstance(engine, CpuEngine)
        engines.append(engine)
        return engine

    yield build
    for engine in engines:
        engine.close()


def scheduler_for(engine: CpuEngine, **settings: Any) -> Scheduler:
    """The real scheduler over this engine's pool."""
    given = {
        "page_count": engine.page_count,
        "page_size": engine.page_size,
        "slots": engine.max_running,
        "chunk_tokens": engine.chunk_tokens,
        "gallery": Gallery(
            engine.image_blocks, engine.image_block_rows, engine.image_stages, engine.whole_pictures
        ),
    }
    return Scheduler(**{**given, **settings})


GREEDY = SamplingParams(temperature=0.0)


class Drive:
    """Runs a scheduler over an engine, one step ahead: step N + 1 is launched before step N is retired."""

    def __init__(self, engine: CpuEngine, scheduler: Scheduler) -> None:
        self.engine = engine
        self.scheduler = scheduler
        self.steps = 0
        self.flight: list[tuple[StepPlan, Future[StepResult]]] = []
        self.next_id = 0

    def add(
        self,
        prompt: list[int],
        new_tokens: int,
        params: SamplingParams = GREEDY,
        spans: tuple[ImageSpan, ...] = (),
    ) -> Req:
        req = Req(self.next_id, "", list(prompt), len(prompt), len(prompt) + new_tokens, params, spans=spans)
        self.next_id += 1
        self.scheduler.add(req)
        return req

    def cancel(self, req: Req) -> None:
        self.scheduler.cancel(req, FinishReason.CANCELLED)

    def step(self) -> bool:
        """Plan and launch one, retire the one before. False when nothing is left to do."""
        plan = self.scheduler.plan()
        if plan is not None:
            self.flight.append((plan, self.engine.launch(plan)))
            self.steps += 1
        if self.flight and (plan is None or len(self.flight) > 1):
            landed, result = self.flight.pop(0)
            self.scheduler.retire(landed, result.result())
        return bool(self.flight) or not self.scheduler.idle

    def finish(self) -> None:
        while self.step():
            assert self.steps < 20_000, "the requests do not come to an end"


@pytest.fixture
def drive() -> Callable[..., Drive]:
    """drive(engine, **scheduler settings)"""
    return lambda engine, **settings: Drive(engine, scheduler_for(engine, **settings))


def answer_of(req: Req) -> list[int]:
    return req.tokens[req.prompt_len :]
