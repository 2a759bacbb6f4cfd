"""The whole server on the CPU engine with a model of random weights.

What it says is noise, except where it is made to say JSON or to call a tool."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from jsonschema import validate
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

TEMPLATE = """{%- for tool in tools or [] %}{{ tool | tojson }}{% endfor %}
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": ' ~ (call.function.arguments | tojson) }}
{{- '}\\n</tool_call>' }}{% endfor %}{{- '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "at": {"type": "string", "maxLength": 12},
        "days": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
        "wet": {"type": "boolean"},
    },
    "required": ["at", "days", "wet"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA, "strict": True}}


def write_model(folder: Path) -> None:
    """A small Llama with random weights over bytes and a few tokens of its own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(each, special=True) for each in ("<|im_start|>", "<|im_end|>")])
    tokenizer.add_tokens([AddedToken(each, special=False) for each in ("<tool_call>", "</tool_call>")])
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    end = tokenizer.token_to_id("<|im_end|>")
    config = LlamaConfig(
        vocab_size=size + 4,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=end,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    folder = tmp_path_factory.mktemp("model") / "noise"
    write_model(folder)
    command = [sys.executable, "-P", "-m", "headrace.server", str(folder), "--port", "0", "--threads", "1"]
    # In bfloat16 another batch is another rounding, and a drawn token may be another one.
    command += ["--kv-memory-mb", "8", "--dtype", "float32"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("ready: "), line
        url = line.removeprefix("ready: ").strip()
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600) as made:
            yield made
    finally:
        process.kill()
        process.communicate()


def test_noise_becomes_json_by_schema(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
    for seed in range(4):
        told = client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": "weather?"}],
            response_format=form,
            seed=seed,
            max_tokens=600,
        )
        (choice,) = told.choices
        assert choice.finish_reason == "stop"
        validate(json.loads(choice.message.content or ""), SCHEMA)


def test_noise_becomes_a_forced_call_over_the_socket_and_http(client: openai.OpenAI) -> None:
    name: Any = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", name):
        told = client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": "weather?"}],
            tools=[TOOL],
            tool_choice=choice,
            parallel_tool_calls=False,
            seed=2,
            max_tokens=600,
        )
        (call,) = told.choices[0].message.tool_calls or ()
        assert told.choices[0].finish_reason == "tool_calls" and call.type == "function"
        validate(json.loads(call.function.arguments), SCHEMA)
    function = {"type": "function", **TOOL["function"]}
    with client.responses.connect() as connection:
        connection.response.create(
            model="default",
            input="weather?",
            tools=[function],
            tool_choice={"type": "function", "name": "weather"},
            parallel_tool_calls=False,
            max_output_tokens=600,
        )
        for event in connection:
            if event.type == "response.completed":
                break
            assert event.type not in ("response.failed", "response.incomplete", "error"), event
    (item,) = event.response.output
    assert item.type == "function_call" and item.name == "weather"
    validate(json.loads(item.arguments), SCHEMA)


def test_noise_follows_the_grammar_of_a_custom_tool(client: openai.OpenAI) -> None:
    lark = 'start: "*** Begin" LF ("+" /(.{0,9})/ LF)~1..3 "*** End"\n%import common.LF'
    for syntax, definition in (("lark", lark), ("regex", r'([0-9]{2}["\\\n]){1,4}')):
        tool: Any = {
            "type": "custom",
            "name": "patch",
            "format": {"type": "grammar", "syntax": syntax, "definition": definition},
        }
        named: Any = {"type": "custom", "name": "patch"}
        for choice in ("required", named):
            told = client.responses.create(
                model="default",
                input="go",
                tools=[tool],
                tool_choice=choice,
                parallel_tool_calls=False,
                max_output_tokens=400,
            )
            (item,) = told.output
            assert told.status == "completed" and item.type == "custom_tool_call"
            wanted = r"\*\*\* Begin\n(\+.{0,9}\n){1,3}\*\*\* End" if syntax == "lark" else definition
            assert re.fullmatch(wanted, item.input), item.input
        # Noise does not come to a call by itself; that it may say what it likes is what is seen here.
        told = client.responses.create(model="default", input="go", tools=[tool], max_output_tokens=40)
        assert {item.type for item in told.output} == {"message"}


def test_guided_and_free_answers_run_side_by_side(client: openai.OpenAI) -> None:
    """Free answers are the same whether a guided one is in their batch or not."""

    def free(seed: int) -> str | None:
        told = client.chat.completions.create(
            model="default", messages=[{"role": "user", "content": "hello"}], seed=seed, max_tokens=40
        )
        return told.choices[0].message.content

    alone = [free(seed) for seed in range(3)]
    with client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": "weather?"}],
        response_format={"type": "json_object"},
        seed=1,
        max_tokens=400,
        stream=True,
    ) as stream:
        next(iter(stream))
        assert [free(seed) for seed in range(3)] == alone


def test_a_schema_that_cannot_be_is_that_requests_error(client: openai.OpenAI) -> None:
    for schema in ({"not": {}}, {"$ref": "http://127.0.0.1:9/x"}, {"type": "string", "pattern": "^(?=a)b"}):
        form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model="default", messages=[{"role": "user", "content": "a"}], response_format=form
            )
        assert (caught.value.code, caught.value.param) == ("invalid_value", "response_format")
