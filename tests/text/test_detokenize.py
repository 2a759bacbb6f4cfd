"""Our bytes per token against the tokenizers library, on real tokenizers of every supported kind."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders

from headrace.runtime.checkpoint import CheckpointError
from headrace.runtime.decoding import byte_characters, token_text
from headrace.runtime.interface import Ask
from headrace.runtime.text import LeadingSpace

SESSION = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def streamed(prompter: Any, ids: list[int], ask: Ask) -> str:
    cutter = prompter.cutter(ask)
    return "".join(cutter.push(token) for token in ids) + cutter.finish()


@SESSION
@given(
    text=st.text(st.characters(codec="utf-8"), max_size=30) | st.text("  \n▁hello wörld你<0x41>", max_size=30)
)
def test_all_unicode_streams_as_the_library_decodes(model: Any, text: str) -> None:
    ids = model.tokenizer.encode(text, add_special_tokens=False).ids
    expected = model.tokenizer.decode(ids, skip_special_tokens=True)
    assert model.prompter.detokenize(ids) == expected
    assert streamed(model.prompter, ids, Ask(prompt="")) == expected


@pytest.mark.parametrize("name", ["qwen", "llama3", "gpt2"])
def test_random_ids_of_byte_level_tokenizers(name: str, models_by_name: dict[str, Any]) -> None:
    """Broken bytes included: the library's lossy decoding and ours agree."""
    model = models_by_name[name]
    generator = random.Random(3)
    width = model.prompter.logits_width
    for _ in range(300):
        ids = [generator.randrange(width) for _ in range(generator.randrange(12))]
        assert model.prompter.detokenize(ids) == model.tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["llama2", "mistral"])
def test_random_ids_of_byte_fallback_tokenizers(name: str, models_by_name: dict[str, Any]) -> None:
    """Equal to the library wherever it finds no broken bytes; elsewhere equal up to the U+FFFD."""
    model = models_by_name[name]
    generator = random.Random(4)
    width = model.prompter.logits_width
    broken = 0
    for _ in range(600):
        ids = [generator.randrange(width) for _ in range(generator.randrange(6))]
        expected = model.tokenizer.decode(ids, skip_special_tokens=True)
        if "\ufffd" in expected:
            broken += 1
            assert "\ufffd" in model.prompter.detokenize(ids)
        else:
            assert model.prompter.detokenize(ids) == expected
    assert 100 < broken < 590


def test_broken_bytes_keep_the_characters_around_them(models_by_name: dict[str, Any]) -> None:
    model = models_by_name["llama2"]

    def byte(value: int) -> int:
        return model.tokenizer.token_to_id(f"<0x{value:02X}>")

    ids = [byte(b) for b in "你".encode()] + [byte(0xFF)] + [byte(b) for b in "好".encode()]
    assert model.prompter.detokenize(ids) == "你\ufffd好"


def test_special_tokens_have_no_text_and_other_added_tokens_do(models_by_name: dict[str, Any]) -> None:
    model = models_by_name["qwen"]
    ids = model.tokenizer.encode("<think>a</think><|im_end|>b", add_special_tokens=False).ids
    assert model.prompter.detokenize(ids) == "<think>a</think>b"


def test_an_answer_to_a_prompt_keeps_its_first_space(models_by_name: dict[str, Any]) -> None:
    """Prompt plus answer is one text; an answer to messages stands alone."""
    model = models_by_name["llama2"]
    hello = model.tokenizer.token_to_id("▁hello")
    assert streamed(model.prompter, [hello, hello], Ask(prompt="Say")) == " hello hello"
    assert streamed(model.prompter, [hello, hello], Ask(prompt=(hello,))) == " hello hello"
    for ask in (Ask(prompt=""), Ask(prompt=(1,)), Ask(messages=())):
        assert streamed(model.prompter, [hello, hello], ask) == "hello hello"


def test_metaspace_decoder(make_tokenizer: Callable[..., Tokenizer]) -> None:
    tokenizer = make_tokenizer("sentencepiece_like", metaspace=True)
    for scheme in ("always", "first", "never"):
        tokenizer.decoder = decoders.Metaspace("▁", prepend_scheme=scheme)
        rule = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": True}
        tokens = {i: token for token, i in tokenizer.get_vocab(True).items()}
        text = token_text(rule, tokens, frozenset({0, 1, 2}))
        generator = random.Random(5)
        for _ in range(300):
            # Metaspace has no byte fallback: a byte token is its own spelling.
            ids = [generator.randrange(len(tokens)) for _ in range(generator.randrange(6))]
            assert text.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True)


def test_the_byte_characters_are_the_libraries_alphabet() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    table = byte_characters()
    assert sorted(table) == sorted(ByteLevel.alphabet())
    for byte in range(256):
        character = next(char for char, value in table.items() if value == byte)
        assert ord(character) == byte or not chr(byte).isprintable() or byte in (0x20, 0xA0, 0xAD)


def test_decoders_that_are_understood() -> None:
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 2, "stop": 0}
    fallback, fuse = {"type": "ByteFallback"}, {"type": "Fuse"}
    gemma = token_text(
        {"type": "Sequence", "decoders": [replace, fallback, fuse]}, {0: "▁a", 1: "<0x41>"}, frozenset()
    )
    assert gemma.decode([0, 1]) == " aA"
    twice = token_text(
        {"type": "Sequence", "decoders": [replace, fallback, fuse, strip]}, {0: "▁▁▁a"}, frozenset()
    )
    assert twice.leading == LeadingSpace(" ", 2)
    assert twice.decode([0]) == " a"
    for decoder in (
        None,
        [],
        "ByteLevel",
        {},
        {"type": 3},
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "CTC"},
        {"type": "BPEDecoder", "suffix": "</w>"},
        {"type": "Sequence", "decoders": []},
        {"type": "Sequence"},
        {"type": "Sequence", "decoders": [fuse, replace]},
        {"type": "Sequence", "decoders": [strip, fuse]},
        {"type": "Sequence", "decoders": [fuse, {**strip, "stop": 1}]},
        {"type": "Sequence", "decoders": [fuse, {**strip, "start": -1}]},
        {"type": "Sequence", "decoders": [{**replace, "pattern": {"Regex": "x"}}]},
        {"type": "Metaspace", "replacement": ""},
    ):
        with pytest.raises(CheckpointError):
            token_text(decoder, {0: "a"}, frozenset())
