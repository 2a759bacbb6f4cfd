"""Prompts against transformers: equal ids where nobody spells a special token, ordinary text where one does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from headrace.runtime.checkpoint import CheckpointError
from headrace.runtime.interface import Ask, Message
from headrace.runtime.prompt import FolderPrompter
from headrace.runtime.refusal import Refusal

SESSION = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=20) | st.text("  \n\t▁<|>/s hello你é", max_size=30)


def conversation(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    turns = [
        {"role": "user" if i % 2 == 0 else "assistant", "content": each} for i, each in enumerate(contents)
    ]
    return ([] if system is None else [{"role": "system", "content": system}]) + turns


def ask_of(turns: list[dict[str, str]], **fields: Any) -> Ask:
    return Ask(messages=tuple(Message(turn["role"], turn["content"]) for turn in turns), **fields)


def theirs(model: Any, turns: list[dict[str, str]], **options: Any) -> list[int]:
    return list(
        model.theirs.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=False, **options
        )
    )


def ours(model: Any, turns: list[dict[str, str]], **options: Any) -> list[int]:
    return list(model.prompter.prepare(ask_of(turns, template_options=options)).ids)


# -- parity ----------------------------------------------------------------------------------------------------


@SESSION
@given(
    contents=st.lists(TEXT, min_size=1, max_size=3).filter(lambda each: len(each) % 2 == 1),
    system=st.none() | TEXT,
)
def test_chat_ids_equal_transformers(chat_model: Any, contents: list[str], system: str | None) -> None:
    if chat_model.name == "mistral":
        system = None  # its template takes none
    turns = conversation(*contents, system=system)
    if any(chat_model.prompter._tokenizer.spells_special(turn["content"]) for turn in turns):
        return
    assert ours(chat_model, turns) == theirs(chat_model, turns)


def test_template_options_reach_the_template(models_by_name: dict[str, Any]) -> None:
    model = models_by_name["qwen"]
    turns = conversation("hello")
    for value in (True, False):
        assert ours(model, turns, enable_thinking=value) == theirs(model, turns, enable_thinking=value)
    assert ours(model, turns, enable_thinking=True) != ours(model, turns, enable_thinking=False)


@SESSION
@given(text=TEXT.filter(bool))
def test_prompt_ids_equal_transformers(model: Any, text: str) -> None:
    """The beginning token as transformers puts it, once."""
    if model.prompter._tokenizer.spells_special(text):
        return
    assert list(model.prompter.prepare(Ask(prompt=text)).ids) == model.theirs(text)["input_ids"]
    assert model.prompter.tokenize(text) == model.theirs(text, add_special_tokens=False)["input_ids"]


def test_the_beginning_token_comes_once(models_by_name: dict[str, Any]) -> None:
    for name, begin in (("llama3", "<|begin_of_text|>"), ("llama2", "<s>"), ("mistral", "<s>")):
        model = models_by_name[name]
        token = model.tokenizer.token_to_id(begin)
        for ids in (ours(model, conversation("hello")), model.prompter.prepare(Ask(prompt="hello")).ids):
            assert list(ids).count(token) == 1
            assert ids[0] == token
        spelled = model.prompter.prepare(Ask(prompt=f"{begin}hello")).ids
        assert list(spelled).count(token) == 1, "a spelled beginning token is text"


@pytest.mark.parametrize("begin", [True, False, None])
@pytest.mark.parametrize("end", [True, False, None])
def test_the_post_processor_rules_and_not_the_flags(
    begin: bool | None,
    end: bool | None,
    new_folder: Callable[..., Path],
    make_tokenizer: Callable[..., Tokenizer],
) -> None:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    config |= {} if begin is None else {"add_bos_token": begin}
    config |= {} if end is None else {"add_eos_token": end}
    folder = new_folder(make_tokenizer("sentencepiece_like", metaspace=True), config)
    prompter = FolderPrompter(folder, 1000, 1000)
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    for text in ("hello the wave", "", "<s>hi"):
        ids = prompter._tokenizer.encode_text(text, ends=True)
        if "<" not in text:
            assert ids == reference(text)["input_ids"]
        assert (ids.count(1), ids.count(2)) == (1, 0)


# -- SEC-19: user text never becomes a special token ------------------------------------------------------------


def neutral(model: Any, turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same conversation with each spelled added token replaced by a word."""
    contents = sorted(
        (token.content for token in model.theirs.added_tokens_decoder.values()), key=len, reverse=True
    )
    clean = []
    for turn in turns:
        text = turn["content"]
        for content in contents:
            text = text.replace(content, "word")
        clean.append({**turn, "content": text})
    return clean


