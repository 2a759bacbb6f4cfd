"""`x_receipt`: in the terminal event alone, true to the tokens, and refused where nothing is promised (M9)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from face_bench import FaceBench, Socket
from face_said import finals
from fake_prompter import CARD

from headrace.runtime.receipt import digest_ids

PROMISED = replace(CARD, weights="sha256:w", computing="sha256:c")


def receipts(socket: Socket) -> list[dict[str, Any]]:
    return [
        event["response"]["x_receipt"] for event in socket.said if "x_receipt" in event.get("response", {})
    ]


async def test_it_is_told_once_at_the_end_and_is_true() -> None:
    bench = FaceBench(card=PROMISED)
    socket = bench.socket()
    socket.create("hello", x_receipt=True, max_output_tokens=9)
    await socket.until_over()
    (told,) = receipts(socket)
    output = finals(socket)[0]["output"][0]["content"][0]["text"]
    assert told == {
        "weights": "sha256:w",
        "computing": "sha256:c",
        "seed": "1",
        "prompt": digest_ids(bench.prompts[0]),
        "output": digest_ids(list(output.encode())),
        "output_tokens": 9,
        "changed": False,
    }
    socket.create("hello")
    await socket.until_over(2)
    assert len(receipts(socket)) == 1, "only for who asks"


async def test_a_cancelled_answer_and_a_changed_one_have_theirs() -> None:
    bench = FaceBench(card=PROMISED, gated=True)
    socket = bench.socket()
    for event in ({"type": "x.update", "temperature": 0.5}, {"type": "response.cancel"}):
        before = len(finals(socket))
        count = len(socket.said)
        socket.create("hello", x_receipt=True, max_output_tokens=300)
        await bench.until(
            lambda count=count: any("output_text.delta" in e["type"] for e in socket.said[count:])
        )
        created = [e for e in socket.said if e["type"] == "response.created"][-1]
        socket.send({"response_id": created["response"]["id"], **event})
        await socket.until_over(before + 1)
    changed, cancelled = receipts(socket)
    assert changed["changed"] and changed["output_tokens"] == 300
    assert not cancelled["changed"] and 0 < cancelled["output_tokens"] < 300


async def test_a_server_that_promises_nothing_refuses_it() -> None:
    socket = FaceBench().socket()
    socket.create("hello", x_receipt=True)
    socket.create("hello", x_receipt=False)
    await socket.until_over(2)
    (error,) = [event for event in socket.said if event["type"] == "error"]
    assert (error["error"]["code"], error["error"]["param"]) == ("unsupported_parameter", "x_receipt")
    assert "--deterministic" in error["error"]["message"] and not receipts(socket)


def test_digests_know_pictures_and_large_ids() -> None:
    assert digest_ids([1, 2]) != digest_ids([2, 1]) != digest_ids([2, 1], [-5]) != digest_ids([2, 1], [-6])
    assert digest_ids([1 << 40]).startswith("sha256:") and len(digest_ids([])) == len("sha256:") + 64


async def test_branches_and_forks_have_theirs_and_those_that_keep_something_say_so() -> None:
    bench = FaceBench(card=PROMISED)
    socket = bench.socket(ext="1")
    socket.create("hello", stream_id="a", x_receipt=True, max_output_tokens=9, x_branches={"n": 2})
    await socket.until_over(2)
    first, second = receipts(socket)
    assert (first["seed"], second["seed"]) == ("1", "2") and not first["changed"] and not second["changed"]
    assert first["prompt"] == second["prompt"] and first["output"] != second["output"]
    parent = finals(socket)[0]["id"]
    socket.send({"type": "x.fork", "response_id": parent, "stream_id": "f", "at_token": 4, "seed": 3})
    await socket.until_over(3)
    assert receipts(socket)[2]["changed"], "its seed alone does not say how it came about"
    socket.drop(1000)
    await bench.baseline()
