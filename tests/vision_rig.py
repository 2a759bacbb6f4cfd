"""Tiny random models that see, in the hub's layout, made by transformers; pictures; and what transformers
answers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from engine_rig import scramble
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from headrace.runtime.decoding import byte_characters
from headrace.runtime.image import ImageSpan
from headrace.runtime.image_settings import ImageSettings
from headrace.runtime.images import read_picture

SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
VOCAB = 256 + len(SPECIALS)
START, END, PAD, VIDEO = range(259, 263)
TEMPLATE = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{- message.content }}{% else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- else %}{{- part.text }}{% endif %}
{%- endfor %}{% endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""

# As LLaVA 1.5 has it: contents are lists of parts, pictures come first, and roles are words.
LLAVA_TEMPLATE = """{%- for message in messages %}
{%- if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}
{%- for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<|image_pad|>\n' }}{% endfor %}
{%- for part in message['content'] | selectattr('type', 'equalto', 'text') %}
{%- if message['role'] != 'assistant' %}{{ part['text'] + ' ' }}
{%- else %}{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}{% endif %}
{%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""

TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
QWEN_VISION: dict[str, Any] = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 48,
    "num_position_embeddings": 36,
    "deepstack_visual_indexes": [0, 2],
}
QWEN_IMAGES: dict[str, Any] = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "size": {"shortest_edge": 16 * 16, "longest_edge": 64 * 64},
    "patch_size": 4,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.4, 0.45],
    "image_std": [0.25, 0.3, 0.28],
}


