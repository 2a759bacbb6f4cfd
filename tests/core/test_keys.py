"""Every step finds a key that holds it, and the keys that matter are captured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.graphs.keys import KeyList
from headrace.graphs.packed import TILE


@given(st.data())
def test_a_key_holds_its_step(data: st.DataObject) -> None:
    slots = data.draw(st.integers(1, 300))
    most = data.draw(st.integers(1, 5000))
    keys = KeyList.of(slots, most)
    decode = data.draw(st.integers(0, slots))
    chunk = data.draw(st.integers(0 if decode else 1, most))
    rows = data.draw(st.integers(1, max(1, min(chunk, slots - decode)))) if chunk else 0
    if chunk and decode == slots:
        return
    key = keys.key_for(decode, chunk, rows)
    assert key.decode >= decode and key.chunk >= chunk and key.rows >= rows
    assert key.decode == 0 or decode, "no decode row is computed for nobody"
    # Each row ends in at most one tile that is not full.
    assert key.tiles >= chunk // TILE + rows or not chunk
    largest = keys.largest
    assert all(
        getattr(key, name) <= getattr(largest, name) for name in ("tokens", "samples", "tiles", "rows")
    )


@pytest.mark.parametrize("slots", [1, 8, 64, 256])
def test_common_steps_are_captured(slots: int) -> None:
    keys = KeyList.of(slots, 2048)
    captured = set(keys.captured())
    assert len(captured) == len(keys.captured()), "nothing is captured twice"
    for decode in range(1, slots + 1):
        assert keys.key_for(decode, 0, 0) in captured
    for decode in range(slots):
        for chunk in (1, 16, 100, 512, 2048):
            assert keys.key_for(decode, chunk, 1) in captured
    assert keys.captured()[0].decode == 1, "a single stream comes first"