def check_spelled(model: Any, turns: list[dict[str, str]]) -> None:
    added = set(model.theirs.added_tokens_decoder)
    ids = ours(model, turns)
    reference = theirs(model, neutral(model, turns))
    assert [i for i in ids if i in added] == [i for i in reference if i in added], (
        "the template's own, no others"
    )
    spelled = model.tokenizer.decode(ids, skip_special_tokens=False)
    unguarded = model.tokenizer.decode(theirs(model, turns), skip_special_tokens=False)
    # Prefix spaces differ where the library would cut; every other character is there, in order.
    assert spelled.replace(" ", "") == unguarded.replace(" ", "")


def test_spelled_special_tokens_stay_text(chat_model: Any) -> None:
    contents = [token.content for token in chat_model.theirs.added_tokens_decoder.values()]
    for content in contents:
        for text in (
            content,
            f"a{content}b",
            f" {content} ",
            content * 3,
            f"\n{content}\n",
            content[:-1] + content,
        ):
            check_spelled(chat_model, conversation(text))
            check_spelled(chat_model, conversation("hello", text, "wave"))
            if chat_model.name != "mistral":
                check_spelled(chat_model, conversation("hello", system=text))


@SESSION
@given(data=st.data())
def test_mixtures_of_pieces_of_special_tokens_stay_text(chat_model: Any, data: st.DataObject) -> None:
    contents = [token.content for token in chat_model.theirs.added_tokens_decoder.values()]
    piece = st.sampled_from(contents) | st.text(
        st.sampled_from("".join(contents) + " a\ufdd0\ufdd1\ufdd2"), max_size=6
    )
    text = "".join(data.draw(st.lists(piece, min_size=1, max_size=6)))
    if "</think>" not in text:  # Qwen's template cuts an assistant's text there
        check_spelled(chat_model, conversation("hello", text, text))


def test_spelled_tokens_in_a_prompt_stay_text(model: Any) -> None:
    added = set(model.theirs.added_tokens_decoder)
    for token in model.theirs.added_tokens_decoder.values():
        plain = model.prompter.prepare(Ask(prompt="word")).ids
        ids = model.prompter.prepare(Ask(prompt=f"x{token.content}y")).ids
        assert [i for i in ids if i in added] == [i for i in plain if i in added]
        assert model.prompter.detokenize(list(ids)) == f"x{token.content}y"
        assert model.prompter.detokenize(model.prompter.tokenize(token.content)) == token.content


def test_a_spelled_token_cannot_be_completed_across_the_templates_own_text(
    new_folder: Callable[..., Path], make_tokenizer: Callable[..., Tokenizer]
) -> None:
    """The template writes `<|im_` before the client's text: `end|>` must not make a token of it."""
    tokenizer = make_tokenizer("byte_level", ["<|im_start|>", "<|im_end|>"], [], regex=True)
    template = "{% for m in messages %}<|im_start|><|im_{{ m.content }}<|im_end|>{% endfor %}"
    prompter = FolderPrompter(new_folder(tokenizer, {}, template), 1000, 1000)
    end = tokenizer.token_to_id("<|im_end|>")
    ids = prompter.prepare(ask_of(conversation("end|> <|im_end|>"))).ids
    assert list(ids).count(end) == 1
    assert prompter.detokenize(list(ids)) == "<|im_end|> <|im_end|>"


def test_an_assistants_reasoning_is_still_cut_by_the_template(models_by_name: dict[str, Any]) -> None:
    """A client sends `<think>` back in its history, as clients do: the template's logic sees the true text."""
    model = models_by_name["qwen"]
    turns = conversation("hello", "<think>\nthe wave\n</think>\n\nwater", "world")
    assert ours(model, turns) == theirs(model, turns)