@dataclass
class SeeingModel:
    """A checkpoint folder, and the same model in transformers (float32)."""

    name: str
    folder: Path
    reference: Any
    marks: str = "mm_token_type_ids"  # the argument that says which tokens are a picture's

    def logits(self, ids: Sequence[int], images: Sequence[Any]) -> torch.Tensor:
        """After every token of `ids`, by transformers; images: arrays [height, width, 3] in order."""
        with torch.no_grad():
            return self.reference(**self.inputs(ids, images)).logits[0]

    def inputs(self, ids: Sequence[int], images: Sequence[Any]) -> dict[str, Any]:
        """What the processor of transformers would hand to the model."""
        whole = torch.tensor([list(ids)])
        found: dict[str, Any] = {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
        if images:
            done = processor(self.folder)(images=list(images), return_tensors="pt")
            names = ("pixel_values", "image_grid_thw", "image_sizes")
            found |= {name: done[name] for name in names if name in done}
            if self.marks:
                found[self.marks] = (whole == PAD).int()
        return found

    def answer(self, ids: Sequence[int], images: Sequence[Any], count: int) -> tuple[list[int], float]:
        """`count` greedy tokens, and by how much the closest of these choices was one."""
        out = self.reference.generate(
            **self.inputs(ids, images),
            max_new_tokens=count,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        two = torch.stack(out.logits).topk(2, -1).values
        return out.sequences[0, len(ids) :].tolist(), float((two[..., 0] - two[..., 1]).min())


def processor(folder: Path) -> Any:
    """The image processor of transformers that needs no torchvision."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    said = json.loads((folder / "preprocessor_config.json").read_text())
    kinds = (
        CLIPImageProcessorPil,
        Gemma3ImageProcessorPil,
        LlavaOnevisionImageProcessorPil,
        Qwen2VLImageProcessorPil,
    )
    named = {kind.__name__.removesuffix("Pil"): kind for kind in kinds}
    return named[said.pop("image_processor_type")](**said)


def build_qwen3_vl(folder: Path, **text: Any) -> SeeingModel:
    import transformers

    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [3, 3, 2],
        "mrope_interleaved": True,
    }
    config = transformers.Qwen3VLConfig(
        text_config={**TEXT, "rope_parameters": rope, **text},
        vision_config=QWEN_VISION,
        image_token_id=PAD,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=True,
    )
    config._attn_implementation = "sdpa"
    model = transformers.Qwen3VLForConditionalGeneration(config).float().eval()
    model.generation_config.eos_token_id = None
    scramble(model, seed=5)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(QWEN_IMAGES))
    write_text_files(folder)
    return SeeingModel("qwen3-vl", folder, model)


def write_text_files(folder: Path, template: str = TEMPLATE) -> None:
    """A tokenizer of single bytes, its special tokens, and a chat template that shows pictures."""
    tokenizer = Tokenizer(models.BPE(vocab=byte_characters(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(each, special=True, normalized=False) for each in SPECIALS])
    assert tokenizer.token_to_id("<|image_pad|>") == PAD
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (folder / "chat_template.jinja").write_text(template)


def build_qwen2_5_vl(folder: Path, older: bool = False) -> SeeingModel:
    """older: laid out as files were before the decoder had a name of its own."""
    import transformers

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    text = {**TEXT, "rope_parameters": rope, "use_sliding_window": False}
    text.pop("head_dim")
    text |= {"hidden_size": 64}
    config = transformers.Qwen2_5_VLConfig(
        text_config=text,
        vision_config={
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 56,
            "num_heads": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 64,
            "window_size": 24,
            "fullatt_block_indexes": [1, 3],
        },
        image_token_id=PAD,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=not older,
    )
    config._attn_implementation = "sdpa"
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).float().eval()
    model.generation_config.eos_token_id = None
    scramble(model, seed=6)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(QWEN_IMAGES))
    if older:
        lay_out_as_before(folder)
    write_text_files(folder)
    return SeeingModel("qwen2.5-vl", folder, model)


def lay_out_as_before(folder: Path) -> None:
    """Names and settings of the files that the makers of Qwen2.5-VL gave out."""
    tensors = {}
    with safe_open(folder / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            old = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
            tensors[old] = file.get_tensor(name)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": {"type": "mrope", **rope}}
    text["rope_scaling"].pop("rope_type")
    (folder / "config.json").write_text(json.dumps({**text, **config}))


def lay_out_as_its_makers(folder: Path) -> None:
    """Names of towers as the files of Gemma 3 and LLaVA have them, and Gemma's rope and windows as it said them."""
    tensors = {}
    with safe_open(folder / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            tensors[name.replace("vision_tower.", "vision_tower.vision_model.")] = file.get_tensor(name)
    tensors["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(9)[None]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    if text["model_type"] == "gemma3_text":
        ropes = text.pop("rope_parameters")
        for kind in ("layer_types", "_sliding_window_pattern", "attn_logit_softcapping"):
            text.pop(kind, None)
        text |= {
            "rope_theta": ropes["full_attention"]["rope_theta"],
            "rope_local_base_freq": ropes["sliding_attention"]["rope_theta"],
            "rope_scaling": {"rope_type": "linear", "factor": ropes["full_attention"]["factor"]},
            "sliding_window_pattern": 3,
            "cache_implementation": "hybrid",
        }
    (folder / "config.json").write_text(json.dumps(config))


PLAIN_VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 4,
}


def build_gemma3(folder: Path, makers: bool = False) -> SeeingModel:
    """Pictures of 16 rows, more than its window holds."""
    import transformers

    text = {
        **TEXT,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        "sliding_window": 11,
        "query_pre_attn_scalar": 20,
        "final_logit_softcapping": None,
    }
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config={**PLAIN_VISION, "image_size": 32, "vision_use_head": False},
        mm_tokens_per_image=16,
        image_token_index=PAD,
        boi_token_index=START,
        eoi_token_index=END,
        tie_word_embeddings=True,
    )
    config._attn_implementation = "sdpa"
    model = transformers.Gemma3ForConditionalGeneration(config).float().eval()
    model.generation_config.eos_token_id = None
    scramble(model, seed=8, grown=True)
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    said = {"image_processor_type": "Gemma3ImageProcessor", "size": size, "do_pan_and_scan": None}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    if makers:
        lay_out_as_its_makers(folder)
    # Its processor puts the rest around a picture, not its template.
    write_text_files(folder, TEMPLATE.replace("<|image_pad|><|vision_end|>", ""))
    return SeeingModel("gemma3-vl", folder, model, "token_type_ids")


def build_llava(folder: Path, makers: bool = False) -> SeeingModel:
    """The tower's last block takes no part."""
    import transformers

    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **TEXT, "head_dim": 16},
        vision_config={
            "model_type": "clip_vision_model",
            **PLAIN_VISION,
            "image_size": 20,
            "projection_dim": 16,
        },
        image_token_index=PAD,
        tie_word_embeddings=True,
    )
    config._attn_implementation = "sdpa"
    model = transformers.LlavaForConditionalGeneration(config).float().eval()
    model.generation_config.eos_token_id = None
    scramble(model, seed=9)
    model.save_pretrained(folder)
    if makers:
        lay_out_as_its_makers(folder)
    said = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 20}, "crop_size": 20}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    write_text_files(folder, LLAVA_TEMPLATE)
    return SeeingModel("llava", folder, model, "")


