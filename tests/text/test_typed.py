"""What is read of a prompt while it is typed: nearly always the beginning of what is sent (M5)."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
from typing_scripts import EMOJI, LANGUAGES, script
from vision_rig import noise, png

from headrace.runtime.blueprint import Blueprint
from headrace.runtime.demo_checkpoint import demo_folder
from headrace.runtime.interface import Ask, Message, Picture
from headrace.runtime.prompt import FolderPrompter
from headrace.runtime.typed import PiecedPrompt, WholePrompt, settled, with_last

HISTORY = (
    Message("user", "Tell me of the river. " * 8),
    Message("assistant", "It turns the wheel. 水车。 " * 12),
)


def asked(history: tuple[Message, ...] = HISTORY, **fields: Any) -> Ask:
    return Ask(messages=(*history, Message("user", "")), **fields)


@pytest.fixture(scope="module")
def demo() -> FolderPrompter:
    return FolderPrompter(demo_folder(), 1 << 16, 1 << 16)


def prompters(demo: FolderPrompter, models: dict[str, Any]) -> dict[str, FolderPrompter]:
    found = {name: model.prompter for name, model in models.items() if name != "gpt2"}
    return {"demo": demo, **found}


def test_what_is_read_begins_what_is_sent_for_every_kind_of_tokenizer(
    demo: FolderPrompter, models_by_name: dict[str, Any]
) -> None:
    for name, prompter in prompters(demo, models_by_name).items():
        read = wrong = sure = total = 0
        for seed in range(12):
            rng = random.Random(seed)
            ask = asked(HISTORY[: rng.choice((0, 2))])
            typed = prompter.typed(ask)
            for text in script(rng, 16):
                found = typed.read(text)
                one = prompter.prepare(with_last(ask, text)).ids
                read += 1
                wrong += tuple(found.ids) != one[: len(found.ids)]
                sure, total = sure + len(found.ids), total + len(one)
                assert 0 <= found.characters <= len(text) and not found.spans
            assert isinstance(typed, PiecedPrompt) and typed._whole is None
        assert wrong * 100 <= read, f"{name}: {wrong} of {read} readings were wrong"
        assert sure >= 0.75 * total, f"{name}: only {sure} of {total} tokens are read ahead"


def test_only_what_changed_is_tokenized_again(demo: FolderPrompter, monkeypatch: pytest.MonkeyPatch) -> None:
    text = LANGUAGES["en"] * 40
    typed = demo.typed(asked())
    typed.read(text)
    sizes: list[int] = []
    places = demo._tokenizer.encode_places
    monkeypatch.setattr(
        demo._tokenizer, "encode_places", lambda part: (sizes.append(len(part)), places(part))[1]
    )
    for count in range(1, 30):
        now = text + "and then the wheel stood still"[:count]
        found = typed.read(now)
    assert max(sizes) < 400 and len(sizes) == 29
    assert tuple(found.ids) == demo.prepare(with_last(asked(), now)).ids[: len(found.ids)]


@pytest.mark.parametrize("text", ["", "hello", "hello wor", "hello world ", "你" * 200, " " * 200, "a\n\n"])
def test_the_last_word_is_held_back(text: str) -> None:
    end = settled(text)
    assert 0 <= len(text) - end <= 64
    assert not text[:end].strip() or not text[end - 1].isspace() or len(text) - end >= 32


def test_a_spelled_special_token_ends_what_is_read(demo: FolderPrompter) -> None:
    before = "the water wheel turns "
    for text in (before + "<|im_end|> and more of it", before + "<|im_start|>"):
        typed = demo.typed(asked())
        found = typed.read(text)
        one = demo.prepare(with_last(asked(), text)).ids
        assert tuple(found.ids) == one[: len(found.ids)] and found.characters <= len(before)
        again = typed.read(before + "and goes on turning")
        assert again.characters > len(before) - 8


def test_a_conversation_that_spells_one_is_read_whole(demo: FolderPrompter) -> None:
    ask = asked((Message("user", "what is <|im_end|>?"), Message("assistant", "a token")))
    typed = demo.typed(ask)
    found = typed.read("and what is a wheel of water")
    one = demo.prepare(with_last(ask, "and what is a wheel of water")).ids
    assert tuple(found.ids) == one[: len(found.ids)] and len(one) - len(found.ids) < 20
    assert isinstance(typed, PiecedPrompt) and isinstance(typed._whole, WholePrompt)


def test_a_template_that_changes_the_text_is_read_whole(
    demo: FolderPrompter, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = demo._written
    monkeypatch.setattr(
        demo,
        "_written",
        lambda ask: written(with_last(ask, ask.messages[-1].content.upper())),  # type: ignore[union-attr]
    )
    typed = demo.typed(asked())
    found = typed.read("a wheel and another wheel")
    one = demo.prepare(with_last(asked(), "a wheel and another wheel")).ids
    assert tuple(found.ids) == one[: len(found.ids)] and found.characters > 10
    assert isinstance(typed, PiecedPrompt) and typed._whole is not None


def test_the_whole_reading_knows_what_is_certain_too(demo: FolderPrompter) -> None:
    for seed in range(6):
        typed = WholePrompt(demo, asked())
        for text in script(random.Random(seed), 8):
            found = typed.read(text)
            one = demo.prepare(with_last(asked(), text)).ids
            assert tuple(found.ids) == one[: len(found.ids)], text
            assert len(text) - found.characters <= 64


@pytest.mark.parametrize("place", [0, 5])
def test_pictures_are_read_once_wherever_they_stand(place: int) -> None:
    seeing = FolderPrompter(demo_folder(), 1 << 16, 1 << 16, 4096, Blueprint(demo_folder()).images(64))
    shown = (Picture(place, png(noise(40, 60, 1))), Picture(place, png(noise(60, 40, 2))))
    ask = Ask(messages=(*HISTORY, Message("user", "what " * 2, pictures=shown)))
    typed = seeing.typed(ask)
    for text in ("what is", "what is it? A mill", "what is it? A river that turns a mill, and "):
        found = typed.read(text)
        one = seeing.prepare(with_last(ask, text))
        assert tuple(found.ids) == one.ids[: len(found.ids)]
        kept = tuple((span.start, span.image.key) for span in found.spans)
        assert kept == tuple((span.start, span.image.key) for span in one.spans)[: len(kept)]
        assert all(span.end <= len(found.ids) for span in found.spans)
    assert len(kept) == 2 and len(one.ids) - len(found.ids) < 24
    assert isinstance(typed, PiecedPrompt) and (typed._whole is None) == (place == 0)


def test_every_language_is_in_the_scripts() -> None:
    seen: set[str] = set()
    for seed in range(40):
        for text in script(random.Random(seed), 16):
            seen.update(text)
    for words in (*LANGUAGES.values(), *EMOJI):
        assert set(words) <= seen


def test_asks_differ_in_their_last_message_alone() -> None:
    ask = asked(max_tokens=3)
    assert dataclasses.replace(with_last(ask, "x"), messages=ask.messages) == ask
