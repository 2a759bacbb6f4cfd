"""Pictures on the GPU engine: the answers of transformers, however prompts are cut and whoever runs beside them."""

from __future__ import annotations

import random
from typing import Any

import pytest
from device_rig import Run
from interpreted import ON_GPU
from vision_rig import noise, seeing, shown

__all__ = ["seeing"]

COUNT = 40 if ON_GPU else 3


def words(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(1, 199), k=count)


def samples(model: Any, engine: Any, parts: list[list[Any]]) -> list[tuple[list[int], Any, list[int]]]:
    """(ids, spans, greedy answer of transformers) of each prompt; only those without ties."""
    found = []
    for each in parts:
        ids, spans = shown(engine.images, each)
        answer, margin = model.answer(ids, [part for part in each if not isinstance(part, list)], COUNT)
        if margin > 1e-3:
            found.append((ids, spans, answer))
    assert len(found) >= len(parts) - 1, "too many ties"
    return found


@pytest.fixture
def engine(seeing: Any, device_engine: Any) -> Any:
    return device_engine(
        seeing("qwen3-vl").folder, max_running=4, max_context=256, chunk_tokens=64, image_memory_mb=1
    )


def test_text_alone(seeing: Any, engine: Any) -> None:
    wanted = samples(seeing("qwen3-vl"), engine, [[words(20, 7)], [words(9, 8)]])
    run = Run(engine)
    reqs = [run.add(ids, COUNT) for ids, _, _ in wanted]
    run.finish()
    assert [req.tokens[req.prompt_len :] for req in reqs] == [answer for _, _, answer in wanted]


@pytest.mark.parametrize("chunk", [64, 13])
def test_pictures_beside_each_other_and_text(chunk: int, seeing: Any, engine: Any) -> None:
    engine.warm(0.0 if not ON_GPU else None)
    parts = [
        [words(5, 1), noise(40, 24, 1), words(4, 2), noise(16, 32, 2), words(6, 3)],
        [words(8, 4)],
        [noise(40, 24, 1), words(3, 5)],
    ]
    wanted = samples(seeing("qwen3-vl"), engine, parts)
    run = Run(engine, chunk_tokens=chunk)
    reqs = [run.add(ids, COUNT, spans=spans) for ids, spans, _ in wanted]
    run.finish()
    assert [req.tokens[req.prompt_len :] for req in reqs] == [answer for _, _, answer in wanted]
    assert run.scheduler.gallery.encoded == 2 and run.scheduler.gallery.reused >= 1


def test_a_second_turn_reuses_the_picture(seeing: Any, engine: Any) -> None:
    """The prefix hit ends behind the picture, so that the rest is a plain chunk that turns by the slot's shift."""
    parts = [words(5, 1), noise(40, 24, 9), words(20, 2)]
    (first, second) = samples(seeing("qwen3-vl"), engine, [parts, [*parts, words(9, 3)]])
    run = Run(engine)
    for ids, spans, answer in (first, second):
        req = run.add(ids, COUNT, spans=spans)
        run.finish()
        assert req.tokens[req.prompt_len :] == answer
    assert run.scheduler.gallery.encoded == 1 and req.cached_len > spans[0].end


def test_sizes_name_the_pictures(engine: Any) -> None:
    assert engine.card.sees and engine.images is not None
    assert engine.image_blocks * engine.image_block_rows >= engine.images.row_limit
    assert engine.sizes.images >= engine.eyes.slab.data.nbytes
