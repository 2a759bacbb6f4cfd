"""Checkpoints in the shape of real models, with random weights: what benches run where nothing may be downloaded.

    python -P -m headrace.bench.shapes qwen3-0.6b /tmp/qwen06

writes the folder as the hub has it: config, sharded bfloat16 weights with their index, a tokenizer of the full
vocabulary, and a chat template. The text that such a model writes means nothing; every size and every cost is real.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from headrace.bench.byte_tokenizer import SPECIALS, TEMPLATE, tokenizer_rules

SHARD_BYTES = 512 << 20
QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": QWEN3
    | {
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rope_theta": 1000000.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    },
    "llama-3.1-8b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "bos_token_id": 128000,
        "eos_token_id": 128009,
    },
    "tiny": QWEN3
    | {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "bos_token_id": 509,
        "eos_token_id": 511,
    },
}


def weight_shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of a Llama or Qwen3 checkpoint, in the order of the hub's files."""
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, shared = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        yield f"{name}.input_layernorm.weight", (hidden,)
        yield f"{name}.self_attn.q_proj.weight", (query, hidden)
        yield f"{name}.self_attn.k_proj.weight", (shared, hidden)
        yield f"{name}.self_attn.v_proj.weight", (shared, hidden)
        yield f"{name}.self_attn.o_proj.weight", (hidden, query)
        if config["model_type"] == "qwen3":
            yield f"{name}.self_attn.q_norm.weight", (head,)
            yield f"{name}.self_attn.k_norm.weight", (head,)
        yield f"{name}.post_attention_layernorm.weight", (hidden,)
        yield f"{name}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{name}.mlp.up_proj.weight", (inner, hidden)
        yield f"{name}.mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)


def shards(config: dict[str, Any], most: int) -> list[list[tuple[str, tuple[int, ...]]]]:
    """The tensors cut into files of at most `most` bytes; a larger tensor has a file of its own."""
    found: list[list[tuple[str, tuple[int, ...]]]] = []
    room = 0
    for name, shape in weight_shapes(config):
        size = 2 * math.prod(shape)
        if size > room:
            found.append([])
            room = most
        found[-1].append((name, shape))
        room -= size
    return found


def write_weights(folder: Path, config: dict[str, Any], seed: int, most: int = SHARD_BYTES) -> None:
    """Sharded weights and their index. Matrices are normal with deviation 0.02, norms are one."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    files = shards(config, most)
    places: dict[str, str] = {}
    for number, parts in enumerate(files, 1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        tensors: dict[str, torch.Tensor] = {}
        for part, shape in parts:
            places[part] = name
            if len(shape) == 1:
                tensors[part] = torch.ones(shape, dtype=torch.bfloat16)
            else:
                tensors[part] = torch.randn(shape, generator=generator).mul_(0.02).to(torch.bfloat16)
        save_file(tensors, folder / name, metadata={"format": "pt"})
    total = sum(2 * math.prod(shape) for parts in files for _, shape in parts)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_tokenizer(folder: Path, config: dict[str, Any]) -> None:
    """One token per byte; all other ids are words that text never becomes, but that a model
    may say. The last special token is the model's end."""
    rules = tokenizer_rules()
    first = config["eos_token_id"] - len(SPECIALS) + 1
    for place, token in enumerate(rules["added_tokens"]):
        token["id"] = first + place
    # The special tokens are words too: without words of their ids, they would be moved behind the last word.
    special = {token["id"]: token["content"] for token in rules["added_tokens"]}
    rules["model"]["vocab"] |= {special.get(i, f"Ġ{i:x}"): i for i in range(256, config["vocab_size"])}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIALS[-1],
        "pad_token": SPECIALS[0],
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
    }
    generation = {"eos_token_id": [config["eos_token_id"], first], "pad_token_id": first}
    (folder / "tokenizer.json").write_text(json.dumps(rules, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def write_checkpoint(folder: Path, config: dict[str, Any], seed: int = 0, weights: bool = True) -> None:
    """A whole model folder of this shape, made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_tokenizer(folder, config)
    if weights:
        write_weights(folder, config, seed)


def write(argv: Sequence[str] | None = None) -> int:
    """The command of this module. Not named `main`: it measures nothing, and `headrace bench` shall not list it."""
    parser = argparse.ArgumentParser(
        prog="python -P -m headrace.bench.shapes", description="Write a model folder with random weights."
    )
    parser.add_argument("shape", choices=sorted(CONFIGS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--layers", type=int, default=0, help="so many layers only (0: as many as the model has)"
    )
    parser.add_argument(
        "--no-weights", action="store_true", help="leave the weights out, for servers that make their own"
    )
    given = parser.parse_args(argv)
    config = dict(CONFIGS[given.shape])
    if given.layers:
        config["num_hidden_layers"] = given.layers
    write_checkpoint(given.folder, config, given.seed, weights=not given.no_weights)
    return 0


if __name__ == "__main__":
    sys.exit(write())