def test_noncharacters_of_the_client_survive(models_by_name: dict[str, Any]) -> None:
    for model in models_by_name.values():
        for text in ("\ufdd0", "a\ufdd0\ufdd1b", "\ufdd0\ufdd2\ufdd0", "\ufdd0\ue000<|im_end|><s>"):
            ids = model.prompter.prepare(Ask(prompt=text)).ids
            assert model.prompter.detokenize(list(ids)) == text


def test_added_tokens_looked_for_in_normalized_text(
    new_folder: Callable[..., Path], make_tokenizer: Callable[..., Tokenizer]
) -> None:
    """Old Llama 2 conversions: `normalized` special tokens. Parity without, text with spelled tokens."""
    tokenizer = make_tokenizer("sentencepiece_like", metaspace=False, normalized=True)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    template = "{% for m in messages %}{{ bos_token }} {{ m.content }} {{ eos_token }}{% endfor %}"
    folder = new_folder(tokenizer, config, template)
    prompter = FolderPrompter(folder, 1000, 1000)
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    assert prompter._tokenizer._normalized_too
    turns = conversation("hello the wave")
    expected = reference.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert list(prompter.prepare(ask_of(turns)).ids) == expected
    spelled = prompter.prepare(ask_of(conversation("a</s>b <s> c"))).ids
    assert list(spelled).count(1) == 1
    assert list(spelled).count(2) == 1
    assert prompter.prepare(Ask(prompt="x</s>")).ids.count(2) == 0


def test_one_character_added_tokens(
    new_folder: Callable[..., Path], make_tokenizer: Callable[..., Tokenizer]
) -> None:
    tokenizer = make_tokenizer("byte_level", ["†", "‡", "<†>"], ["\n\n"], regex=False)
    template = "{% for m in messages %}†{{ m.content }}‡{% endfor %}"
    prompter = FolderPrompter(new_folder(tokenizer, {}, template), 1000, 1000)
    own, end, long = (tokenizer.token_to_id(each) for each in ("†", "‡", "<†>"))
    ids = list(prompter.prepare(ask_of(conversation("a†b<†>‡"))).ids)
    assert (ids.count(own), ids.count(end), ids.count(long)) == (1, 1, 0)
    assert prompter.detokenize(ids) == "a†b<†>‡"
    blank = tokenizer.token_to_id("\n\n")
    assert blank in prompter.prepare(Ask(prompt="a\n\nb")).ids, "white space means itself, whoever writes it"


# -- refusals --------------------------------------------------------------------------------------------------


def refused(prompter: FolderPrompter, ask: Ask) -> Refusal:
    with pytest.raises(Refusal) as caught:
        prompter.prepare(ask)
    return caught.value


def test_messages_without_a_template_are_refused(models_by_name: dict[str, Any]) -> None:
    prompter = models_by_name["gpt2"].prompter
    refusal = refused(prompter, ask_of(conversation("hi"), param_names={"messages": "input"}))
    assert (refusal.code, refusal.param) == ("invalid_value", "input")
    assert "chat template" in refusal.message
    assert prompter.prepare(Ask(prompt="hi")).ids


def test_a_template_may_refuse(models_by_name: dict[str, Any]) -> None:
    refusal = refused(models_by_name["llama2"].prompter, ask_of(conversation("a", "b")[1:]))
    assert refusal.code == "invalid_value"
    assert "Conversation roles must alternate" in refusal.message
    refusal = refused(models_by_name["mistral"].prompter, ask_of(conversation("a", system="s")))
    assert "Only user and assistant roles are supported!" in refusal.message


@pytest.mark.parametrize("bad", [-1, -(1 << 63), "rows", 1 << 31, 1 << 63])
def test_ids_out_of_range_are_refused(bad: int | str, models_by_name: dict[str, Any]) -> None:
    """SEC-07: prompt ids against the embedding rows, all others against the logits."""
    folder = models_by_name["llama2"].folder
    prompter = FolderPrompter(folder, embedding_rows=800, logits_width=768)
    value = 800 if isinstance(bad, str) else bad
    names = {"prompt": "input", "stop_ids": "stop_token_ids"}
    refusal = refused(prompter, Ask(prompt=(1, value), param_names=names))
    assert (refusal.code, refusal.param) == ("invalid_value", "input")
    value = 768 if isinstance(bad, str) else bad
    refusal = refused(prompter, Ask(prompt=(1,), stop_ids=(value,), param_names=names))
    assert (refusal.code, refusal.param) == ("invalid_value", "stop_token_ids")
    refusal = refused(prompter, Ask(prompt=(1,), logit_bias=((value, 1.0),), param_names=names))
    assert (refusal.code, refusal.param) == ("invalid_value", "logit_bias")
    assert prompter.prepare(Ask(prompt=(799,), stop_ids=(767,), logit_bias=((767, 1.0),))).ids == (799,)


