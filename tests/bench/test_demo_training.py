"""The demo model in training: the files, their repetition, and what transformers makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from headrace.bench.demo import layout, network, train
from headrace.bench.demo.feed import Feed, Form, make
from headrace.bench.demo.muon import orthogonal
from headrace.bench.demo.network import Batch, Network, starting_weights
from headrace.bench.demo.scoring import Question, answers, foreseen, padded, questions
from headrace.bench.demo.train import Plan, rate_at, run
from headrace.bench.demo.written import Writer

SMALL = {
    "HIDDEN": 64, "INNER": 96, "LAYERS": 2, "HEADS": 2, "SHARED": 1, "VISION_HIDDEN": 64, "VISION_INNER": 64,
    "VISION_LAYERS": 2, "VISION_HEADS": 1, "DEEPSTACK": (0,),
}  # fmt: skip
PLAN = Plan(
    seconds=0.0,
    steps=8,
    forms=(Form(2, 384, 2), Form(1, 512, 3, 0.3)),
    quick=1,
    kinds=("spelling", "pie chart"),
    count=2,
    longest=6,
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return layout.train_tokenizer(0, 1500)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(network, name, value)
    monkeypatch.setattr(train, "train_tokenizer", lambda seed: tokenizer)


def batch_of(form: Form, tokenizer: Tokenizer) -> tuple[Batch, torch.Tensor]:
    packed = make(3, 0, Writer(tokenizer), form)
    arrays = [
        getattr(packed, name) for name in ("ids", "dialogue", "positions", "places", "patches", "grids")
    ]
    batch = Batch(
        *(
            torch.from_numpy(each).long() if each.dtype == np.int32 else torch.from_numpy(each)
            for each in arrays
        )
    )
    return batch, torch.from_numpy(packed.targets).long()


def test_a_run_writes_a_model_folder_and_repeats_bit_for_bit(tmp_path: Path, small: None) -> None:
    said: list[str] = []
    for name in ("one", "two"):
        run(PLAN, tmp_path / name, "the command", said.append)
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {
        *("config.json", "generation_config.json", "tokenizer_config.json", "preprocessor_config.json"),
        *("chat_template.jinja", "tokenizer.json", "model.safetensors", "README.md", "scores.json"),
    }
    for name in names - {"README.md"}:  # which says how long it took
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    page = (tmp_path / "one" / "README.md").read_text()
    assert "the command" in page and "8 steps" in page and "| spelling |" in page and "| pie chart |" in page
    assert [each["asked"] for each in json.loads((tmp_path / "one" / "scores.json").read_text())] == [2, 2]
    assert any("long dialogues from here" in line for line in said)
    trained = load_file(tmp_path / "one" / "model.safetensors")
    start = starting_weights(0)
    assert {name: tuple(each.shape) for name, each in trained.items()} == network.shapes()
    assert all(each.dtype == torch.bfloat16 and each.isfinite().all() for each in trained.values())
    moved = [name for name in trained if not torch.equal(trained[name], start[name].bfloat16())]
    assert any("visual" in name for name in moved) and any("layers" in name for name in moved)


def test_transformers_computes_the_same(tmp_path: Path, small: None, tokenizer: Tokenizer) -> None:
    """Logits of a dialogue with pictures, positions of M-RoPE, and the text of the template."""
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: (each + 0.1 * torch.randn(each.shape, generator=generator) if each.dim() == 1 else each)
        .bfloat16()
        .float()
        for name, each in starting_weights(1).items()
    }
    train.checkpoint.write(weights, tokenizer, tmp_path)
    model: Any = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    theirs_tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    ours = Network(weights, torch.float32)
    for asked in questions(
        Writer(tokenizer), 1, ("a second picture", "using a tool's result", "read a word")
    ):
        written = asked.written
        with torch.no_grad():
            logits = ours.logits(ours.hidden(padded([written], [len(written.ids)], ours.device)))[0]
            ids = torch.from_numpy(written.ids.astype(np.int64))[None]
            kinds = (ids == model.config.image_token_id).int()
            pictures: dict[str, torch.Tensor] = {}
            if written.shown:
                pixels = [torch.from_numpy(each.patches).float() * (2 / 255) - 1 for each in written.shown]
                flat = torch.cat(pixels).view(-1, 3, 1, 256).expand(-1, 3, 2, 256).reshape(-1, 1536)
                grids = torch.tensor([[1, each.rows, each.columns] for each in written.shown])
                pictures = {"pixel_values": flat, "image_grid_thw": grids}
            theirs = model(input_ids=ids, mm_token_type_ids=kinds, **pictures).logits[0]
            places, _ = model.model.get_rope_index(ids, kinds, pictures.get("image_grid_thw"))
        assert torch.allclose(logits, theirs, atol=1e-4), asked.kind
        assert np.array_equal(places[:, 0].numpy(), written.positions)
        text = theirs_tokenizer.apply_chat_template(
            as_requested(asked), tools=list(asked.dialogue.tools) or None, tokenize=False
        )
        assert without_repeats(theirs_tokenizer(text).input_ids, asked) == without_repeats(
            written.ids.tolist(), asked
        )


def as_requested(asked: Question) -> list[dict[str, Any]]:
    """The messages as a client sends them."""
    found = []
    for message in asked.dialogue.messages:
        parts = [*({"type": "image"} for _ in message.pictures), {"type": "text", "text": message.text}]
        one: dict[str, Any] = {"role": message.role, "content": parts if message.pictures else message.text}
        if message.call is not None:
            name, arguments = message.call
            one["tool_calls"] = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
        found.append(one)
    return found


def without_repeats(ids: list[int], asked: Question) -> list[int]:
    """A template writes one token for a picture; the processor makes many of it."""
    if not asked.written.shown:
        return ids
    return [each for at, each in enumerate(ids) if at == 0 or each != ids[at - 1]]


def test_a_packed_row_is_worth_its_dialogues_alone(small: None, tokenizer: Tokenizer) -> None:
    """Neighbours in a row change nothing: the loss of a batch is that of its dialogues one by one."""
    form = Form(2, 384, 4)
    batch, targets = batch_of(form, tokenizer)
    ours = Network(starting_weights(2), torch.float32)
    with torch.no_grad():
        whole = ours.hidden(batch)
        for row in range(form.rows):
            last = int(batch.dialogue[row].max())
            assert last > 1
            at = (batch.dialogue[row] == last).nonzero()[:, 0]
            start = row * form.length + int(at[0])
            moved = batch.places - start
            inside = (batch.places >= start) & (batch.places < start + len(at))
            places = torch.where(inside, moved, torch.tensor(len(at)))
            mine = slice(row, row + 1)
            ids, dialogue, positions = (
                batch.ids[mine, at],
                batch.dialogue[mine, at],
                batch.positions[:, mine, at],
            )
            alone = Batch(ids, dialogue, positions, places, batch.patches, batch.grids)
            assert torch.allclose(ours.hidden(alone)[0], whole[row, at], atol=1e-4)
    assert int((targets >= 0).sum()) > 0


def test_decoding_step_by_step_is_the_argmax_of_the_whole(small: None, tokenizer: Tokenizer) -> None:
    writer = Writer(tokenizer)
    ours = Network(starting_weights(3), torch.float32)
    asked = questions(writer, 2, ("pie chart", "memory"))
    for each, said in zip(asked, answers(ours, writer, asked, 5), strict=True):
        prompt = each.written.ids[: each.written.answer_start]
        ids: list[int] = []
        for _ in range(6):
            longer = train.Writer(tokenizer).write([each.dialogue])[0]
            object.__setattr__(longer, "ids", np.concatenate((prompt, np.array(ids, np.int32))))
            with torch.no_grad():
                x = ours.hidden(padded([longer], [len(longer.ids)], ours.device))
            ids.append(int(ours.logits(x[0, -1]).argmax()))
        assert said == writer.decode(ids[: ids.index(writer.stop)] if writer.stop in ids else ids)


def test_foreseen_means_that_greedy_decoding_says_it(small: None, tokenizer: Tokenizer) -> None:
    """A network that was trained on one answer foresees it, and decodes it."""
    writer = Writer(tokenizer)
    asked = questions(writer, 1, ("opposites",))
    weights = {name: each.requires_grad_() for name, each in starting_weights(4).items()}
    ours = Network(weights, torch.float32)
    optimizer = torch.optim.Adam(weights.values(), 3e-3)
    assert foreseen(ours, asked) == [False]
    written = asked[0].written
    batch = padded([written], [len(written.ids)], ours.device)
    targets = torch.full_like(batch.ids, -100)
    learned = torch.from_numpy(written.learned)
    targets[0, :-1] = torch.where(learned[1:], batch.ids[0, 1:], -100)
    for _ in range(200):
        loss = ours.loss(batch, targets)
        if float(loss.detach()) < 0.05:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert foreseen(ours, asked) == [True]
    assert asked[0].dialogue.score(answers(ours, writer, asked, 60)[0])


def test_workers_make_the_batches_that_are_made_on_the_spot(tokenizer: Tokenizer) -> None:
    form = Form(2, 256, 2)
    feeds = [Feed(tokenizer.to_str(), 5, form, workers) for workers in (0, 2)]
    try:
        for _, one, other in zip(range(5), *feeds, strict=False):
            for name in vars(one):
                assert np.array_equal(getattr(one, name), getattr(other, name))
    finally:
        for feed in feeds:
            feed.close()


def test_orthogonal_draws_singular_values_to_one() -> None:
    stack = torch.randn(3, 16, 40, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(stack).float())
    assert values.min() > 0.5 and values.max() < 1.3


def test_the_rate_rises_stays_and_falls_to_zero() -> None:
    assert rate_at(0.0, 0) < 0.01
    assert rate_at(0.3, 5000) == 1.0
    assert 0.4 < rate_at(0.75, 5000) < 0.5
    assert rate_at(1.0, 5000) == 0.0


def test_a_feed_whose_worker_dies_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = Feed("no tokenizer", 0, Form(2, 256, 2), 1)
    told: Callable[[], object] = lambda: next(iter(feed))  # noqa: E731
    with pytest.raises(RuntimeError, match="has died"):
        told()
    feed.close()
