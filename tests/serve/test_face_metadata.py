"""Metadata on every face that takes it: 16 pairs, 64 and 512 characters, and the pair that is wrong by its name."""

from __future__ import annotations

from typing import Any

import pytest
from face_bench import FaceBench
from face_said import errors
from realtime_bench import Talk

USER = [{"role": "user", "content": "x"}]
HTTP: dict[str, dict[str, Any]] = {
    "/v1/responses": {"input": "x"},
    "/v1/chat/completions": {"messages": USER},
    "/v1/completions": {"prompt": "x"},
}
WRONG: list[tuple[Any, str]] = [
    ({"fine": "x", "actual": "v" * 513}, "metadata.actual"),
    ({"n": 1}, "metadata.n"),
    ({"a": None, "b": "x"}, "metadata.a"),
    ({"a": "x", "\u00fc \"' .": {}}, "metadata.\u00fc \"' ."),
    ({"k" * 65: "x"}, "metadata"),
    ({str(index): "x" for index in range(17)}, "metadata"),
    (["a"], "metadata"),
    ("a", "metadata"),
]


@pytest.mark.parametrize(("metadata", "param"), WRONG)
async def test_the_pair_that_is_wrong_is_named_alike_everywhere(metadata: Any, param: str) -> None:
    bench = FaceBench()
    for path, body in HTTP.items():
        fetch = bench.fetch(path, {"model": "fake", **body, "metadata": metadata})
        assert (fetch.status, fetch.error["code"], fetch.error["param"]) == (400, "invalid_value", param), (
            path
        )
        assert fetch.error["message"].startswith(f"{param}: ")
    socket = bench.socket()
    socket.create(metadata=metadata)
    await socket.until_over()
    (frame,) = errors(socket)
    assert (
        frame["error"]
        == bench.fetch("/v1/responses", {"model": "fake", "input": "x", "metadata": metadata}).error
    )
    talk = Talk(bench)
    talk.send({"type": "response.create", "response": {"metadata": metadata}})
    await talk.until(lambda: "error" in talk.types())
    error = talk.said[-1]["error"]
    assert (error["code"], error["param"]) == ("invalid_value", f"response.{param}")
    assert not bench.asks


async def test_what_fits_is_taken_and_echoed() -> None:
    bench = FaceBench()
    full = {"k" * 63 + chr(97 + index): "v" * 512 for index in range(16)}
    for path, body in HTTP.items():
        fetch = await bench.fetch(
            path, {"model": "fake", **body, "metadata": full, "max_tokens": 2, "max_output_tokens": 2}
        ).done()
        assert fetch.status == 200
        assert path != "/v1/responses" or fetch.json["metadata"] == full


async def test_other_objects_name_their_pairs_too() -> None:
    bench = FaceBench()
    fetch = await bench.respond(logit_bias={"5": 1, "7": 101}).done()
    assert (fetch.error["code"], fetch.error["param"]) == ("invalid_value", "logit_bias.7")
