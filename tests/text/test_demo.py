"""The checkpoint inside the package: complete, small, and what its notice and its card promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from headrace.bench.demo import network
from headrace.bench.demo.checkpoint import text_files
from headrace.bench.demo.dialogue import Dialogue, Message
from headrace.bench.demo.kinds import KINDS
from headrace.bench.demo.network import Network
from headrace.bench.demo.scoring import Question, answers, padded
from headrace.bench.demo.written import Writer
from headrace.runtime.demo_checkpoint import demo_folder
from headrace.runtime.interface import Ask
from headrace.runtime.interface import Message as Said
from headrace.runtime.prompt import FolderPrompter
from headrace.runtime.refusal import Refusal

PAGE = Path(__file__).resolve().parents[2] / "clients" / "web"
WIDTH = network.VOCABULARY


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(demo_folder() / "tokenizer.json"))


@pytest.fixture(scope="module")
def writer(tokenizer: Tokenizer) -> Writer:
    return Writer(tokenizer)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return load_file(demo_folder() / "model.safetensors")


@pytest.fixture(scope="module")
def trained(weights: dict[str, torch.Tensor]) -> Network:
    return Network({name: each.float() for name, each in weights.items()}, torch.float32)


@pytest.fixture(scope="module")
def prompter() -> FolderPrompter:
    return FolderPrompter(demo_folder(), WIDTH, WIDTH)


def test_the_folder_holds_what_the_trainer_writes(tokenizer: Tokenizer) -> None:
    texts = text_files(tokenizer)
    assert {path.name for path in demo_folder().iterdir()} == {*texts, "model.safetensors", "README.md"}
    for name, text in texts.items():
        if name != "tokenizer.json":  # the library may lay it out anew
            assert (demo_folder() / name).read_text(encoding="utf-8") == text


def test_the_weights_have_the_shapes_of_the_config(weights: dict[str, torch.Tensor]) -> None:
    assert {name: tuple(each.shape) for name, each in weights.items()} == network.shapes()
    assert all(each.dtype == torch.bfloat16 and each.isfinite().all() for each in weights.values())
    assert (demo_folder() / "model.safetensors").stat().st_size < 30_000_000


def test_the_card_reports_every_kind() -> None:
    page = (demo_folder() / "README.md").read_text(encoding="utf-8")
    for kind in KINDS:
        assert f"| {kind} | " in page
    for heading in ("## What it was trained on", "## Scores", "## What it cannot do"):
        assert heading in page


def asked(*turns: str, pictures: tuple[Image.Image, ...] = (), system: str = "", tools: Any = ()) -> Dialogue:
    """A dialogue that waits for its last answer; what stands there is not read."""
    messages = [Message("system", system)] if system else []
    for at, text in enumerate(turns):
        last = at == len(turns) - 1
        messages.append(Message("assistant" if at % 2 else "user", text, pictures if last else ()))
    return Dialogue([*messages, Message("assistant", "")], tools)


def said(trained: Network, writer: Writer, dialogue: Dialogue) -> str:
    """The greedy answer in fp32."""
    (written,) = writer.write([dialogue])
    return answers(trained, writer, [Question("", dialogue, written)], 120)[0]


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.mark.parametrize(
    ("dialogue", "expected"),
    [
        (asked("What is 345 + 278?"), "345 + 278 = 623"),
        (asked("What is 512 - 187?"), "512 - 187 = 325"),
        (asked("Is 348 even or odd?"), "348 is even."),
        (asked("Sort 42, 7, 88, 19, 3"), "3, 7, 19, 42, 88"),
        (asked("Spell river"), "r-i-v-e-r"),
        (asked("Count to 7"), "1, 2, 3, 4, 5, 6, 7"),
        (asked("What day comes after Monday?"), "The day after Monday is Tuesday."),
        (asked("What is the capital of France?"), "The capital of France is Paris."),
        (
            asked("Give me JSON with name Ada, age 36 and city London"),
            '{"name": "Ada", "age": 36, "city": "London"}',
        ),
        (
            asked("My name is Ines.", "Nice to meet you, Ines!", "Spell cat", "c-a-t", "What is my name?"),
            "Your name is Ines.",
        ),
        (
            asked("Who are you?", system="You are Mira, a baker from Oslo."),
            "I am Mira, a baker from Oslo.",
        ),
        (
            asked("What is the weather in Lima?", tools=(WEATHER,)),
            '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Lima"}}\n</tool_call>',
        ),
        (asked("What is in this picture?"), "I see no picture. Drop one into the chat and ask again."),
    ],
    ids=lambda value: value.messages[-2].text if isinstance(value, Dialogue) else "",
)
def test_it_says_what_its_notice_promises(
    dialogue: Dialogue, expected: str, trained: Network, writer: Writer
) -> None:
    assert said(trained, writer, dialogue) == expected


@pytest.mark.parametrize(
    ("file", "ask", "expected"),
    [
        (
            "example-shapes.png",
            "What is in this picture?",
            "A yellow star at the top left, a red circle in the middle and a blue square at the bottom right, on a "
            "white background.",
        ),
        ("example-shapes.png", "What colour is the circle?", "The circle is red."),
        ("example-shapes.png", "What is at the top left?", "A yellow star is at the top left."),
        ("example-chart.png", "Which bar is the highest?", "B is the highest, with 9."),
        ("example-chart.png", "What is the value of A?", "A is 4."),
        ("example-chart.png", "How many bars are there?", "There are three bars."),
        ("example-chart.png", "What colour is C?", "C is green."),
        ("example-line.png", "How does the line run?", "The line goes up and then down."),
    ],
)
def test_it_sees_the_examples_of_the_chat_page(
    file: str, ask: str, expected: str, trained: Network, writer: Writer
) -> None:
    picture = Image.open(PAGE / file).convert("RGB")
    assert said(trained, writer, asked(ask, pictures=(picture,))) == expected


def test_it_loads_in_transformers_and_computes_alike(trained: Network, writer: Writer) -> None:
    model: Any = Qwen3VLForConditionalGeneration.from_pretrained(demo_folder(), dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(demo_folder())
    picture = Image.open(PAGE / "example-shapes.png").convert("RGB")
    (written,) = writer.write([asked("What is this? 你好 🎉", pictures=(picture,))])
    parts = [{"type": "image"}, {"type": "text", "text": "What is this? 你好 🎉"}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False
    )
    (shown,) = written.shown
    pad = writer.encode("<|image_pad|>")[0]
    prompt = [
        each
        for at, each in enumerate(written.ids[: written.answer_start])
        if each != pad or at == shown.start
    ]
    assert tokenizer(text).input_ids == prompt
    ids = torch.from_numpy(written.ids.astype(np.int64))[None]
    pixels = (torch.from_numpy(shown.patches).float() * (2 / 255) - 1).view(-1, 3, 1, 256)
    with torch.no_grad():
        theirs = model(
            input_ids=ids,
            mm_token_type_ids=(ids == pad).int(),
            pixel_values=pixels.expand(-1, 3, 2, 256).reshape(-1, 1536),
            image_grid_thw=torch.tensor([[1, shown.rows, shown.columns]]),
        ).logits
        ours = trained.logits(trained.hidden(padded([written], [len(written.ids)], trained.device)))
    assert torch.allclose(theirs, ours, atol=2e-3)


def test_any_text_is_tokens_and_back(prompter: FolderPrompter, tokenizer: Tokenizer) -> None:
    text = "a\x00\n~é你🎉<|im_end|> 1234"
    ids = prompter.tokenize(text)
    assert prompter.detokenize(ids) == text
    assert tokenizer.token_to_id("<|im_end|>") not in ids, "what a client writes is text"
    assert prompter.eos_ids == {tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")}


def test_text_that_cannot_fit_is_refused_before_it_is_tokenized(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    prompter = FolderPrompter(demo_folder(), WIDTH, WIDTH, max_context=64)
    longest = max(map(len, tokenizer.get_vocab()))  # spelled with one character a byte
    assert longest > 16
    most = 64 * 4 * longest

    def never(*_: object, **__: object) -> list[int]:
        raise AssertionError("work was spent on it")

    assert len(prompter.prepare(Ask(prompt="x" * most)).ids) <= most
    monkeypatch.setattr(prompter._tokenizer, "encode_text", never)
    monkeypatch.setattr(prompter._tokenizer, "encode_rendered", never)
    for ask in (Ask(prompt="x" * (most + 1)), Ask(messages=(Said("user", "x" * (most + 1)),))):
        with pytest.raises(Refusal) as refused:
            prompter.prepare(ask)
        assert refused.value.code == "context_length_exceeded"


def test_generation_ends_where_the_model_says() -> None:
    settings = json.loads((demo_folder() / "generation_config.json").read_text())
    assert (
        settings["eos_token_id"][0]
        == json.loads((demo_folder() / "config.json").read_text())["text_config"]["eos_token_id"]
    )
