"""Realtime answers as streams: the text that every face gives, whole characters, readers that fall behind."""

from __future__ import annotations

import pytest
from face_bench import FaceBench
from face_said import finals
from realtime_bench import Talk


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_every_face_says_the_same(seed: int) -> None:
    bench = FaceBench()
    talk = Talk(bench)
    talk.user("hello")
    talk.ask(seed=seed, max_output_tokens=60, stop=["q"])
    (final,) = await talk.until_done()
    text = final["output"][0]["content"][0]["text"]
    assert text and "q" not in text
    chat = await bench.chat("hello", seed=seed, max_tokens=60, stop=["q"]).done()
    whole = await bench.respond("hello", seed=seed, max_output_tokens=60, stop=["q"]).done()
    assert chat.json["choices"][0]["message"]["content"] == text
    assert whole.json["output"][0]["content"][0]["text"] == text
    assert chat.json["usage"]["total_tokens"] == final["usage"]["total_tokens"]
    talk.drop()
    await bench.baseline()


async def test_all_faces_at_once_in_one_batch() -> None:
    bench = FaceBench(gated=True)
    talk, socket = Talk(bench), bench.socket()
    talk.user("hello")
    talk.ask(seed=4, max_output_tokens=40)
    talk.ask(seed=4, max_output_tokens=40, conversation="none")
    socket.create("hello", seed=4, max_output_tokens=40)
    fetch = bench.chat("hello", seed=4, max_tokens=40, stream=True)
    await bench.until(lambda: bench.loop.live == 4)
    await talk.until_done(2)
    await socket.until_over()
    await fetch.done()
    texts = [answer.text for answer in talk.reader.answers.values()]
    texts += [part["text"] for part in finals(socket)[0]["output"][0]["content"]]
    told = [chunk["choices"][0]["delta"].get("content") or "" for chunk in fetch.data if chunk["choices"]]
    assert len({*texts, "".join(told)}) == 1
    talk.drop()
    socket.drop()
    await bench.baseline()


async def test_deltas_never_split_a_character_and_stop_strings_never_leak() -> None:
    script = "Grüße 🌍👋 日本語 <END> tail".encode()
    start = len("user: x\nassistant: ")
    bench = FaceBench(choose=lambda tokens, seed, width: script[(len(tokens) - start) % len(script)])
    talk = Talk(bench)
    talk.user("x")
    talk.ask(stop="<END>", max_output_tokens=200)
    (final,) = await talk.until_done()
    assert final["status"] == "completed"
    assert final["output"][0]["content"][0]["text"] == script.decode().split("<END>")[0]
    deltas = [event["delta"] for event in talk.reader.events if event["type"].endswith(".delta")]
    assert "\ufffd" not in "".join(deltas) and not any("<" in delta for delta in deltas)
    talk.drop()
    await bench.baseline()


async def test_a_reader_that_falls_behind_pauses_its_answer_and_loses_nothing() -> None:
    bench = FaceBench()
    slow, quick = Talk(bench), Talk(bench)
    for talk in (slow, quick):
        talk.user("hello")
    bench.flush()
    slow.wire.reading = False
    slow.ask(max_output_tokens=2000)
    quick.ask(max_output_tokens=900)
    await quick.until_done()
    await bench.until(lambda: len(bench.scheduler.paused) == 1)
    assert slow.reader.finals == [], "nothing is written for a reader who does not read"
    quick.ask(max_output_tokens=5)
    await quick.until_done(2)
    slow.wire.reading = True
    (final,) = await slow.until_done()
    assert final["usage"]["output_tokens"] == 2000
    assert len(final["output"][0]["content"][0]["text"]) == 2000
    slow.drop()
    quick.drop()
    await bench.baseline()


async def test_a_paused_answer_can_be_cancelled() -> None:
    bench = FaceBench()
    talk = Talk(bench)
    talk.user("hello")
    bench.flush()
    talk.wire.reading = False
    talk.ask(max_output_tokens=3000)
    await bench.until(lambda: len(bench.scheduler.paused) == 1)
    talk.send({"type": "response.cancel"})
    talk.wire.reading = True
    (final,) = await talk.until_done()
    assert final["status"] == "cancelled"
    assert len(final["output"][0]["content"][0]["text"]) == final["usage"]["output_tokens"] < 3000
    talk.drop()
    await bench.baseline()
