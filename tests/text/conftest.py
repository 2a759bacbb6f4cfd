"""Model folders with tiny tokenizers of every supported kind, trained on the spot, and their twins."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from headrace.runtime.prompt import FolderPrompter

QWEN = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

LLAMA3 = """{% set loop_messages = messages %}{% for message in loop_messages %}
{% set header = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' %}
{% set content = header + message['content'] | trim %}
{% set content = content + '<|eot_id|>' %}
{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}
{{- content }}{% endfor %}{% if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}
{% set system_message = messages[0]['content'] %}
{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}
{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}
{% if loop.index0 == 0 and system_message != false %}
{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}
{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}
{{- ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""

MISTRAL = """{{- bos_token }}{%- for message in messages %}
{%- if message.role == 'user' %}{{- '[INST] ' ~ message.content ~ ' [/INST]' }}
{%- elif message.role == 'assistant' %}
{% generation %}{{- ' ' ~ message.content ~ eos_token }}{% endgeneration %}
{%- else %}{{- raise_exception('Only user and assistant roles are supported!') }}{%- endif %}{%- endfor %}"""

WORDS = [
    *(
        "the",
        "a",
        "river",
        "mill",
        "water",
        "wheel",
        "hello",
        "world",
        "token",
        "stream",
        "step",
        "wave",
        "user",
    ),
    *(
        "Über",
        "naïve",
        "你好",
        "世界",
        "こんにちは",
        "привет",
        "мир",
        "señor",
        "façade",
        "한국어",
        "🎉",
        "🚀",
    ),
    *("system", "assistant", "said", "(", ")", "{", "}", "123", "4567", "don't", "I'm", "\n", "\n\n", "\t"),
]


def lines(count: int = 400) -> list[str]:
    generator = random.Random(7)
    return [" ".join(generator.choice(WORDS) for _ in range(9)) for _ in range(count)]


def byte_level(specials: list[str], plain: list[str], regex: bool) -> Tokenizer:
    """GPT-2 kind (regex=False) or Llama 3 and Qwen kind (their own split in front)."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=regex))
    if regex:
        split = pre_tokenizers.Split(
            Regex(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            "isolated",
        )
        byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte])
        tokenizer.normalizer = normalizers.NFC() if "<|im_end|>" in specials else None
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(lines(), trainer)
    tokenizer.add_special_tokens([AddedToken(each, special=True, normalized=False) for each in specials])
    tokenizer.add_tokens([AddedToken(each, special=False, normalized=False) for each in plain])
    return tokenizer


def sentencepiece_like(metaspace: bool, normalized: bool = False) -> Tokenizer:
    """Llama 2 kind: BPE over characters with byte fallback; spaces as ▁ by normalizer or by Metaspace."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    prepend = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    meta = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    if metaspace:
        tokenizer.pre_tokenizer = meta
    else:
        tokenizer.normalizer = prepend
    names = ["<unk>", "<s>", "</s>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=names + fallback, show_progress=False)
    ascii_lines = [line[:20] for line in lines() if not set(line) & set("你世한🎉🚀")]
    tokenizer.train_from_iterator(ascii_lines, trainer)
    rules = json.loads(tokenizer.to_str())
    rules["added_tokens"] = [
        {**token, "normalized": normalized} for token in rules["added_tokens"] if token["content"] in names
    ]
    tokenizer = Tokenizer.from_str(json.dumps(rules))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


@dataclass(frozen=True)
class Model:
    """A folder, our prompter for it, and transformers' tokenizer for it."""

    name: str
    folder: Path
    prompter: FolderPrompter
    theirs: Any
    specials: tuple[str, ...]

    @property
    def tokenizer(self) -> Tokenizer:
        return self.theirs.backend_tokenizer


def write_folder(folder: Path, tokenizer: Tokenizer, config: dict[str, Any], template: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    vocab = tokenizer.get_vocab_size(with_added_tokens=True)
    eos = tokenizer.token_to_id(config.get("eos_token") or "") if config.get("eos_token") else None
    (folder / "config.json").write_text(json.dumps({"vocab_size": vocab, "eos_token_id": eos}))


KINDS = ("qwen", "llama3", "llama2", "mistral", "gpt2")


def build(name: str, folder: Path) -> Model:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    template: str | None
    if name == "qwen":
        specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>"]
        tokenizer = byte_level(
            specials, ["<think>", "</think>", "<tool_response>", "</tool_response>"], regex=True
        )
        config |= {
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "bos_token": None,
            "add_bos_token": False,
        }
        template = QWEN
    elif name == "llama3":
        specials = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
        tokenizer = byte_level(specials, [], regex=True)
        begin = tokenizer.token_to_id("<|begin_of_text|>")
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=True),
                processors.TemplateProcessing(
                    single="<|begin_of_text|> $A", pair="$A $B", special_tokens=[("<|begin_of_text|>", begin)]
                ),
            ]
        )
        config |= {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
        template = LLAMA3
    elif name in ("llama2", "mistral"):
        specials = ["<unk>", "<s>", "</s>"]
        tokenizer = sentencepiece_like(metaspace=name == "mistral", normalized=False)
        config |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        template = LLAMA2 if name == "llama2" else MISTRAL
    else:
        specials = ["<|endoftext|>"]
        tokenizer = byte_level(specials, [], regex=False)
        config |= {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
        template = None
    write_folder(folder, tokenizer, config, template)
    vocab = tokenizer.get_vocab_size(with_added_tokens=True)
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    return Model(name, folder, FolderPrompter(folder, vocab, vocab), theirs, tuple(specials))


@pytest.fixture(scope="session")
def models_by_name(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    root = tmp_path_factory.mktemp("models")
    return {name: build(name, root / name) for name in KINDS}


@pytest.fixture(scope="session", params=KINDS)
def model(request: pytest.FixtureRequest, models_by_name: dict[str, Model]) -> Model:
    """Every kind of tokenizer in turn."""
    return models_by_name[request.param]


@pytest.fixture(scope="session", params=[name for name in KINDS if name != "gpt2"])
def chat_model(request: pytest.FixtureRequest, models_by_name: dict[str, Model]) -> Model:
    """Every kind that has a chat template."""
    return models_by_name[request.param]


@pytest.fixture
def new_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder of one's own: new_folder(tokenizer, config, template) -> path."""

    def write(
        tokenizer: Tokenizer, config: dict[str, Any] | None = None, template: str | None = None
    ) -> Path:
        write_folder(tmp_path / "model", tokenizer, config or {}, template)
        return tmp_path / "model"

    return write


@pytest.fixture
def make_tokenizer() -> Callable[..., Tokenizer]:
    """The builders above by name: "byte_level" and "sentencepiece_like"."""
    builders = {"byte_level": byte_level, "sentencepiece_like": sentencepiece_like}

    def make(kind: str, *args: Any, **kwargs: Any) -> Tokenizer:
        return builders[kind](*args, **kwargs)

    return make
