"""config.json and generation_config.json: what is read, and what is refused with which words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.runtime.checkpoint import CheckpointError
from headrace.runtime.config import EngineConfig, Facts, SettingError, resolve
from headrace.runtime.models.config import ModelConfig, read_generation
from headrace.runtime.models.registry import read_model_config

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., ModelConfig]:
    """read(**changes): the config with these fields changed; `...` takes a field out."""

    def run(**changes: Any) -> ModelConfig:
        fields = {key: value for key, value in {**BASE, **changes}.items() if value is not ...}
        (tmp_path / "config.json").write_text(json.dumps(fields))
        return read_model_config(tmp_path)

    return run


def test_the_plain_case(read: Callable[..., ModelConfig]) -> None:
    config = read()
    assert (config.head_dim, config.heads, config.kv_heads) == (16, 4, 2)
    assert config.windows == (0, 0, 0, 0) and config.rope.kind == "default" and config.rope.theta == 10000.0
    assert not config.tied_head and not config.qkv_bias and config.unread == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture 'GPT2LMHeadModel' is not supported"),
        ({"architectures": []}, "architectures must be a list of one name"),
        ({"architectures": ...}, "architectures must be a list of one name"),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list of one name"),
        ({"vocab_size": ...}, "vocab_size is missing"),
        ({"hidden_size": 0}, "hidden_size must be an integer"),
        ({"hidden_size": True}, "hidden_size must be an integer"),
        ({"hidden_size": "64"}, "hidden_size must be an integer"),
        ({"hidden_size": 1 << 40}, "hidden_size must be an integer"),
        ({"hidden_size": 65}, "hidden_size 65 is not a multiple"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be an integer"),
        ({"num_attention_heads": 3, "head_dim": 16}, "is not a multiple of num_key_value_heads"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a number"),
        ({"rms_norm_eps": [1e-5]}, "rms_norm_eps must be a number"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"attention_bias": 1}, "attention_bias must be true or false"),
        ({"eos_token_id": 128}, "eos_token_id must hold token ids below 128"),
        ({"eos_token_id": [1, -1]}, "eos_token_id must hold token ids"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config is"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"num_local_experts": 8}, "num_local_experts is 8"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ({"rope_theta": 0}, "rope_theta must be a number"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1]}}, "'longrope' is not supported"),
        ({"rope_scaling": {"type": ["yarn"]}}, "is not supported (default, linear"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "factor must be a number"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "mscale": 1}}, "mscale is not known"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}},
            "high_freq_factor must be above",
        ),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "differs between layer types"),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2}},
            "and rope_scaling are both given and differ",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
            "partial_rotary_factor",
        ),
        ({"architectures": ["Qwen3ForCausalLM"]}, "head_dim is missing"),
        (
            {"architectures": ["Qwen2ForCausalLM"], "layer_types": ["full_attention"]},
            "layer_types must list one type for each of 4",
        ),
        (
            {"architectures": ["Qwen2ForCausalLM"], "layer_types": ["chunked_attention"] * 4},
            "'chunked_attention', which is not supported",
        ),
        (
            {"architectures": ["Qwen2ForCausalLM"], "layer_types": ["sliding_attention"] * 4},
            "no sliding window is in use",
        ),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 0}, "sliding_window must be an integer"),
    ],
)
def test_refusals(changes: dict[str, Any], words: str, read: Callable[..., ModelConfig]) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(**changes)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "nul", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 100_000, '{"a": ' + "1" * 6000 + "}", "\x00"],
)
def test_files_that_are_no_json_object(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_model_config(tmp_path)


def test_a_huge_config_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{" + " " * (2 << 20) + "}")
    with pytest.raises(CheckpointError, match="at most"):
        read_model_config(tmp_path)


def test_unknown_fields_are_named(read: Callable[..., ModelConfig]) -> None:
    assert read(some_new_knob=3, use_cache=False, another={}).unread == ("another", "some_new_knob")


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"architectures": ["MistralForCausalLM"]}, (4096,) * 4),  # as the reference reads an absent field
        ({"architectures": ["MistralForCausalLM"], "sliding_window": None}, (0,) * 4),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 9}, (9,) * 4),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 9}, (0,) * 4),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 9, "use_sliding_window": False}, (0,) * 4),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 9, "max_window_layers": 1}, (0,) * 4),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "sliding_window": 9,
                "use_sliding_window": True,
                "max_window_layers": 3,
            },
            (0, 0, 0, 9),
        ),
        (
            {
                "architectures": ["Qwen3ForCausalLM"],
                "head_dim": 16,
                "sliding_window": 9,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            (9, 0, 9, 0),
        ),
    ],
)
def test_windows(changes: dict[str, Any], windows: tuple[int, ...], read: Callable[..., ModelConfig]) -> None:
    assert read(**changes).windows == windows


def test_old_and_new_rope_spelling_mean_the_same(read: Callable[..., ModelConfig]) -> None:
    settings = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    new = read(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **settings})
    old = read(rope_theta=5e5, rope_scaling={"type": "llama3", **settings})
    both = read(rope_theta=5e5, rope_scaling={"rope_type": "llama3", "type": "llama3", **settings})
    assert new.rope == old.rope == both.rope
    assert (new.rope.kind, new.rope.theta, new.rope.original) == ("llama3", 5e5, 64)


# -- generation_config.json --------------------------------------------------------------------------------------


def test_generation_defaults(read: Callable[..., ModelConfig], tmp_path: Path) -> None:
    config = read(eos_token_id=5)
    assert read_generation(tmp_path, config).eos_ids == {5}
    path = tmp_path / "generation_config.json"
    path.write_text(
        json.dumps(
            {
                "eos_token_id": [7, 8],
                "do_sample": True,
                "temperature": 0.6,
                "top_p": 0.95,
                "top_k": 20,
                "max_length": 9,
            }
        )
    )
    found = read_generation(tmp_path, config)
    assert found.eos_ids == {7, 8} and dict(found.sampling) == {
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
    }
    path.write_text('{"do_sample": false, "temperature": 0.6}')
    assert dict(read_generation(tmp_path, config).sampling) == {"temperature": 0.0}
    assert read_generation(tmp_path, config).eos_ids == {5}


@pytest.mark.parametrize(
    "text",
    [
        '{"temperature": -1}',
        '{"top_p": 0}',
        '{"top_k": 1.5}',
        '{"eos_token_id": 999}',
        "[]",
        '{"do_sample": 1}',
    ],
)
def test_bad_generation_defaults(text: str, read: Callable[..., ModelConfig], tmp_path: Path) -> None:
    config = read()
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match="generation_config"):
        read_generation(tmp_path, config)


# -- resolve -----------------------------------------------------------------------------------------------------

FACTS = Facts(
    bf16=True,
    cores=2,
    free_memory=8 << 30,
    weight_elements=600 << 20,
    kv_token_elements=57344,
    max_positions=40960,
)


def test_every_automatic_choice_becomes_a_value() -> None:
    found = resolve(EngineConfig(), FACTS)
    assert (found.device, found.dtype, found.threads) == ("cpu", "bfloat16", 2)
    assert found.kv_memory_mb and found.max_context and found.chunk_tokens
    assert found.max_context * FACTS.kv_token_elements * 2 <= found.kv_memory_mb << 20
    assert found.kv_memory_mb << 20 <= 0.5 * (FACTS.free_memory - 2 * FACTS.weight_elements) + (1 << 20)
    assert resolve(found, FACTS) == found, "resolving twice changes nothing"


def test_a_tiny_model_runs_on_one_thread() -> None:
    tiny = msgspec.structs.replace(FACTS, weight_elements=1 << 20)
    assert resolve(EngineConfig(), tiny).threads == 1
    assert resolve(EngineConfig(threads=2), tiny).threads == 2


def test_what_is_given_is_kept() -> None:
    given = EngineConfig(dtype="float32", threads=3, kv_memory_mb=1000, max_context=500, chunk_tokens=77)
    found = resolve(given, FACTS)
    assert (found.dtype, found.threads, found.kv_memory_mb) == ("float32", 3, 1000)
    assert (found.max_context, found.chunk_tokens) == (500, 77)


def test_a_machine_without_bfloat16_computes_in_float32() -> None:
    assert resolve(EngineConfig(), Facts(**{**facts_dict(), "bf16": False})).dtype == "float32"


def facts_dict() -> dict[str, Any]:
    return {name: getattr(FACTS, name) for name in FACTS.__struct_fields__}


def test_a_small_model_gets_no_more_than_it_can_use() -> None:
    small = Facts(
        **{**facts_dict(), "weight_elements": 1 << 20, "kv_token_elements": 256, "max_positions": 512}
    )
    assert resolve(EngineConfig(max_running=4), small).kv_memory_mb == 1  # 4 x 512 tokens of 512 bytes


def test_a_small_model_runs_on_one_thread() -> None:
    small = Facts(**{**facts_dict(), "weight_elements": 10 << 20})
    assert resolve(EngineConfig(), small).threads == 1
    assert resolve(EngineConfig(threads=2), small).threads == 2


@pytest.mark.parametrize(
    ("settings", "facts", "words"),
    [
        ({"max_context": 50_000}, {}, "more than the 40960 positions"),
        ({"kv_memory_mb": 9000}, {}, "free beside weights"),
        ({"kv_memory_mb": 1}, {}, "holds 0 tokens"),
        ({"kv_memory_mb": 100, "max_context": 4096}, {}, "4096 are needed"),
        ({}, {"free_memory": 1 << 30}, "give it more memory"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], facts: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError) as caught:
        resolve(EngineConfig(**settings), Facts(**{**facts_dict(), **facts}))
    assert words in str(caught.value)


# What the files of their makers say, and nothing more: the rest is as in their reference.
MAKERS: dict[str, dict[str, Any]] = {
    "gemma-3-4b": {
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "boi_token_index": 255999,
        "eoi_token_index": 256000, "eos_token_id": [1, 106], "image_token_index": 262144,
        "mm_tokens_per_image": 256,
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        },
        "vision_config": {
            "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "model_type": "siglip_vision_model",
            "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False,
        },
    },
    "gemma-2-27b": {
        "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attn_logit_softcapping": 50.0,
        "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1, "final_logit_softcapping": 30.0,
        "head_dim": 128, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 4608, "intermediate_size": 36864, "max_position_embeddings": 8192, "model_type": "gemma2",
        "num_attention_heads": 32, "num_hidden_layers": 46, "num_key_value_heads": 16, "pad_token_id": 0,
        "query_pre_attn_scalar": 144, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096,
        "sliding_window_size": 4096, "use_cache": True, "vocab_size": 256000,
    },
    "onevision": {
        "architectures": ["LlavaOnevisionForConditionalGeneration"], "image_token_index": 151646,
        "model_type": "llava_onevision", "projector_hidden_act": "gelu", "video_token_index": 151647,
        "text_config": {
            "architectures": ["Qwen2ForCausalLM"], "hidden_size": 896, "intermediate_size": 4864,
            "max_position_embeddings": 32768, "model_type": "qwen2", "num_attention_heads": 14,
            "num_hidden_layers": 24, "num_key_value_heads": 2, "tie_word_embeddings": True, "vocab_size": 152000,
        },
        "vision_config": {
            "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304, "model_type": "siglip_vision_model",
            "num_attention_heads": 16, "num_hidden_layers": 26, "patch_size": 14, "vision_use_head": False,
        },
        "vision_aspect_ratio": "anyres_max_9", "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full", "use_image_newline_parameter": True,
    },
    "llava-1.5-7b": {
        "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": 32000,
        "model_type": "llava", "pad_token_id": 32001, "projector_hidden_act": "gelu", "tie_word_embeddings": False,
        "text_config": {
            "_name_or_path": "vicuna", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096,
            "model_type": "llama", "rms_norm_eps": 1e-05, "torch_dtype": "float16", "vocab_size": 32064,
        },
        "vision_config": {
            "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
            "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768,
            "vocab_size": 32000,
        },
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "vocab_size": 32064,
    },
}  # fmt: skip


def made_by(name: str, folder: Path, **changes: Any) -> ModelConfig:
    fields = {key: value for key, value in {**MAKERS[name], **changes}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(fields))
    return read_model_config(folder)


def test_files_that_leave_out_what_their_reference_says(tmp_path: Path) -> None:
    gemma = made_by("gemma-3-4b", tmp_path)
    assert (gemma.vocab_size, gemma.heads, gemma.kv_heads, gemma.head_dim) == (262208, 8, 4, 256)
    assert gemma.windows[:7] == (1024, 1024, 1024, 1024, 1024, 0, 1024) and len(gemma.windows) == 34
    assert gemma.max_positions == 131072 and gemma.tied_head and gemma.qk_norm and gemma.scale == 1 / 16
    assert (gemma.rope.kind, gemma.rope.theta, gemma.rope.factor) == ("linear", 1e6, 8.0)
    assert gemma.gemma is not None and gemma.gemma.local_rope is not None and gemma.vision is not None
    assert (gemma.gemma.local_rope.kind, gemma.gemma.local_rope.theta) == ("default", 1e4)
    assert gemma.eos_ids == {1, 106} and gemma.unread == ()
    assert (gemma.vision.rows, gemma.vision.patches, gemma.vision.row_patches) == (16, 64, 16)
    older = made_by("gemma-2-27b", tmp_path)
    assert older.gemma is not None and older.tied_head and older.scale == 1 / 12
    assert (older.gemma.score_cap, older.gemma.logit_cap) == (50.0, 30.0)
    assert older.windows == (4096, 0) * 23 and older.unread == ()
    llava = made_by("llava-1.5-7b", tmp_path)
    assert (llava.hidden_size, llava.layers, llava.kv_heads, llava.eos_ids) == (4096, 32, 32, {2})
    assert llava.vision is not None and (llava.vision.depth, llava.vision.rows) == (23, 24)
    one = made_by("onevision", tmp_path)
    assert one.vision is not None and (one.vision.depth, one.vision.rows, one.vision.most_tiles) == (
        26,
        27,
        9,
    )
    assert len(one.vision.canvases) == 36 and one.tied_head and one.unread == ()
    assert llava.spare[-1] == "model.vision_tower.encoder.layers.23." and llava.unread == ()


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("gemma-2-27b", {"hidden_activation": "gelu"}, "hidden_activation 'gelu' is not supported"),
        ("gemma-2-27b", {"use_bidirectional_attention": True}, "such a model writes nothing"),
        ("gemma-2-27b", {"sliding_window": None}, "sliding_window is missing"),
        ("gemma-2-27b", {"attn_logit_softcapping": -1}, "attn_logit_softcapping must be a number above 0"),
        ("gemma-3-4b", {"mm_tokens_per_image": 200}, "200 rows do not divide 64 patches a side"),
        ("gemma-3-4b", {"image_token_index": 262208}, "image_token_index 262208 is not below vocab_size"),
        ("gemma-3-4b", {"text_config": {"attn_logit_softcapping": 50.0}}, "attn_logit_softcapping is 50.0"),
        ("gemma-3-4b", {"text_config": {"final_logit_softcapping": 3.0}}, "not supported beside pictures"),
        (
            "gemma-3-4b",
            {"text_config": {"rope_parameters": {"rope_theta": 3.0}}},
            "rope_parameters must hold",
        ),
        ("gemma-3-4b", {"vision_config": {"hidden_act": "relu"}}, "hidden_act 'relu' is not supported"),
        (
            "onevision",
            {"image_grid_pinpoints": [[100, 100]]},
            "must hold pairs of multiples of image_size 384",
        ),
        ("onevision", {"vision_aspect_ratio": "pad"}, "vision_aspect_ratio 'pad'"),
        ("llava-1.5-7b", {"vision_feature_layer": [-2, -5]}, "is not one block of the tower"),
        ("llava-1.5-7b", {"vision_feature_select_strategy": "full"}, "'full' is not supported here"),
        ("llava-1.5-7b", {"vision_config": {"model_type": "pixtral"}}, "'pixtral' is not supported"),
        ("llava-1.5-7b", {"text_config": {"model_type": "gpt2"}}, "'gpt2' is not supported"),
        ("llava-1.5-7b", {"projector_hidden_act": "relu"}, "projector_hidden_act is not supported"),
    ],
)
def test_what_these_would_compute_otherwise_is_refused(
    name: str, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=re.escape(words)):
        made_by(name, tmp_path, **changes)
