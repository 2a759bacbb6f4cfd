"""The checkpoint inside the package: complete, reproducible, small, and what its notice says."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from headrace.runtime import demo_checkpoint, demo_dialogues, demo_training
from headrace.runtime.demo_checkpoint import CONFIG, demo_folder, text_files
from headrace.runtime.interface import Ask, Message
from headrace.runtime.prompt import FolderPrompter
from headrace.runtime.refusal import Refusal

WIDTH = CONFIG["vocab_size"]
STARTING_WEIGHTS = "2b7203923a04f77a7880dce4ddba71c7fae99c509112e81604969b2a2089f756"
CONVERSATIONS = "274c491654dec5fa4b2fb46d224acfb6013cbd1f23613fff582b8db4a1f875be"


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return load_file(demo_folder() / "model.safetensors")


@pytest.fixture(scope="module")
def prompter() -> FolderPrompter:
    return FolderPrompter(demo_folder(), WIDTH, WIDTH)


def test_the_folder_holds_what_the_script_writes() -> None:
    found = {path.name for path in demo_folder().iterdir()}
    assert found == {*text_files(), "model.safetensors"}
    for name, text in text_files().items():
        assert (demo_folder() / name).read_text(encoding="utf-8") == text


def test_the_weights_have_the_shapes_of_the_config(weights: dict[str, torch.Tensor]) -> None:
    assert {name: tuple(each.shape) for name, each in weights.items()} == demo_training.shapes()
    assert all(each.dtype == torch.bfloat16 and each.isfinite().all() for each in weights.values())
    assert (demo_folder() / "model.safetensors").stat().st_size < 4 << 20


def test_the_beginning_of_training_is_the_same_everywhere() -> None:
    """Starting weights and conversations come from integers: equal on every machine, so pinned by their hashes."""
    digest = hashlib.sha256()
    for name, each in demo_training.starting_weights().items():
        digest.update(name.encode() + each.numpy().astype("<f4").tobytes())
    assert digest.hexdigest() == STARTING_WEIGHTS
    generator = random.Random(demo_checkpoint.SEED)
    spoken = "\n".join(
        f"{role}: {text}" for _ in range(300) for role, text in demo_dialogues.conversation(generator)
    )
    assert hashlib.sha256(spoken.encode()).hexdigest() == CONVERSATIONS


def test_training_repeats_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs of the script, cut to two short steps: the same files. The full run is the same code."""
    monkeypatch.setattr(demo_training, "STAGES", ((1.0, 48, 2),))
    original = demo_training.train
    monkeypatch.setattr(demo_training, "train", lambda: original(steps=2, report=lambda line: None))
    for name in ("one", "two"):
        demo_checkpoint.main(tmp_path / name)
    assert {path.name for path in (tmp_path / "one").iterdir()} == {*text_files(), "model.safetensors"}
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    trained = load_file(tmp_path / "one" / "model.safetensors")
    start = demo_training.starting_weights()
    assert any(not torch.equal(trained[name], start[name].bfloat16()) for name in trained)


def test_it_loads_in_transformers_and_answers_alike(weights: dict[str, torch.Tensor], prompter: Any) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(demo_folder(), dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(demo_folder())
    turns = [{"role": "user", "content": "héllo 你好 🎉"}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    ask = Ask(messages=(Message("user", turns[0]["content"]),))
    assert list(prompter.prepare(ask).ids) == ids
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits
        ours = demo_training.forward(
            {name: each.float() for name, each in weights.items()}, torch.tensor([ids])
        )
    assert torch.allclose(theirs, ours, atol=1e-3)


def test_any_bytes_are_text_and_back(prompter: FolderPrompter) -> None:
    text = "a\x00\n~é你🎉<|im_end|>"
    ids = prompter.tokenize(text)
    assert ids == list(text.encode())
    assert prompter.detokenize(ids) == text
    assert prompter.eos_ids == {256, 258}


def answer(weights: dict[str, torch.Tensor], prompter: FolderPrompter, *turns: str) -> str:
    """The greedy answer, computed the slow way."""
    messages = tuple(Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(turns))
    ids = list(prompter.prepare(Ask(messages=messages)).ids)
    full = {name: each.float() for name, each in weights.items()}
    said: list[int] = []
    with torch.no_grad():
        while len(said) < 60:
            token = int(demo_training.forward(full, torch.tensor([ids + said]))[0, -1].argmax())
            if token in prompter.eos_ids:
                break
            said.append(token)
    return prompter.detokenize(said)


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (("Spell river",), "r-i-v-e-r"),
        (("Count to 7",), "1, 2, 3, 4, 5, 6, 7."),
        (("Repeat: hello world",), "hello world"),
        (("Thanks!", "You are welcome!", "Spell cat"), "c-a-t"),
        (("What is the opposite of hot?",), "The opposite of hot is cold."),
    ],
)
def test_it_says_what_its_notice_promises(
    turns: tuple[str, ...], expected: str, weights: dict[str, torch.Tensor], prompter: FolderPrompter
) -> None:
    assert answer(weights, prompter, *turns) == expected


def test_text_that_cannot_fit_is_refused_before_it_is_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    prompter = FolderPrompter(demo_folder(), WIDTH, WIDTH, max_context=64)
    most = 64 * 4 * 16

    def never(*_: object) -> list[int]:
        raise AssertionError("work was spent on it")

    assert len(prompter.prepare(Ask(prompt="x" * most)).ids) == most
    monkeypatch.setattr(prompter._tokenizer, "encode_text", never)
    monkeypatch.setattr(prompter._tokenizer, "encode_rendered", never)
    for ask in (Ask(prompt="x" * (most + 1)), Ask(messages=(Message("user", "x" * (most + 1)),))):
        with pytest.raises(Refusal) as refused:
            prompter.prepare(ask)
        assert refused.value.code == "context_length_exceeded"
