"""The folder of a trained model in the standard layout of Qwen3-VL: what transformers and engines read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from headrace.bench.demo import network
from headrace.bench.demo.canvas import FEWEST_PIXELS, MERGE, MOST_PIXELS, PATCH
from headrace.bench.demo.layout import END, IMAGE, STOP, TEMPLATE, VIDEO, VISION_END, VISION_START, VOCABULARY
from headrace.bench.demo.network import Weights


def config(tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json."""

    def token(content: str) -> int:
        found = tokenizer.token_to_id(content)
        assert found is not None, content
        return int(found)

    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "image_token_id": token(IMAGE),
        "video_token_id": token(VIDEO),
        "vision_start_token_id": token(VISION_START),
        "vision_end_token_id": token(VISION_END),
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        "text_config": {
            "model_type": "qwen3_vl_text",
            "vocab_size": VOCABULARY,
            "hidden_size": network.HIDDEN,
            "intermediate_size": network.INNER,
            "num_hidden_layers": network.LAYERS,
            "num_attention_heads": network.HEADS,
            "num_key_value_heads": network.SHARED,
            "head_dim": network.HEAD,
            "hidden_act": "silu",
            "max_position_embeddings": network.CONTEXT,
            "initializer_range": 0.02,
            "rms_norm_eps": network.EPSILON,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "use_cache": True,
            "tie_word_embeddings": True,
            "bos_token_id": token(END),
            "eos_token_id": token(STOP),
            "rope_theta": network.THETA,
            "rope_scaling": {
                "rope_type": "default",
                "mrope_interleaved": True,
                "mrope_section": list(network.SECTIONS),
            },
            "dtype": "bfloat16",
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "depth": network.VISION_LAYERS,
            "hidden_size": network.VISION_HIDDEN,
            "intermediate_size": network.VISION_INNER,
            "num_heads": network.VISION_HEADS,
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": 3,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "num_position_embeddings": network.SIDE**2,
            "out_hidden_size": network.HIDDEN,
            "deepstack_visual_indexes": list(network.DEEPSTACK),
            "initializer_range": 0.02,
        },
    }


def text_files(tokenizer: Tokenizer) -> dict[str, str]:
    """Every small file by name; tokenizer.json is the trained one."""
    stop, end = tokenizer.token_to_id(STOP), tokenizer.token_to_id(END)
    generation = {
        "eos_token_id": [stop, end],
        "pad_token_id": end,
        "do_sample": True,
        "temperature": 0.3,
        "top_p": 0.9,
    }
    tokens = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": STOP,
        "pad_token": END,
        "image_token": IMAGE,
        "video_token": VIDEO,
        "vision_bos_token": VISION_START,
        "vision_eos_token": VISION_END,
        "extra_special_tokens": {
            "image_token": IMAGE, "video_token": VIDEO, "vision_bos_token": VISION_START, "vision_eos_token": VISION_END,
        },
        "model_max_length": network.CONTEXT,
        "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    pictures = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        "size": {"shortest_edge": FEWEST_PIXELS, "longest_edge": MOST_PIXELS},
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }

    def lines(value: dict[str, Any]) -> str:
        return json.dumps(value, indent=1, ensure_ascii=False) + "\n"

    return {
        "config.json": lines(config(tokenizer)),
        "generation_config.json": lines(generation),
        "tokenizer_config.json": lines(tokens),
        "preprocessor_config.json": lines(pictures),
        "chat_template.jinja": TEMPLATE,
        "tokenizer.json": tokenizer.to_str(),
    }


def write(weights: Weights, tokenizer: Tokenizer, out: Path) -> None:
    """The whole folder: bfloat16 weights in one file, and every small file beside it."""
    out.mkdir(parents=True, exist_ok=True)
    for name, text in text_files(tokenizer).items():
        (out / name).write_text(text, encoding="utf-8")
    small = {name: each.detach().to("cpu", torch.bfloat16).contiguous() for name, each in weights.items()}
    save_file(small, out / "model.safetensors", {"format": "pt"})
