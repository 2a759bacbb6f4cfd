"""A planned stop: who asked to be told is told, what runs ends well, then the connection closes (x.goaway)."""

from __future__ import annotations

from face_bench import FaceBench
from face_said import finals, text


async def test_a_connection_with_extensions_hears_of_the_stop_and_its_answer_ends_well() -> None:
    bench = FaceBench(gated=True, settings={"drain": 12.5})
    told, stock = bench.socket(ext="1"), bench.socket()
    for socket in (told, stock):
        socket.create("q", max_output_tokens=20)
    await bench.until(lambda: all(len(socket.said) > 4 for socket in (told, stock)))
    for socket in (told, stock):
        socket.session.drain()
    bench.flush()
    assert told.said[-1] == {"type": "x.goaway", "deadline_ms": 12500}
    assert not [event for event in stock.said if event["type"].startswith("x.")]
    told.create("one more")
    await bench.until(lambda: told.gone and stock.gone)
    assert [event["error"]["code"] for event in told.said if event["type"] == "error"] == [
        "server_is_overloaded"
    ]
    for socket in (told, stock):
        assert socket.wire.close_code == 1012
        assert len(text(finals(socket)[0])) == 20, "no token is lost"
    bench.clock.advance(200.0)
    await bench.baseline()
