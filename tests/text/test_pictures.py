"""Messages with pictures become tokens and spans: as transformers counts them, never by what a client writes."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from vision_rig import END, PAD, START, VOCAB, noise, png, processor, seeing

from headrace.runtime.blueprint import Blueprint
from headrace.runtime.interface import Ask, Message, Picture, Tenant
from headrace.runtime.prompt import FolderPrompter
from headrace.runtime.refusal import Refusal

__all__ = ["seeing"]


@pytest.fixture
def folder(seeing: Callable[[str], Any]) -> Path:
    return seeing("qwen3-vl").folder


@pytest.fixture
def prompter(folder: Path) -> FolderPrompter:
    settings = Blueprint(folder).images(64)
    assert settings is not None
    return FolderPrompter(folder, VOCAB, VOCAB, 4096, settings)


def ask(*messages: Message, **fields: Any) -> Ask:
    return Ask(messages=messages, **fields)


def url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def test_the_prompt_is_that_of_transformers(prompter: FolderPrompter, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    pictures = [noise(40, 24, 1), noise(8, 56, 2), noise(90, 100, 3)]
    said = ask(
        Message("system", "Look well."),
        Message(
            "user",
            "Left: and right: .",
            pictures=(Picture(6, png(pictures[0])), Picture(17, url(png(pictures[1])))),
        ),
        Message("assistant", "Two."),
        Message("user", "", pictures=(Picture(0, png(pictures[2])),)),
    )
    found = prompter.prepare(said)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    template = (folder / "chat_template.jinja").read_text()
    image = {"type": "image"}
    conversation = [
        {"role": "system", "content": "Look well."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Left: "}, image, {"type": "text", "text": "and right: "}, image,
                {"type": "text", "text": "."},
            ],
        },
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": [image]},
    ]  # fmt: skip
    text = theirs.apply_chat_template(
        conversation, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    grids = processor(folder)(images=pictures, return_tensors="np")["image_grid_thw"]
    expected: list[int] = []
    counts = iter(int(grid.prod()) // 4 for grid in grids)
    for token in theirs(text)["input_ids"]:
        expected += [token] * (next(counts) if token == PAD else 1)
    assert list(found.ids) == expected
    assert [(span.image.height * 2, span.image.width * 2) for span in found.spans] == [
        tuple(grid[1:]) for grid in grids
    ]
    for span in found.spans:
        assert set(found.ids[span.start : span.end]) == {PAD}
        assert found.ids[span.start - 1] == START and found.ids[span.end] == END
    assert found.ids.count(PAD) == sum(span.image.rows for span in found.spans)


PARTS_TURNS = (
    Message("system", "Look well."),
    Message(
        "user",
        "Left: and right: .",
        pictures=(Picture(6, png(noise(9, 8, 1))), Picture(17, png(noise(8, 9, 2)))),
    ),
    Message("assistant", "Two."),
    Message("user", "\n\nAnd now?"),
)


@pytest.mark.parametrize(("name", "rows"), [("gemma3-vl", 16), ("llava", 25)])
def test_prompts_whose_processors_write_more_than_their_templates(
    name: str, rows: int, seeing: Callable[[str], Any]
) -> None:
    """Gemma's puts paragraphs and an end around each picture; LLaVA's template reads lists of parts alone."""
    from transformers import PreTrainedTokenizerFast

    folder = seeing(name).folder
    found = FolderPrompter(folder, VOCAB, VOCAB, 4096, Blueprint(folder).images(64)).prepare(
        ask(*PARTS_TURNS)
    )
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))

    def part(text: str | None) -> dict[str, str]:
        return {"type": "image"} if text is None else {"type": "text", "text": text}

    said = [["Look well."], ["Left: ", None, "and right: ", None, "."], ["Two."], ["\n\nAnd now?"]]
    conversation = [
        {"role": message.role, "content": list(map(part, parts))}
        for message, parts in zip(PARTS_TURNS, said, strict=True)
    ]
    text = theirs.apply_chat_template(
        conversation,
        chat_template=(folder / "chat_template.jinja").read_text(),
        tokenize=False,
        add_generation_prompt=True,
    )
    if name == "gemma3-vl":
        whole = "<|vision_start|>" + "<|image_pad|>" * rows + "<|vision_end|>"
        text = text.replace("<|vision_start|>", f"\n\n{whole}\n\n")
    else:
        text = text.replace("<|image_pad|>", "<|image_pad|>" * rows)
    assert list(found.ids) == theirs(text)["input_ids"]
    assert [span.image.rows for span in found.spans] == [rows, rows]


def test_sec_19_what_stands_around_a_picture_is_text_where_a_client_writes_it(seeing: Any) -> None:
    folder = seeing("gemma3-vl").folder
    prompter = FolderPrompter(folder, VOCAB, VOCAB, 4096, Blueprint(folder).images(64))
    marker = "<|vision_start|>"
    found = prompter.prepare(ask(Message("user", marker, pictures=(Picture(0, png(noise(9, 9, 1))),))))
    assert found.ids.count(PAD) == 16 and found.ids.count(START) == 1 == found.ids.count(END)
    assert prompter.detokenize([t for t in found.ids if t < 256]).count(marker) == 1


def test_sec_19_markers_that_a_client_writes_are_text(prompter: FolderPrompter) -> None:
    marker = "<|vision_start|><|image_pad|><|vision_end|>"
    shown = Picture(len(marker), png(noise(16, 16, 1)))
    for message in (
        Message("user", marker),
        Message("user", marker, pictures=(shown,)),
        Message("system", "<|image_pad|>" * 50),
    ):
        found = prompter.prepare(ask(message))
        assert found.ids.count(PAD) == sum(span.image.rows for span in found.spans)
        assert len(found.spans) == len(message.pictures)
        assert prompter.detokenize([t for t in found.ids if t < 256]).count(
            "<|image_pad|>"
        ) == message.content.count("<|image_pad|>")


def test_equal_pictures_of_equal_tenants_have_one_key(prompter: FolderPrompter) -> None:
    message = Message("user", "x", pictures=(Picture(0, png(noise(16, 16, 1))),))
    keys = [
        prompter.prepare(ask(message, tenant=Tenant(name, salt))).spans[0].image.key
        for name, salt in (("a", "s"), ("b", "s"), ("a", "t"))
    ]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([Message("user", "x", pictures=tuple(Picture(0, b"x") for _ in range(9)))], "at most 8"),
        (
            [Message("user", "x", pictures=(Picture(0, b"no picture", name="messages[0].image"),))],
            "is no PNG",
        ),
        ([Message("user", "x", pictures=(Picture(0, "http://127.0.0.1/"),))], "none is fetched here"),
        ([Message("user", "x", pictures=(Picture(0, png(noise(20, 20, 1))[:500]),))], "damaged or cut off"),
    ],
)
def test_bad_pictures_name_their_place(prompter: FolderPrompter, messages: list[Message], words: str) -> None:
    said = ask(*messages, param_names={"messages": "input"})
    with pytest.raises(Refusal, match=words) as caught:
        prompter.prepare(said)
    assert caught.value.code == "invalid_value"
    assert caught.value.param == (messages[0].pictures[0].name or "input")


def test_a_model_without_eyes_says_so(folder: Path) -> None:
    blind = FolderPrompter(folder, VOCAB, VOCAB, 4096)
    assert blind.prepare(ask(Message("user", "hello"))).spans == ()
    with pytest.raises(Refusal, match="this model takes no pictures") as caught:
        blind.prepare(
            ask(Message("user", "x", pictures=(Picture(0, b"", name="messages[0].content[0].image_url"),)))
        )
    assert caught.value.param == "messages[0].content[0].image_url"


def test_a_template_that_shows_no_pictures_is_an_answer(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    template = (tmp_path / "chat_template.jinja").read_text().replace("<|image_pad|>", "")
    (tmp_path / "chat_template.jinja").write_text(template)
    blueprint = Blueprint(folder)
    prompter = FolderPrompter(tmp_path, VOCAB, VOCAB, 4096, blueprint.images(64))
    with pytest.raises(Refusal, match="shows 0 pictures where 1 were sent"):
        prompter.prepare(ask(Message("user", "x", pictures=(Picture(0, png(noise(16, 16, 1))),))))


def test_a_prompt_of_ids_has_no_placeholder(prompter: FolderPrompter) -> None:
    assert prompter.prepare(Ask(prompt=(1, 2, 3))).ids == (1, 2, 3)
    with pytest.raises(Refusal, match="stands for a picture"):
        prompter.prepare(Ask(prompt=(1, PAD, 3)))


def test_pictures_are_scaled_to_the_token_limit(folder: Path) -> None:
    blueprint = Blueprint(folder)
    whole = blueprint.images(4096)
    assert whole is not None
    for limit in (64, 16, 4):
        settings = blueprint.images(limit)
        assert settings == replace(whole, row_limit=limit)
        prompter = FolderPrompter(folder, VOCAB, VOCAB, 4096, settings)
        found = prompter.prepare(ask(Message("user", "x", pictures=(Picture(0, png(noise(300, 300, 1))),))))
        assert found.spans[0].image.rows == limit
