"""The checkpoint inside the package: where it lies, what it is, and the script that makes it again.

    python -P -m headrace.runtime.demo_checkpoint OUT

writes the whole folder from one seed: a byte-level tokenizer, a Llama of about one million parameters, and
weights trained on the conversations of demo_dialogues.py. It takes two minutes on one H200.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from headrace.runtime.decoding import byte_characters

DEMO_ID = "headrace-demo"
DEMO_NOTICE = (
    "This is the demo model inside headrace: about a million parameters, one byte a token, trained for two minutes "
    "on made-up conversations. It counts, spells short words and tells a tiny story; it knows next to nothing. "
    "For real answers, start: headrace serve MODEL"
)

SEED = 20261123
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 256 + len(SPECIALS)
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": VOCABULARY - 1,
    "torch_dtype": "bfloat16",
}
TEMPLATE = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}"""


def demo_folder() -> Path:
    """The model folder of the embedded checkpoint, in the installed package."""
    return Path(__file__).resolve().parent / "demo"


def tokenizer_rules() -> dict[str, Any]:
    """tokenizer.json: one token per byte (id = byte), then the special tokens; nothing is ever merged."""
    added = [
        {
            "id": 256 + index,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, content in enumerate(SPECIALS)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(sorted(byte_characters().items(), key=lambda pair: pair[1])),
            "merges": [],
        },
    }


def text_files() -> dict[str, str]:
    """Every file of the folder but the weights, by name."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIALS[2],
        "pad_token": SPECIALS[0],
        "model_max_length": CONFIG["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
    }
    generation = {
        "eos_token_id": [256, 258],
        "pad_token_id": 256,
        "do_sample": True,
        "temperature": 0.5,
        "top_p": 0.9,
    }

    def lines(value: dict[str, Any]) -> str:
        return json.dumps(value, indent=1, ensure_ascii=False) + "\n"

    return {
        "config.json": lines(CONFIG),
        "generation_config.json": lines(generation),
        "tokenizer.json": lines(tokenizer_rules()),
        "tokenizer_config.json": lines(config),
        "chat_template.jinja": TEMPLATE,
    }


def main(out: Path) -> None:
    """Write the whole checkpoint to `out`."""
    from headrace.runtime.demo_training import train, write_weights

    out.mkdir(parents=True, exist_ok=True)
    for name, text in text_files().items():
        (out / name).write_text(text, encoding="utf-8")
    write_weights(train(), out / "model.safetensors")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -P -m headrace.runtime.demo_checkpoint OUT")
    main(Path(sys.argv[1]))
