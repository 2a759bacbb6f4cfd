"""Tools and calls in prompts: the ids of transformers, nothing of a client's becomes a special token, and models
without a place for tools say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from headrace.runtime.interface import Ask, Message, Tool, ToolCall, ToolChoice
from headrace.runtime.parsers.pieces import (
    CallArguments,
    CallBegin,
    CallEnd,
    ReasoningPiece,
    TextPiece,
    joined,
)
from headrace.runtime.prompt import FolderPrompter
from headrace.runtime.refusal import Refusal

TAGGED = """{%- if tools %}{{ '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n' }}{% endif %}
{{- '<tools>' }}{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}
{{- '\\n</tools> answer with <tool_call>{"name": …, "arguments": …}</tool_call><|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}{{- '<|im_start|>assistant\\n' }}
{%- if message.reasoning_content %}{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": ' ~ (call.function.arguments | tojson) }}
{{- '}\\n</tool_call>' }}{% endfor %}{{- '<|im_end|>\\n' }}
{%- elif not (tools and loop.first and message.role == 'system') %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking %}{{- '<think>\\n' }}{% endif %}{% endif %}"""

BRACKETED = """{{- bos_token }}{%- if tools %}
{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}
{%- for message in messages %}{%- if message.role == 'user' %}{{- '[INST]' + message.content + '[/INST]' }}
{%- elif message.tool_calls is defined and message.tool_calls %}{{- '[TOOL_CALLS]' }}
{%- for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{- raise_exception('ids have nine letters') }}{% endif %}
{{- call.function.name ~ '[ARGS]' ~ (call.function.arguments | tojson) ~ call.id }}{% endfor %}{{- eos_token }}
{%- elif message.role == 'tool' %}{{- '[TOOL_RESULTS]' ~ message.tool_call_id ~ message.name ~ message.content }}
{%- else %}{{- message.content + eos_token }}{% endif %}{% endfor %}"""

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PLAIN = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
WEATHER = Tool(
    "weather",
    "what it is like",
    {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
)
CLOCK = Tool("clock")


@pytest.fixture
def tagged(
    new_folder: Callable[..., Path], make_tokenizer: Callable[..., Tokenizer]
) -> tuple[FolderPrompter, Any]:
    tokenizer = make_tokenizer("byte_level", SPECIALS, PLAIN, regex=True)
    folder = new_folder(
        tokenizer, {"eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}, TAGGED
    )
    return FolderPrompter(folder, 1000, 1000), PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture
def bracketed(new_folder: Callable[..., Path], make_tokenizer: Callable[..., Tokenizer]) -> FolderPrompter:
    specials = [
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[TOOL_RESULTS]",
        "[AVAILABLE_TOOLS]",
    ]
    tokenizer = make_tokenizer("byte_level", specials, [], regex=True)
    folder = new_folder(tokenizer, {"bos_token": "<s>", "eos_token": "</s>"}, BRACKETED)
    return FolderPrompter(folder, 1000, 1000)


def call_turn(arguments: str = '{"at": "Rome"}', **more: Any) -> Message:
    return Message("assistant", "", calls=(ToolCall("call_1", "weather", arguments),), **more)


def test_tools_calls_and_results_give_the_ids_of_transformers(tagged: tuple[FolderPrompter, Any]) -> None:
    prompter, theirs = tagged
    ask = Ask(
        messages=(
            Message("system", "short"),
            Message("user", "hello"),
            call_turn(reasoning="the river"),
            Message("tool", "rain", call_id="call_1"),
        ),
        tools=(WEATHER, CLOCK),
    )
    function = {"name": "weather", "arguments": {"at": "Rome"}}
    turns = [
        {"role": "system", "content": "short"},
        {"role": "user", "content": "hello"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "the river",
            "tool_calls": [{"type": "function", "id": "call_1", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "rain", "name": "weather"},
    ]
    tools = [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "what it is like",
                "parameters": {
                    "type": "object",
                    "properties": {"at": {"type": "string"}},
                    "required": ["at"],
                },
            },
        },
        {
            "type": "function",
            "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}},
        },
    ]
    assert list(prompter.prepare(ask).ids) == list(
        theirs.apply_chat_template(turns, tools=tools, add_generation_prompt=True, return_dict=False)
    )


def test_a_choice_of_none_leaves_the_tools_out(tagged: tuple[FolderPrompter, Any]) -> None:
    prompter, _ = tagged
    messages = (Message("user", "hello"),)
    none = Ask(messages=messages, tools=(WEATHER,), tool_choice=ToolChoice("none"))
    assert prompter.prepare(none) == prompter.prepare(Ask(messages=messages))
    assert prompter.prepare(none) != prompter.prepare(Ask(messages=messages, tools=(WEATHER,)))


@pytest.mark.parametrize("spelled", ["<|im_end|>", "<tool_call>", "</think>", "<|im_start|>system"])
def test_nothing_in_a_tool_or_a_call_becomes_a_special_token(
    tagged: tuple[FolderPrompter, Any], spelled: str
) -> None:
    prompter, theirs = tagged
    control = set(theirs.get_added_vocab().values())

    def counted(word: str) -> list[int]:
        escaped = "".join(f"\\u{ord(char):04x}" for char in word)
        tool = Tool(
            "weather", word, {"type": "object", "description": word, "properties": {word: {"enum": [word]}}}
        )
        asked = Ask(
            messages=(
                Message("user", "hello"),
                call_turn(json.dumps({word: word}), reasoning=word),
                call_turn(f'{{"{escaped}": 1}}'),
                Message("tool", word, call_id="call_1"),
            ),
            tools=(tool,),
        )
        ids = prompter.prepare(asked).ids
        assert word in prompter.detokenize(list(ids))
        return [token for token in ids if token in control]

    assert counted(spelled) == counted("wave")


@pytest.mark.parametrize("arguments", ["not JSON", "[1]", "", '{"a": ' * 40, '{"at": "Ro'])
def test_broken_arguments_in_the_history_stay_text(
    tagged: tuple[FolderPrompter, Any], arguments: str
) -> None:
    prompter, _ = tagged
    ids = prompter.prepare(Ask(messages=(Message("user", "hello"), call_turn(arguments)))).ids
    assert json.dumps(arguments) in prompter.detokenize(list(ids))


def test_lone_surrogates_are_refused(tagged: tuple[FolderPrompter, Any]) -> None:
    prompter, _ = tagged
    user = Message("user", "hello")
    for ask in (
        Ask(messages=(user, call_turn('{"at": "\\ud800"}'))),
        Ask(messages=(user,), tools=(Tool("a", "\ud800"),)),
        Ask(messages=(user, Message("tool", "\ud800", call_id="call_1"))),
    ):
        with pytest.raises(Refusal) as caught:
            prompter.prepare(ask)
        assert caught.value.code == "invalid_value"


def test_nine_letter_ids_for_templates_that_want_them(bracketed: FolderPrompter) -> None:
    messages = (Message("user", "hi"), call_turn(), Message("tool", "rain", call_id="call_1"))
    text = bracketed.detokenize(list(bracketed.prepare(Ask(messages=messages, tools=(WEATHER,))).ids))
    _, _, rest = text.partition('weather{"at": "Rome"}')
    short = rest[:9]
    assert short.isalnum() and rest == f"{short}{short}weatherrain"


def test_marks_that_are_special_tokens_reach_the_parser(bracketed: FolderPrompter) -> None:
    def said(ask: Ask) -> list[Any]:
        prompt = bracketed.prepare(ask)
        cutter, splitter = bracketed.cutter(ask), bracketed.splitter(ask, prompt)
        ids = [bracketed._tokenizer.id_of("[TOOL_CALLS]"), *bracketed.tokenize("weather")]
        ids += [bracketed._tokenizer.id_of("[ARGS]"), *bracketed.tokenize('{"at": "Rome"}')]
        texts = [cutter.push(token) for token in ids if token is not None] + [cutter.finish()]
        if splitter is None:
            return texts
        return joined([piece for text in texts for piece in splitter.push(text)] + splitter.finish())

    messages = (Message("user", "hi"),)
    assert said(Ask(messages=messages, tools=(WEATHER,))) == [
        CallBegin("weather"),
        CallArguments('{"at": "Rome"}'),
        CallEnd(True),
    ]
    assert "".join(said(Ask(messages=messages))) == 'weather{"at": "Rome"}'


def test_a_prompt_may_end_inside_of_reasoning(tagged: tuple[FolderPrompter, Any]) -> None:
    prompter, _ = tagged
    for ask, thinking in (
        (Ask(messages=(Message("user", "<think>"),), template_options={"enable_thinking": True}), True),
        (Ask(messages=(Message("user", "<think>"),)), False),
    ):
        prompt = prompter.prepare(ask)
        assert prompt.thinking is thinking
        splitter = prompter.splitter(ask, prompt)
        assert splitter is not None
        kind = ReasoningPiece if thinking else TextPiece
        assert splitter.push("so") == [kind("so")]
    assert prompter.splitter(Ask(prompt="so"), prompter.prepare(Ask(prompt="so"))) is None


def test_models_without_a_place_for_tools_say_so(models_by_name: dict[str, Any], tmp_path: Path) -> None:
    user = Message("user", "hello")
    for name in ("qwen", "llama3", "llama2"):
        prompter = models_by_name[name].prompter
        with pytest.raises(Refusal) as caught:
            prompter.prepare(Ask(messages=(user,), tools=(CLOCK,), param_names={"tools": "tools"}))
        assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "tools")
        with pytest.raises(Refusal) as caught:
            prompter.prepare(Ask(messages=(user, call_turn())))
        assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "messages")


def test_an_unknown_way_of_calling_is_named_and_may_be_told(
    new_folder: Callable[..., Path], make_tokenizer: Callable[..., Tokenizer]
) -> None:
    template = "{{ tools | tojson }}{% for message in messages %}{{ message.content }}{% endfor %}"
    folder = new_folder(make_tokenizer("byte_level", SPECIALS, PLAIN, regex=True), {}, template)
    ask = Ask(messages=(Message("user", "hello"),), tools=(CLOCK,))
    with pytest.raises(Refusal, match="--tool-parser"):
        FolderPrompter(folder, 1000, 1000).prepare(ask)
    told = FolderPrompter(folder, 1000, 1000, tool_parser="hermes")
    splitter = told.splitter(ask, told.prepare(ask))
    assert splitter is not None
    assert splitter.push('<tool_call>{"name": "clock"}')[0] == CallBegin("clock")


def test_a_template_of_its_own_for_tools(
    new_folder: Callable[..., Path], make_tokenizer: Callable[..., Tokenizer]
) -> None:
    tokenizer = make_tokenizer("byte_level", SPECIALS, PLAIN, regex=True)
    plain = "{% for message in messages %}{{ message.content }}{% endfor %}"
    named = [{"name": "default", "template": plain}, {"name": "tool_use", "template": TAGGED}]
    user = (Message("user", "hello"),)
    folder = new_folder(tokenizer, {"chat_template": named})
    listed = FolderPrompter(folder, 1000, 1000)
    (folder / "chat_template.jinja").write_text(plain)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TAGGED)
    for prompter in (listed, FolderPrompter(folder, 1000, 1000)):
        assert prompter.detokenize(list(prompter.prepare(Ask(messages=user)).ids)) == "hello"
        with_tools = prompter.prepare(Ask(messages=user, tools=(CLOCK,)))
        assert "<tools>" in prompter.detokenize(list(with_tools.ids))
