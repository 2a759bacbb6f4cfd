"""An answer that goes on with the last message: the ids of transformers, nothing of the text lost or doubled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from headrace.runtime.interface import AnswerShape, Ask, Message, Picture, ToolCall, ToolChoice
from headrace.runtime.parsers.families import THINK
from headrace.runtime.parsers.pieces import ReasoningPiece, TextPiece
from headrace.runtime.prompt import FolderPrompter
from headrace.runtime.refusal import Refusal
from headrace.runtime.seam import Seam, SeamLost
from headrace.runtime.woven import Woven, spans_of

SESSION = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=20) | st.text("  \n\t▁ hello you é", max_size=30)
SPECIALS = ["<|im_start|>", "<|im_end|>"]
THINKING = """{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' and message.reasoning_content %}
{{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}{% endif %}
{{- message.content.lstrip('\\n') + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"""


def turns(*texts: str) -> tuple[Message, ...]:
    return tuple(Message("assistant" if at % 2 else "user", text) for at, text in enumerate(texts))


def theirs(model: Any, texts: tuple[str, ...], **how: bool) -> list[int]:
    chat = [{"role": turn.role, "content": turn.content} for turn in turns(*texts)]
    return list(model.theirs.apply_chat_template(chat, tokenize=True, return_dict=False, **how))


@pytest.fixture
def thinking(
    new_folder: Callable[..., Path], make_tokenizer: Callable[..., Tokenizer]
) -> tuple[FolderPrompter, Tokenizer]:
    tokenizer = make_tokenizer("byte_level", SPECIALS, ["<think>", "</think>"], regex=True)
    config = {"eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    return FolderPrompter(new_folder(tokenizer, config, THINKING), 1000, 1000), tokenizer


@SESSION
@given(question=TEXT, begun=TEXT.filter(lambda text: text.strip()))
def test_the_ids_are_those_of_transformers(chat_model: Any, question: str, begun: str) -> None:
    if any(chat_model.prompter._tokenizer.spells_special(text) for text in (question, begun)):
        return
    ask = Ask(messages=turns(question, begun), ending="open")
    assert list(chat_model.prompter.prepare(ask).ids) == theirs(
        chat_model, (question, begun), continue_final_message=True
    )


def test_a_prompt_without_an_opening_ends_with_its_last_message(chat_model: Any) -> None:
    for texts in (("hello",), ("hello", "the river", "wave")):
        closed = chat_model.prompter.prepare(Ask(messages=turns(*texts), ending="closed"))
        assert list(closed.ids) == theirs(chat_model, texts, add_generation_prompt=False)


def test_what_is_continued_shares_its_beginning_with_the_finished_turn(chat_model: Any) -> None:
    """So the pages of an earlier turn are found again; the last words may be cut into other tokens."""
    open_ids = chat_model.prompter.prepare(Ask(messages=turns("hello", "the river"), ending="open")).ids
    whole = chat_model.prompter.prepare(Ask(messages=turns("hello", "the river", "wave"))).ids
    sure = len(chat_model.prompter.prepare(Ask(messages=turns("hello"), ending="closed")).ids)
    assert len(open_ids) > sure
    assert whole[:sure] == open_ids[:sure]


def test_special_tokens_in_the_continued_text_stay_text(thinking: tuple[FolderPrompter, Tokenizer]) -> None:
    prompter, tokenizer = thinking
    ids = prompter.prepare(Ask(messages=turns("a", "b<|im_end|>c<|im_start|>"), ending="open")).ids
    assert [
        tokenizer.decode([each], skip_special_tokens=False) for each in ids if each in special(tokenizer)
    ] == [
        "<|im_start|>",
        "<|im_end|>",
        "<|im_start|>",
    ]
    assert tokenizer.decode(ids, skip_special_tokens=False).endswith("b<|im_end|>c<|im_start|>")


def special(tokenizer: Tokenizer) -> set[int]:
    return {tokenizer.token_to_id(each) for each in SPECIALS}


def test_leading_spaces_of_what_is_new_are_kept(models_by_name: dict[str, Any]) -> None:
    """A tokenizer that puts a space in front of every text takes it off only where a text begins."""
    model = models_by_name["llama2"]
    token = model.tokenizer.token_to_id("▁hello")
    for ending, said in (("answer", "hello"), ("open", " hello")):
        cutter = model.prompter.cutter(Ask(messages=turns("a", "b"), ending=ending))
        assert cutter.push(token) + cutter.finish() == said


def test_stop_strings_are_looked_for_in_what_is_new(models_by_name: dict[str, Any]) -> None:
    model = models_by_name["qwen"]
    for begun, stopped in (("so: EN", False), ("so: ", True)):
        cutter = model.prompter.cutter(Ask(messages=turns("a", begun), ending="open", stop=("END",)))
        text = "D and on" if not stopped else "END and on"
        said = "".join(cutter.push(token) for token in model.prompter.tokenize(text)) + cutter.finish()
        assert (cutter.matched, said) == (("END", "") if stopped else (None, text))


def split(prompter: FolderPrompter, ask: Ask, text: str) -> list[Any]:
    splitter = prompter.splitter(ask, prompter.prepare(ask))
    assert splitter is not None
    return splitter.push(text) + splitter.finish()


def test_a_text_that_is_continued_reasons_no_more(thinking: tuple[FolderPrompter, Tokenizer]) -> None:
    prompter, _ = thinking
    ask = Ask(messages=turns("a", "So"), ending="open")
    assert not prompter.prepare(ask).thinking
    assert prompter.splitter(ask, prompter.prepare(ask)) is None, "all that comes is text"
    assert prompter.prepare(Ask(messages=turns("a"))).thinking


def test_reasoning_alone_is_continued_as_reasoning(thinking: tuple[FolderPrompter, Tokenizer]) -> None:
    prompter, tokenizer = thinking
    ask = Ask(messages=(Message("user", "a"), Message("assistant", "", reasoning="I see")), ending="open")
    prompt = prompter.prepare(ask)
    assert prompt.thinking
    assert tokenizer.decode(prompt.ids, skip_special_tokens=False).endswith("assistant\n<think>\nI see")
    assert split(prompter, ask, " it.\n</think>\n\nYes") == [ReasoningPiece(" it."), TextPiece("Yes")]
    whole = Ask(messages=(Message("user", "a"), Message("assistant", "So", reasoning="I see")), ending="open")
    assert not prompter.prepare(whole).thinking
    text = tokenizer.decode(prompter.prepare(whole).ids, skip_special_tokens=False)
    assert text.endswith("<think>\nI see\n</think>\n\nSo")


def test_a_text_that_opens_reasoning_is_continued_as_reasoning(
    thinking: tuple[FolderPrompter, Tokenizer],
) -> None:
    prompter, _ = thinking
    ask = Ask(messages=turns("a", "<think>\nI see"), ending="open")
    assert split(prompter, ask, " it.</think>Yes") == [ReasoningPiece(" it."), TextPiece("Yes")]
    closed = Ask(messages=turns("a", "<think>x</think>So"), ending="open")
    assert not prompter.prepare(closed).thinking


def test_a_shape_is_that_of_what_is_new(thinking: tuple[FolderPrompter, Tokenizer]) -> None:
    prompter, tokenizer = thinking
    ask = Ask(messages=turns("a", "It is "), ending="open", shape=AnswerShape(regex="yes|no"))
    grammar = prompter.prepare(ask).grammar
    assert grammar is not None
    mask = grammar.mask()
    first = {
        tokenizer.decode([each])
        for each in range(tokenizer.get_vocab_size())
        if mask[each // 8] >> each % 8 & 1
    }
    assert first <= {"y", "ye", "yes", "n", "no"} and {"y", "n"} <= first, "no reasoning in front of it"


def test_pictures_of_the_last_message_come_before_its_text() -> None:
    turn = {"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "so"}]}
    seam = Seam(Message("assistant", "so", pictures=(Picture(0, b"x"),)))
    marked = seam.marked(turn)["content"]
    assert marked[0] == {"type": "image"} and seam.cut("x" + marked[1]["text"]) == "xso"
    bare = seam.marked({"role": "assistant", "content": [{"type": "image"}]})["content"]
    assert len(bare) == 2 and seam.cut(bare[1]["text"] + "end") == ""


def test_a_cut_keeps_origins_and_trims_as_the_template_does() -> None:
    seam = Seam(Message("assistant", "so "))
    marked = seam.marked({"role": "assistant", "content": "so "})["content"]
    rendered = Woven("<a>", ((0, 3),)) + marked + Woven("<b>", ((0, 3),))
    assert seam.cut(rendered) == "<a>so " and spans_of(seam.cut(rendered)) == ((0, 3),)
    assert seam.cut(f"<a>{marked.strip()}<b>") == "<a>so", "as a template that trims would have it"
    for lost in ("<a>so <b>", marked + marked):
        with pytest.raises(SeamLost):
            seam.cut(lost)
    assert not Seam(Message("assistant", "x")).thinking(None) and THINK.begin


@pytest.mark.parametrize(
    "template", ["{% for m in messages %}{{ m.role }}{% endfor %}", "{{ messages }}{{ messages }}"]
)
def test_a_template_that_hides_the_message_is_named(
    template: str, new_folder: Callable[..., Path], make_tokenizer: Callable[..., Tokenizer]
) -> None:
    prompter = FolderPrompter(
        new_folder(make_tokenizer("byte_level", SPECIALS, [], regex=True), {}, template), 1000, 1000
    )
    with pytest.raises(Refusal, match="can be continued") as caught:
        prompter.prepare(Ask(messages=turns("a", "b"), ending="open"))
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "messages")


def test_calls_are_neither_continued_nor_demanded() -> None:
    called = Message("assistant", "", calls=(ToolCall("c", "f", "{}"),))
    for fields, param in (
        ({"messages": (Message("user", "a"), called)}, "messages"),
        ({"messages": turns("a", "b"), "tool_choice": ToolChoice("required")}, "tool_choice"),
    ):
        with pytest.raises(Refusal) as caught:
            Ask(**fields, ending="open")  # type: ignore[arg-type]
        assert (caught.value.code, caught.value.param) == ("invalid_value", param)
