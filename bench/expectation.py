"""What a load run should have shown: the floor and the model's outlook, written into results of `bench serve`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from headrace.bench.machine import brief
from headrace.bench.prediction import Scenario, outlook
from headrace.bench.step_model import Machine, Precision, Shape, Work, percent_of_floor, work_floor_ms


def decode_work(result: Mapping[str, Any]) -> Work:
    """The mean decode step of a load run.

    Rows: the streams of a closed loop. An open loop has as many as its rate and its time per token make (Little's
    law), one at least. Context: the mean prompt and half the mean answer.
    """
    settings, requests = result["settings"], result["completed"]
    prompt = result["total_input_tokens"] / requests
    answer = result["total_output_tokens"] / requests
    rows = result["output_throughput"] * result["mean_tpot_ms"] / 1e3
    if closed(result):
        rows = settings["concurrency"]
    return Work(max(1, round(rows)), prompt + answer / 2)


def closed(result: Mapping[str, Any]) -> bool:
    """Whether every stream sent its next request after the last answer: only then are the streams a setting."""
    return re.match(r"single_|c\d+_|closed|prefix_|offline", result["workload"]) is not None


def expectation(
    result: Mapping[str, Any], shape: Shape, machine: Machine, precision: Precision
) -> dict[str, Any]:
    """floor_ms of the mean decode step, pct_of_floor of the measured time per token, and for a closed loop of equal
    requests what the step model predicts. Nothing for a run without answers."""
    if not result.get("completed") or not result.get("median_tpot_ms"):
        return {}
    work = decode_work(result)
    floor = work_floor_ms(shape, work, machine, precision)
    found: dict[str, Any] = {
        "floor_ms": brief(floor),
        "pct_of_floor": brief(percent_of_floor(floor, result["median_tpot_ms"])),
        "floor_of": {
            "machine": machine.name,
            "model": shape.name,
            "rows": work.rows,
            "context": brief(work.context),
            "read_gb_s": brief(machine.read_bytes / 1e9),
        },
    }
    settings = result["settings"]
    if closed(result) and settings["lengths"] == "exact" and settings["turns"] == 1:
        requests = settings["requests"] or 3 * settings["concurrency"]
        scenario = Scenario(
            result["workload"],
            streams=settings["concurrency"],
            prompt=round(result["total_input_tokens"] / result["completed"]),
            output=round(result["total_output_tokens"] / result["completed"]),
            waves=max(1, -(-requests // settings["concurrency"])),
            cached=settings["shared_prefix_tokens"],
        )
        seen = outlook(scenario, shape, machine, precision)
        found["predicted"] = {name: brief(value) for name, value in dataclasses.asdict(seen).items()}
    return found