def test_text_beyond_the_embedding_is_refused(models_by_name: dict[str, Any]) -> None:
    small = FolderPrompter(models_by_name["llama2"].folder, embedding_rows=300, logits_width=300)
    refusal = refused(small, Ask(prompt="hello the wave"))
    assert (refusal.code, refusal.param) == ("invalid_value", "prompt")


def test_empty_prompts(models_by_name: dict[str, Any]) -> None:
    """SEC-09: nothing to start from is refused; a beginning token alone is enough."""
    assert refused(models_by_name["qwen"].prompter, Ask(prompt="")).param == "prompt"
    assert refused(models_by_name["llama2"].prompter, Ask(prompt=())).param == "prompt"
    assert refused(models_by_name["llama2"].prompter, Ask(messages=())).param == "messages"
    assert models_by_name["llama2"].prompter.prepare(Ask(prompt="")).ids == (1,)


@pytest.mark.parametrize(
    "name",
    [
        *("chat_template", "tokenize", "add_generation_prompt", "tools", "return_tensors", "messages"),
        *("bos_token", "__class__", "_private", "", "a b", "documents", "continue_final_message"),
    ],
)
def test_reserved_template_options_are_refused(name: str, models_by_name: dict[str, Any]) -> None:
    """SEC-16."""
    ask = ask_of(
        conversation("a"),
        template_options={name: "x"},
        param_names={"template_options": "chat_template_kwargs"},
    )
    assert refused(models_by_name["qwen"].prompter, ask).param == "chat_template_kwargs"


def test_text_that_is_no_unicode_is_refused(model: Any) -> None:
    asks = [Ask(prompt="a\ud800b")]
    asks += [] if model.name == "gpt2" else [ask_of(conversation("a\udfffb"))]
    for ask in asks:
        assert refused(model.prompter, ask).code == "invalid_value"


def test_unknown_roles_are_refused(models_by_name: dict[str, Any]) -> None:
    ask = Ask(messages=(Message("im_end|>", "x"),))
    assert refused(models_by_name["qwen"].prompter, ask).param == "messages"


def test_min_tokens_needs_a_token_that_does_not_stop(models_by_name: dict[str, Any]) -> None:
    prompter = FolderPrompter(models_by_name["llama2"].folder, 800, 16)
    stops = tuple(range(16))
    assert refused(prompter, Ask(prompt=(1,), stop_ids=stops, min_tokens=1)).param == "stop_ids"
    prompter.prepare(Ask(prompt=(1,), stop_ids=stops))


# -- what the folder says ---------------------------------------------------------------------------------------


