"""How a dialogue becomes text: the chat template, its special tokens, and the tokenizer that is trained for it.

The template is Jinja, as every engine reads it; `segments` writes the same text for training, and says which
of it is to be learned. A test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from headrace.bench.demo.dialogue import Dialogue, Message
from headrace.bench.demo.draw import Draw
from headrace.bench.demo.kinds import KINDS, question, text_dialogue

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE, VIDEO = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CALL, CALL_END, RESPONSE, RESPONSE_END = "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"
SPECIALS = (END, START, STOP, VISION_START, VISION_END, IMAGE, VIDEO)
MARKERS = (CALL, CALL_END, RESPONSE, RESPONSE_END)  # tokens of their own, and visible
VOCABULARY = 3072

TOOLS_FRONT = "You can call these functions:\n<tools>"
TOOLS_BACK = (
    '\n</tools>\nTo call one, answer with:\n<tool_call>\n{"name": NAME, "arguments": {...}}\n</tool_call>'
)

TEMPLATE = """{%- macro written(content) %}
{%- if content is string %}
{{- content }}
{%- else %}
{%- for part in content or [] %}
{%- if part.type == 'image' or part.type == 'image_url' or 'image' in part %}
{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'text' or 'text' in part %}
{{- part.text }}
{%- else %}
{{- raise_exception('this model reads text and images, nothing else') }}
{%- endif %}
{%- endfor %}
{%- endif %}
{%- endmacro %}
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages and messages[0].role == 'system' %}
{{- written(messages[0].content) + '\\n\\n' }}
{%- endif %}
{{- 'You can call these functions:\\n<tools>' }}
{%- for tool in tools %}
{{- '\\n' }}
{{- tool | tojson }}
{%- endfor %}
{{- '\\n</tools>\\nTo call one, answer with:\\n<tool_call>\\n{"name": NAME, "arguments": {...}}\\n</tool_call>' }}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
{{- '<|im_start|>user\\n' }}
{%- else %}
{{- '\\n' }}
{%- endif %}
{{- '<tool_response>\\n' }}
{{- written(message.content) }}
{{- '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- elif not (tools and loop.first and message.role == 'system') %}
{{- '<|im_start|>' }}
{{- message.role }}
{{- '\\n' }}
{{- written(message.content) }}
{%- for call in message.tool_calls or [] %}
{%- set called = call.function if call.function else call %}
{%- if message.content or not loop.first %}
{{- '\\n' }}
{%- endif %}
{{- '<tool_call>\\n{"name": "' }}
{{- called.name }}
{{- '", "arguments": ' }}
{%- if called.arguments is string %}
{{- called.arguments }}
{%- else %}
{{- called.arguments | tojson }}
{%- endif %}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def tools_text(tools: Iterable[dict[str, Any]]) -> str:
    """What the system message says of the tools."""
    return TOOLS_FRONT + "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools) + TOOLS_BACK


def segments(dialogue: Dialogue) -> Iterator[tuple[str, str, bool, Message]]:
    """(role, text, learned, message) of every turn; text without the picture markers."""
    messages = dialogue.messages
    if dialogue.tools:
        told = tools_text(dialogue.tools)
        if messages[0].role == "system":
            told = messages[0].text + "\n\n" + told
            messages = messages[1:]
        yield "system", told, False, Message("system", told)
    for message in messages:
        if message.role == "tool":
            yield "user", f"{RESPONSE}\n{message.text}\n{RESPONSE_END}", False, message
        else:
            yield message.role, message.spoken, message.role == "assistant", message


def _texts(seed: int, count: int) -> Iterator[str]:
    """What the tokenizer is trained on: every kind alike, and talk as it will be drawn."""
    draw = Draw(seed)
    for index in range(count):
        dialogue = text_dialogue(draw, 3) if index % 3 else question(KINDS[index // 3 % len(KINDS)], draw)
        for role, text, _, _ in segments(dialogue):
            yield f"{role}\n"
            yield text


def train_tokenizer(seed: int, count: int = 24_000) -> Tokenizer:
    """A byte-level BPE of VOCABULARY tokens at most; digits, and every byte, are tokens of their own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = len(SPECIALS) + len(MARKERS)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - added,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=8,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed, count), trainer)
    tokenizer.add_special_tokens([AddedToken(each, normalized=False, special=True) for each in SPECIALS])
    tokenizer.add_tokens([AddedToken(each, normalized=False, special=False) for each in MARKERS])
    return tokenizer
