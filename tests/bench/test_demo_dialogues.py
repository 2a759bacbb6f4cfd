"""What the demo model learns from: every kind is sound, split, repeatable, and written as its template writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import numpy as np
import pytest
from jinja2 import Environment
from tokenizers import Tokenizer

from headrace.bench.demo import charts, layout, numbers, pictures, shapes, stories
from headrace.bench.demo.canvas import CELL, FEWEST_PIXELS, MOST_PATCHES, MOST_PIXELS, patches
from headrace.bench.demo.dialogue import Dialogue, Message
from headrace.bench.demo.draw import HELD_OUT_ONE_IN, Draw, held_out
from headrace.bench.demo.feed import IGNORED, Form, make
from headrace.bench.demo.kinds import (
    EXCHANGES,
    KINDS,
    long_dialogue,
    picture_dialogue,
    question,
    text_dialogue,
)
from headrace.bench.demo.layout import MARKERS, SPECIALS, TEMPLATE, segments
from headrace.bench.demo.written import Writer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return layout.train_tokenizer(0, 1500)


@pytest.fixture(scope="module")
def writer(tokenizer: Tokenizer) -> Writer:
    return Writer(tokenizer)


def several(kind: str, count: int = 12) -> Iterator[Dialogue]:
    draw = Draw(11, evaluation=True)
    for _ in range(count):
        yield question(kind, draw)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_asks_and_answers(kind: str) -> None:
    for dialogue in several(kind):
        assert dialogue.messages[-1].role == "assistant"
        assert dialogue.score(dialogue.expected), dialogue.expected
        assert not dialogue.score(dialogue.expected + " x")
        for at, message in enumerate(dialogue.messages):
            assert message.spoken or message.pictures, "only a picture may come without a word"
            assert message.spoken == message.spoken.strip()
            told = re.sub(r"</?tool_call>", "", message.spoken) if message.call else message.spoken
            assert not any(each in told for each in SPECIALS + MARKERS)
            before = dialogue.messages[at - 1].role if at else "system"
            assert (message.role == "assistant") == (before in ("user", "tool"))
            for picture in message.pictures:
                assert picture.width % CELL == picture.height % CELL == 0
                assert FEWEST_PIXELS <= picture.width * picture.height <= MOST_PIXELS


def test_the_same_seed_says_the_same_and_another_one_something_else() -> None:
    def said(seed: int) -> list[str]:
        draw = Draw(seed)
        return [message.spoken for _ in range(50) for message in text_dialogue(draw).messages]

    assert said(1) == said(1) != said(2)


def test_values_of_the_evaluation_never_occur_in_training() -> None:
    for evaluation in (False, True):
        draw = Draw(5, evaluation)
        for _ in range(300):
            exchange = numbers.add(draw)
            one, other = exchange.answer.split(" = ")[0].split(" + ")
            assert held_out((int(one), int(other))) == evaluation
            scene = draw.unseen(lambda draw=draw: shapes.compose(draw))
            assert held_out(scene) == evaluation
    share = sum(held_out(each) for each in range(20_000)) / 20_000
    assert abs(share - 1 / HELD_OUT_ONE_IN) < 0.01


def test_arithmetic_is_right() -> None:
    draw = Draw(3)
    for kind in ("addition", "subtraction", "multiplication", "word problems"):
        for _ in range(200):
            answer = EXCHANGES[kind][0](draw).answer.split(". ")[0].replace("×", "*")
            sides = answer.split(" = ")
            assert len(sides) > 1 and len({eval(side) for side in sides}) == 1, answer


def test_a_wrong_story_is_wrong() -> None:
    dialogue = stories.story(Draw(4))
    told = dialogue.expected
    assert dialogue.score(told)
    assert not dialogue.score(told.removesuffix(" The end."))
    hero = re.search(r"was an? \w+ (\w+) that", told)
    assert hero is not None
    assert not dialogue.score(told.replace(f"One day the {hero[1]} ", "One day the zebu "))


def test_what_is_drawn_is_what_is_told() -> None:
    """A lone circle is where its place says, and in its colour."""
    draw = Draw(9)
    for cell in range(9):
        scene = shapes.Shapes((shapes.Piece("circle", "red", cell),), "white")
        pixels = np.asarray(shapes.render(draw, scene)).astype(int)
        red = (pixels[..., 0] > 150) & (pixels[..., 1] < 110) & (pixels[..., 2] < 110)
        rows, columns = red.nonzero()
        middle = (rows.mean() / pixels.shape[0], columns.mean() / pixels.shape[1])
        assert (int(middle[0] * 3), int(middle[1] * 3)) == divmod(cell, 3)


def test_bars_are_as_high_as_their_values() -> None:
    bars = charts.Bars((10, 5), ("red", "red"))
    pixels = np.asarray(charts.render_bars(Draw(2), bars)).astype(int)
    red = (pixels[..., 0] > 170) & (pixels[..., 1] < 110) & (pixels[..., 2] < 110)
    half = pixels.shape[1] // 2
    high, low = red[:, :half].any(1).sum(), red[:, half:].any(1).sum()
    assert abs(low / high - 0.5) < 0.05


def test_patches_are_cut_as_the_model_reads_them() -> None:
    image = pictures.PICTURES["read a number"][0](Draw(1))[0]
    cut, rows, columns = patches(image)
    pixels = np.asarray(image)
    assert len(cut) == rows * columns <= MOST_PATCHES
    second = pixels[0:16, 16:32].transpose(2, 0, 1).reshape(-1)  # right of the first
    third = pixels[16:32, 0:16].transpose(2, 0, 1).reshape(-1)  # below it
    assert np.array_equal(cut[1], second) and np.array_equal(cut[2], third)


def rendered(dialogue: Dialogue) -> str:
    """The dialogue through the Jinja template, as an engine renders it."""
    environment = Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    messages = []
    for message in dialogue.messages:
        parts = [*({"type": "image"} for _ in message.pictures), {"type": "text", "text": message.text}]
        one: dict[str, object] = {
            "role": message.role,
            "content": parts if message.pictures else message.text,
        }
        if message.call is not None:
            one["tool_calls"] = [{"function": {"name": message.call[0], "arguments": message.call[1]}}]
        messages.append(one)
    tools = list(dialogue.tools) or None
    return environment.from_string(TEMPLATE).render(
        messages=messages, tools=tools, add_generation_prompt=False
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_learned_is_what_the_template_writes(kind: str, tokenizer: Tokenizer, writer: Writer) -> None:
    for dialogue in several(kind, 3):
        (written,) = writer.write([dialogue])
        pad = tokenizer.token_to_id(layout.IMAGE)
        ids = written.ids.tolist()
        once = [each for at, each in enumerate(ids) if each != pad or ids[at - 1] != pad]
        assert once == tokenizer.encode(rendered(dialogue), add_special_tokens=False).ids
        answer = ids[written.answer_start : -1]
        assert tokenizer.decode(answer[:-1], skip_special_tokens=True) == dialogue.expected
        assert answer[-1] == writer.stop
        assert written.learned[written.answer_start : -1].all() and not written.learned[-1]


def test_several_results_of_tools_share_one_turn() -> None:
    dialogue = Dialogue(
        [Message("user", "a"), Message("tool", "1"), Message("tool", "2"), Message("user", "b")]
    )
    shown = "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"
    assert rendered(dialogue) == (
        f"<|im_start|>user\na<|im_end|>\n<|im_start|>user\n{shown}<|im_end|>\n<|im_start|>user\nb<|im_end|>\n"
    )


def test_every_byte_and_digit_is_a_token(tokenizer: Tokenizer) -> None:
    for text in ("12345", "a\x00\n~é你🎉", " 7 8"):
        encoded = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text
    assert len(tokenizer.encode("90210", add_special_tokens=False).ids) == 5
    assert tokenizer.get_vocab_size() <= layout.VOCABULARY


def test_a_batch_holds_its_dialogues_and_their_pictures(writer: Writer) -> None:
    form = Form(4, 512, 6, 0.2)
    packed = make(1, 7, writer, form)
    assert (packed.dialogue > 0).mean() > 0.8
    learned = packed.targets != IGNORED
    assert 0.1 < learned.mean() < 0.8
    for row in range(form.rows):
        for number in range(1, packed.dialogue[row].max() + 1):
            here = packed.dialogue[row] == number
            assert packed.ids[row, here][0] == writer.start
            assert (packed.positions[:, row, here][:, 0] == 0).all()
    rows, columns = np.nonzero(learned)
    assert np.array_equal(packed.targets[rows, columns], packed.ids[rows, columns + 1])
    pad = writer.write([next(several("pie chart", 1))])[0].shown[0].start
    assert pad > 0
    used = packed.places[packed.places < form.rows * form.length]
    image = packed.ids.reshape(-1)[used]
    assert len(set(image.tolist())) == 1 and len(used) == (packed.ids == image[0]).sum()


def test_dialogues_fit_into_their_context(writer: Writer) -> None:
    draw = Draw(8)
    lengths = [len(each.ids) for each in writer.write([text_dialogue(draw) for _ in range(200)])]
    lengths += [len(each.ids) for each in writer.write([picture_dialogue(draw) for _ in range(40)])]
    assert np.mean([length <= 512 for length in lengths]) > 0.9
    assert len(list(segments(long_dialogue(draw, 10)))) >= 20