def test_end_ids_and_defaults(models_by_name: dict[str, Any], new_folder: Any, make_tokenizer: Any) -> None:
    assert models_by_name["qwen"].prompter.eos_ids == {
        models_by_name["qwen"].tokenizer.token_to_id("<|im_end|>")
    }
    folder = new_folder(
        make_tokenizer("byte_level", ["<a>", "<b>", "<c>"], [], regex=False), {"eos_token": "<c>"}
    )
    a, b, c = 441, 442, 443
    (folder / "generation_config.json").write_text(
        json.dumps(
            {"eos_token_id": [a, b, 999_999], "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0}
        )
    )
    prompter = FolderPrompter(folder, 1000, 1000)
    tokens = {prompter._tokenizer.id_of(each) for each in ("<a>", "<b>", "<c>")}
    assert prompter.eos_ids - tokens == {a, b} - tokens
    assert prompter._tokenizer.id_of("<c>") in prompter.eos_ids
    assert c is not None
    assert prompter.defaults == {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.0}


@pytest.mark.parametrize(
    "generation",
    [
        {"eos_token_id": "x"},
        {"eos_token_id": [1, None]},
        {"temperature": -1},
        {"temperature": "hot"},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": True},
        {"repetition_penalty": 0},
    ],
)
def test_senseless_generation_configs_are_refused(
    generation: dict[str, Any], new_folder: Any, make_tokenizer: Any
) -> None:
    folder = new_folder(make_tokenizer("byte_level", ["<a>"], [], regex=False))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    with pytest.raises(CheckpointError):
        FolderPrompter(folder, 1000, 1000)


def test_tokens_named_in_the_config_alone(new_folder: Any, make_tokenizer: Any) -> None:
    """transformers adds what added_tokens_decoder and the role names say; so do we."""
    rules = json.loads(make_tokenizer("byte_level", ["<a>"], [], regex=False).to_str())
    first = rules["added_tokens"][0]
    rules["model"]["vocab"]["<named>"] = first["id"]
    first["id"] += 1
    tokenizer = Tokenizer.from_str(json.dumps(rules))
    following = tokenizer.get_vocab_size(True)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "sep_token": "<named>",  # in the vocabulary, and made special by its role alone
        "added_tokens_decoder": {str(following): {"content": "<late>", "special": True, "normalized": False}},
    }
    folder = new_folder(
        tokenizer, config, "{% for m in messages %}<a>{{ m.content }}<late>{% endfor %}<named>"
    )
    prompter = FolderPrompter(folder, 1000, 1000)
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    expected = reference.apply_chat_template(conversation("the"), tokenize=True, return_dict=False)
    assert list(prompter.prepare(ask_of(conversation("the"))).ids) == expected
    assert {following, first["id"], first["id"] - 1} <= set(expected)
    assert prompter.detokenize(expected) == "the"


def test_a_models_own_roles_reach_its_template(new_folder: Any, make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer("byte_level", ["<a>", "<image>", "<extra>"], [], regex=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "extra_special_tokens": {"image_token": "<image>"},
    }
    folder = new_folder(tokenizer, config, "{{ image_token }}{{ messages[0].content }}")
    prompter = FolderPrompter(folder, 1000, 1000)
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    expected = reference.apply_chat_template(conversation("x"), tokenize=True, return_dict=False)
    assert list(prompter.prepare(ask_of(conversation("x"))).ids) == expected
    assert tokenizer.token_to_id("<image>") in expected
    ask = ask_of(conversation("x"), template_options={"image_token": "<extra>"})
    assert refused(prompter, ask).param == "template_options"


def test_a_padding_token_that_is_a_word_stays_a_word(new_folder: Any, make_tokenizer: Any) -> None:
    """Some files name "!" as padding. It may be written, it may be said, and it is text."""
    tokenizer = make_tokenizer("byte_level", ["<a>"], [], regex=False)
    folder = new_folder(
        tokenizer, {"pad_token": "!"}, "{% for m in messages %}<a>{{ m.content }}{% endfor %}"
    )
    prompter = FolderPrompter(folder, 1000, 1000)
    for text in ("hello!!", "!", "<a>!"):
        assert prompter.detokenize(list(prompter.prepare(Ask(prompt=text)).ids)) == text
        assert prompter.detokenize(list(prompter.prepare(ask_of(conversation(text))).ids)) == text


def test_named_templates(new_folder: Any, make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer("byte_level", ["<a>"], [], regex=False)
    named = [
        {"name": "default", "template": "D{{ messages[0].content }}"},
        {"name": "tool_use", "template": "T"},
    ]
    for form in (named, {each["name"]: each["template"] for each in named}, named[0]["template"]):
        prompter = FolderPrompter(new_folder(tokenizer, {"chat_template": form}), 1000, 1000)
        assert prompter.detokenize(list(prompter.prepare(ask_of(conversation("x"))).ids)) == "Dx"
    with pytest.raises(CheckpointError, match="default"):
        FolderPrompter(new_folder(tokenizer, {"chat_template": named[1:]}), 1000, 1000)
    with pytest.raises(CheckpointError):
        FolderPrompter(new_folder(tokenizer, {"chat_template": 3}), 1000, 1000)


def test_a_sequence_of_processors_counts_its_ends_once(models_by_name: dict[str, Any]) -> None:
    assert isinstance(models_by_name["llama3"].tokenizer.post_processor, processors.Sequence)
    ids = models_by_name["llama3"].prompter.prepare(Ask(prompt="<|begin_of_text|>")).ids
    assert list(ids).count(ids[0]) == 1
