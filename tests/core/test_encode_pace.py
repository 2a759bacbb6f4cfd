"""What a picture's encode costs in prompt tokens: a ratio at first, then what was seen."""

from __future__ import annotations

from array import array

import pytest

from headrace.runtime.encode_pace import EncodePace
from headrace.runtime.image import Image
from headrace.runtime.plan import DecodeRows, ImageEncode, PlanRow, StepPlan

STAGES = 4


def picture(rows: int) -> Image:
    return Image(-1, 1, rows, (1, 1), b"\0\0\0")


def step(decode: int, tokens: int, encode: ImageEncode | None = None) -> StepPlan:
    rows = DecodeRows(list(range(decode)), array("i", range(decode)), array("i", [9] * decode))
    prefill = (PlanRow(99, 99, 0, tokens, (1,) * tokens, False),) if tokens else ()
    return StepPlan(0, (), (), (), rows, prefill, encodes=() if encode is None else (encode,))


class Device:
    """Takes 2 ms a step, 0.5 ms a decode row, 0.1 ms a prompt token, and `row` seconds a row of a picture."""

    def __init__(self, row: float) -> None:
        self.row = row

    def seconds(self, plan: StepPlan) -> float:
        found = 0.002 + 0.0005 * len(plan.decode) + 0.0001 * plan.prefill_tokens
        for encode in plan.encodes:
            found += self.row * encode.image.rows * (encode.last - encode.first) / STAGES
        return found


def test_before_anything_was_seen_it_is_the_ratio_of_sizes() -> None:
    pace = EncodePace(1.7, STAGES)
    assert pace.price(picture(100)) == 170 and pace.price(picture(1)) == 2
    assert EncodePace(0.001, STAGES).price(picture(1)) == 1


@pytest.mark.parametrize("row", [0.00002, 0.0003, 0.004])
def test_the_price_becomes_what_encodes_take(row: float) -> None:
    device, pace = Device(row), EncodePace(1.0, STAGES)
    for number in range(12):
        for plan in (step(4, 0), step(4, 256), step(4, 64 + number)):
            pace.observe(plan, device.seconds(plan))
        for first, last, tokens in ((0, 1, 0), (1, 4, 30)):
            plan = step(4, tokens, ImageEncode(picture(200), (), first, last))
            pace.observe(plan, device.seconds(plan))
    wanted = row * 200 / 0.0001
    assert pace.price(picture(200)) == pytest.approx(wanted, rel=0.1)
    assert pace.price(picture(100)) == pytest.approx(wanted / 2, rel=0.1), (
        "the nearest size stands for others"
    )


def test_one_slow_step_is_forgotten() -> None:
    device, pace = Device(0.0003), EncodePace(1.0, STAGES)
    whole = step(1, 0, ImageEncode(picture(50), (), 0, 4))
    for number in range(40):
        for plan in (step(1, 0), step(1, 256), step(1, 100), whole):
            pace.observe(plan, device.seconds(plan) * (50 if number == 20 else 1))
    assert pace.price(picture(50)) == pytest.approx(150, rel=0.2)
