"""Models that see, against transformers: logits and greedy answers, wherever a chunk ends and a prefix hit
begins."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from vision_rig import PAD, noise, shown

from headrace.runtime.backends.queue import HostQueue
from headrace.runtime.blueprint import Blueprint
from headrace.runtime.config import EngineConfig, SettingError
from headrace.runtime.engine import open_device_engine
from headrace.runtime.plan import ImageEncode, ImageRows, PlanRow, SlotGrant
from headrace.runtime.request import SamplingParams

GREEDY = SamplingParams(temperature=0.0)
FAMILIES = ("qwen3-vl", "qwen2.5-vl", "gemma3-vl")
# Pictures of the last two are to their decoders what those of the others are to theirs.
ALL = (*FAMILIES, "llava", "llava-onevision")


def words(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(1, 199), k=count)


def all_logits(engine: Any, ids: list[int], spans: Any, chunk: int) -> torch.Tensor:
    """Logits after every token, computed in chunks, on pages that do not lie in order."""
    pages = list(range(engine.page_count))
    random.Random(5).shuffle(pages)
    needed = tuple(pages[: -(-len(ids) // engine.page_size)])
    rows = engine.image_block_rows
    blocks, encodes, at = {}, [], 0
    for index, span in enumerate(spans):
        count = -(-span.image.rows // rows)
        blocks[index] = tuple(reversed(range(at, at + count)))
        at += count
        encodes.append(ImageEncode(span.image, blocks[index], 0, engine.image_stages))

    def work() -> torch.Tensor:
        engine.kv.data.fill_(float("nan"))
        grant = SlotGrant(2, 0, GREEDY, len(ids), needed, (), tuple(spans))
        engine.kv.grant(2, needed)
        engine.eyes.grant(grant)
        engine.eyes.encode(encodes)
        found = []
        start = 0
        while start < len(ids):
            part = ids[start : start + chunk]
            if engine.whole_pictures:  # a chunk that enters one of them goes to its end
                end = max((span.end for span in spans if span.start < start + chunk < span.end), default=0)
                part = ids[start : max(end, start + chunk)]
            read = tuple(
                ImageRows(first - start, last - first, first - span.start, blocks[index])
                for index, span in enumerate(spans)
                if (first := max(start, span.start)) < (last := min(start + len(part), span.end))
            )
            row = PlanRow(0, 2, start, len(part), tuple(part), True, read)
            inputs = engine.layout([], [row])
            wanted = torch.arange(len(part))
            inputs = type(inputs)(
                **{**{name: getattr(inputs, name) for name in inputs.__slots__}, "sample_tokens": wanted}
            )
            found.append(engine.model.forward(inputs, engine.kv, engine.eyes.see([], [row], 0, len(part))))
            start += len(part)
        return torch.cat(found).float()

    return engine.backend.submit(work).result()


@pytest.mark.parametrize(
    ("name", "chunk"),
    [
        *((name, chunk) for name in (*ALL, "qwen2.5-vl-older") for chunk in (64, 13)),
        ("gemma3-vl-makers", 64),
        ("llava-makers", 64),
    ],
)
def test_logits_with_pictures(name: str, chunk: int, seeing: Callable[[str], Any], start: Any) -> None:
    model = seeing(name)
    engine = start(model.folder)
    pictures = [noise(40, 24, 1), noise(8, 56, 2), noise(70, 70, 3)]
    ids, spans = shown(
        engine.images, [words(5, 1), pictures[0], words(3, 2), pictures[1], pictures[2], words(30, 3)]
    )
    expected = model.logits(ids, pictures)
    found = all_logits(engine, ids, spans, chunk)
    torch.testing.assert_close(found, expected, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize(("name", "said"), [("gemma3-vl", "Gemma"), ("llava", "LLaVA")])
def test_a_gpu_says_that_it_does_not_run_them(name: str, said: str, seeing: Any) -> None:
    with pytest.raises(SettingError, match=f"{said} models run on the CPU only"):
        open_device_engine(Blueprint(seeing(name).folder), EngineConfig(), HostQueue(), 8 << 30, 8 << 30)


@pytest.mark.parametrize("name", ALL)
def test_text_alone(name: str, seeing: Any, start: Any, drive: Any) -> None:
    model = seeing(name)
    ids = words(40, 7)
    answer, margin = model.answer(ids, [], 32)
    assert margin > 5e-4, "a tie would be decided by rounding"
    run = drive(start(model.folder))
    req = run.add(ids, 32)
    run.finish()
    assert req.tokens[40:] == answer


@pytest.fixture
def sample(seeing: Any, start: Any, request: pytest.FixtureRequest) -> Any:
    """An engine, a prompt with one picture of 15 rows in it, its span, and what transformers answers."""
    model = seeing(request.param)
    engine = start(model.folder, page_size=4)
    for seed in range(100):
        picture = noise(40, 24, seed)
        ids, spans = shown(engine.images, [words(6, seed), picture, words(9, seed + 1)])
        answer, margin = model.answer(ids, [picture], 24)
        if margin > 5e-4:
            return engine, ids, spans, answer
    raise AssertionError("no prompt without ties")


@pytest.mark.parametrize("sample", FAMILIES, indirect=True)
def test_a_chunk_may_end_at_every_token_of_a_picture(sample: Any, drive: Any) -> None:
    engine, ids, spans, answer = sample
    run = drive(engine, prefix_cache=False)
    for edge in range(spans[0].start - 1, spans[0].end + 2):
        req = run.add(ids, 24, spans=spans)
        plan = run.scheduler.plan(edge + spans[0].image.rows)  # room for the encode beside `edge` tokens
        [row] = plan.prefill
        result = engine.launch(plan).result()
        run.scheduler.retire(plan, result)
        run.scheduler.check()
        assert req.computed_len == row.count >= min(edge, len(ids))
        run.finish()
        assert req.tokens[len(ids) :] == answer, f"a chunk ended at {row.count}"


@pytest.mark.parametrize("sample", FAMILIES, indirect=True)
@pytest.mark.parametrize("chunk", [1, 2, 5, 64])
def test_chunks_of_one_size(chunk: int, sample: Any, drive: Any) -> None:
    engine, ids, spans, answer = sample
    run = drive(engine, chunk_tokens=chunk, prefix_cache=False)
    req = run.add(ids, 24, spans=spans)
    run.finish()
    assert req.tokens[len(ids) :] == answer


@pytest.mark.parametrize("sample", FAMILIES, indirect=True)
@pytest.mark.parametrize("cached", [True, False], ids=["rows-cached", "rows-gone"])
def test_a_prefix_hit_may_end_at_every_page_of_a_picture(cached: bool, sample: Any, drive: Any) -> None:
    """The picture's tail is read from its rows, encoded again if they are gone; its head comes from the cache."""
    engine, ids, spans, answer = sample
    size = engine.page_size
    for length in range(spans[0].start, len(ids)):
        if length % size:
            continue
        run = drive(engine)
        gallery = run.scheduler.gallery
        # Another prompt that is equal up to `length` and ends inside the picture's page behind it.
        other = [*ids[:length], *words(3, length)]
        before = [span for span in spans if span.end <= length]
        if len(before) < len(spans):
            other, before = list(ids), list(spans)
        first = run.add(other, 1, spans=tuple(before))
        run.finish()
        assert first.finish is not None
        # Only the first `length` tokens stay cached.
        while run.scheduler.tree.cached_pages * size > length:
            assert run.scheduler.tree.evict_one()
        if not cached:
            assert gallery.clear() == 1
        encoded = gallery.encoded
        req = run.add(ids, 24, spans=spans)
        run.finish()
        run.scheduler.check()
        assert req.cached_len == length and req.tokens[len(ids) :] == answer, f"the hit ended at {length}"
        inside = length < spans[0].end
        assert gallery.encoded - encoded == int(inside and not cached), (
            "a picture in the prefix is not encoded"
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_pictures_that_differ_only_in_pixels_or_only_in_shape(
    name: str, seeing: Any, start: Any, drive: Any
) -> None:
    """Same size and other pixels; the same bytes in another shape; twice the same; all through one prefix cache."""
    model = seeing(name)
    engine = start(model.folder, page_size=4)
    flat = noise(24, 40, 11)
    pictures = {
        "one": flat,
        "other pixels": noise(24, 40, 12),
        "other shape": flat.reshape(40, 24, 3),
        "again": flat,
    }
    run = drive(engine)
    for title, picture in pictures.items():
        ids, spans = shown(engine.images, [words(6, 1), picture, words(5, 2)])
        answer, margin = model.answer(ids, [picture], 8)
        assert margin > 1e-4
        req = run.add(ids, 8, spans=spans)
        run.finish()
        run.scheduler.check()
        assert req.tokens[len(ids) :] == answer, title
        assert (req.cached_len > spans[0].start) is (title == "again"), title
    assert run.scheduler.gallery.encoded == 3


@pytest.mark.parametrize("name", ALL)
def test_many_pictures_in_many_turns_and_many_requests_at_once(
    name: str, seeing: Any, start: Any, drive: Any
) -> None:
    model = seeing(name)
    engine = start(
        model.folder, page_size=8, image_tokens=72 + 56 * (name == "llava-onevision"), image_memory_mb=1
    )
    pictures = [noise(16 + 8 * i, 64 - 8 * i, 40 + i) for i in range(5)]
    turns: list[Any] = []
    run = drive(engine, chunk_tokens=33)
    wanted = []
    for number, picture in enumerate(pictures):
        turns += [words(4, number), picture, words(7, 50 + number)]
        ids, spans = shown(engine.images, turns)
        answer, margin = model.answer(ids, pictures[: number + 1], 12)
        if margin > 5e-4:
            wanted.append((run.add(ids, 12, spans=spans), answer))
            wanted.append((run.add(ids, 12, spans=spans), answer))
    assert len(wanted) >= 6, "too many ties"
    run.finish()
    run.scheduler.check()
    assert [req.tokens[req.prompt_len :] for req, _ in wanted] == [answer for _, answer in wanted]
    assert run.scheduler.gallery.held_blocks == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_a_picture_that_is_left_in_the_middle_of_its_encode(
    name: str, seeing: Any, start: Any, drive: Any
) -> None:
    """Its stages go on for whoever shows it too; begun for nobody, they are forgotten when another one begins."""
    model = seeing(name)
    engine = start(model.folder)
    asked = []
    for seed in (21, 22):
        ids, spans = shown(engine.images, [words(4, seed), noise(24, 40, seed), words(6, seed + 50)])
        answer, margin = model.answer(ids, [noise(24, 40, seed)], 6)
        assert margin > 1e-4
        asked.append((ids, spans, answer))
    for follower in (0, 1):
        run = drive(engine, chunk_tokens=4, prefix_cache=False)
        ids, spans, _ = asked[0]
        left = run.add(ids, 6, spans=spans)
        while run.scheduler.gallery._unfinished is None:
            assert run.step()
        run.cancel(left)
        reqs = [(run.add(ids, 6, spans=spans), answer) for ids, spans, answer in (asked[follower], asked[0])]
        run.finish()
        run.scheduler.check()
        assert [req.tokens[req.prompt_len :] for req, _ in reqs] == [answer for _, answer in reqs]
        assert run.scheduler.gallery.encoded == 1 + follower


def test_penalties_count_placeholders_as_transformers_does(seeing: Any, start: Any, drive: Any) -> None:
    model = seeing("qwen3-vl")
    engine = start(model.folder)
    picture = noise(24, 24, 3)
    ids, spans = shown(engine.images, [words(4, 1), picture, words(4, 2)])
    with torch.no_grad():
        out = model.reference.generate(
            **model.inputs(ids, [picture]), max_new_tokens=12, do_sample=False, repetition_penalty=3.0
        )
    run = drive(engine)
    req = run.add(ids, 12, SamplingParams(temperature=0.0, repetition_penalty=3.0), spans=spans)
    run.finish()
    assert req.tokens[len(ids) :] == out[0, len(ids) :].tolist()


def test_bfloat16_is_as_close_as_transformers(seeing: Any, start: Any) -> None:
    import copy

    model = seeing("qwen3-vl")
    engine = start(model.folder, dtype="bfloat16", chunk_tokens=128)
    pictures = [noise(40, 24, 1), noise(56, 56, 2)]
    ids, spans = shown(engine.images, [words(5, 1), pictures[0], words(3, 2), pictures[1], words(20, 3)])
    rounded, exact_model = copy.deepcopy(model.reference), copy.deepcopy(model.reference)
    for parameter, kept in zip(rounded.parameters(), exact_model.parameters(), strict=True):
        parameter.data = parameter.data.bfloat16()
        kept.data = kept.data.bfloat16().float()
    inputs = model.inputs(ids, pictures)
    with torch.no_grad():
        exact = exact_model(**inputs).logits[0]
        theirs = rounded(**inputs).logits[0].float() - exact
    ours = all_logits(engine, ids, spans, 128) - exact
    own, other = ours.square().mean().sqrt(), theirs.square().mean().sqrt()
    assert own <= 1.1 * other, f"rms error {own:.4f}, transformers {other:.4f}"


def test_placeholders_are_tokens_like_others_without_a_picture(seeing: Any, start: Any) -> None:
    """A model may say the placeholder itself: then it is the token that it is."""
    model = seeing("qwen3-vl")
    engine = start(model.folder)
    ids = [*words(9, 1), PAD, *words(9, 2)]
    expected = model.logits(ids, [])
    torch.testing.assert_close(all_logits(engine, ids, (), 7), expected, rtol=5e-5, atol=5e-5)
    assert np.isfinite(expected.numpy()).all()