def build_onevision(folder: Path) -> SeeingModel:
    """Canvases of up to six tiles, of which so many as two keep all their patches."""
    import transformers

    canvases = [[20, 20], [20, 40], [40, 20], [40, 40], [20, 60], [60, 40]]
    config = transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **{k: v for k, v in TEXT.items() if k != "head_dim"}},
        vision_config={
            "model_type": "siglip_vision_model", **PLAIN_VISION, "image_size": 20, "vision_use_head": False
        },
        image_token_index=PAD,
        video_token_index=VIDEO,
        image_grid_pinpoints=canvases,
        vision_aspect_ratio="anyres_max_2",
        tie_word_embeddings=True,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    model = transformers.LlavaOnevisionForConditionalGeneration(config).float().eval()
    model.generation_config.eos_token_id = None
    scramble(model, seed=10)
    model.save_pretrained(folder)
    size = {"height": 20, "width": 20}
    said = {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "size": size,
        "image_grid_pinpoints": canvases,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    write_text_files(folder, LLAVA_TEMPLATE)
    return SeeingModel("llava-onevision", folder, model, "")


BUILDERS: dict[str, Callable[[Path], SeeingModel]] = {
    "qwen3-vl": build_qwen3_vl,
    "qwen2.5-vl": build_qwen2_5_vl,
    "gemma3-vl": build_gemma3,
    "llava": build_llava,
    "llava-onevision": build_onevision,
    "gemma3-vl-makers": partial(build_gemma3, makers=True),
    "llava-makers": partial(build_llava, makers=True),
    "qwen2.5-vl-older": partial(build_qwen2_5_vl, older=True),
}


@pytest.fixture(scope="session")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SeeingModel]:
    """seeing(name): one of BUILDERS, made once."""
    torch.set_num_threads(1)
    made: dict[str, SeeingModel] = {}

    def get(name: str) -> SeeingModel:
        if name not in made:
            made[name] = BUILDERS[name](tmp_path_factory.mktemp("seeing") / name)
        return made[name]

    return get


def noise(height: int, width: int, seed: int) -> np.ndarray:
    """A picture that looks like no other."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(pixels: Any) -> bytes:
    """An array [height, width, 3], or a picture of Pillow's, as a file."""
    return saved(pixels, "PNG")


def saved(pixels: Any, kind: str, **options: Any) -> bytes:
    picture = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def shown(
    settings: ImageSettings, parts: Sequence[list[int] | np.ndarray], salt: str = ""
) -> tuple[list[int], tuple[ImageSpan, ...]]:
    """A prompt of ids and pictures in turn: its tokens as transformers counts them, and its spans."""
    ids: list[int] = []
    spans: list[ImageSpan] = []
    for part in parts:
        if isinstance(part, list):
            ids += part
            continue
        image = read_picture(png(part), settings, salt)
        ids.append(START)
        spans.append(ImageSpan(len(ids), image))
        ids += [settings.token_id] * image.rows
        ids.append(END)
    return ids, tuple(spans)
