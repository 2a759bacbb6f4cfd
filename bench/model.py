"""Floors, expected step times and targets of load runs, computed; and how far measured steps are from them.

headrace bench model --shape llama-3.1-8b --stage 2
headrace bench model --model ./Qwen3-0.6B --refit bench/results/step-*.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headrace.bench.expectation import expectation
from headrace.bench.machine import brief
from headrace.bench.prediction import SCENARIOS, outlook
from headrace.bench.step_model import (
    BF16,
    FITTED,
    FP8_WEIGHTS,
    FP8_WEIGHTS_AND_KV,
    FP32,
    SHAPES,
    STAGES,
    Machine,
    Precision,
    Shape,
    floor_ms,
    percent_of_floor,
    predicted_ms,
    refit,
    residuals,
    shape_of,
)
from headrace.runtime.models.registry import read_model_config

PRECISIONS = {
    "bfloat16": BF16,
    "float32": FP32,
    "fp8-weights": FP8_WEIGHTS,
    "fp8-weights-and-kv": FP8_WEIGHTS_AND_KV,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print tables, then one line of JSON."""
    parser = argparse.ArgumentParser(
        prog="headrace bench model",
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen3-0.6b", help="shape of the model")
    parser.add_argument("--model", type=Path, help="a model folder instead; only its config.json is read")
    parser.add_argument(
        "--precision", choices=sorted(PRECISIONS), default="bfloat16", help="of weights and KV"
    )
    parser.add_argument(
        "--stage", type=int, choices=sorted(STAGES), default=1, help="0 unfused to 3 persistent, on an H200"
    )
    parser.add_argument("--rows", default="1,8,64,256", help="streams of a step, comma separated")
    parser.add_argument("--contexts", default="128,1024,8192", help="tokens each row holds, comma separated")
    parser.add_argument(
        "--refit", nargs="+", type=Path, default=[], help="results of bench step and bench kernels"
    )
    parser.add_argument("--into", nargs="+", type=Path, default=[], help="results of bench serve to complete")
    parser.add_argument("--label", default="", help="--into: only runs of the server with this label")
    parser.add_argument("--server-flags", default="", help="--into: how that server was started")
    given = parser.parse_args(argv)
    shape = (
        SHAPES[given.shape]
        if given.model is None
        else shape_of(read_model_config(given.model), given.model.name)
    )
    precision = PRECISIONS[given.precision]
    machine = STAGES[given.stage]
    fit: dict[str, Any] = {}
    if given.refit:
        results = [json.loads(path.read_text()) for path in given.refit]
        machine, fit = refitted(results, machine)
    print(f"{shape.name}, {given.precision}, {machine.name}")
    print(f"{'rows':>6}{'context':>9}{'floor ms':>10}{'model ms':>10}{'% floor':>9}{'tok/s':>10}")
    steps = []
    for rows in map(int, given.rows.split(",")):
        for context in map(int, given.contexts.split(",")):
            floor = floor_ms(shape, rows, context, machine, precision)
            step = predicted_ms(shape, rows, context, machine, precision)
            share = percent_of_floor(floor, step)
            steps.append(
                {"rows": rows, "context": context, "floor_ms": brief(floor), "predicted_ms": brief(step)}
            )
            print(f"{rows:>6}{context:>9}{floor:>10.3f}{step:>10.3f}{share:>9.1f}{rows / step * 1e3:>10.0f}")
    print(
        f"\n{'scenario':<22}{'tok/s':>9}{'TTFT p50':>10}{'p99':>8}{'TPOT':>8}"
        f"{'ITL p50':>9}{'p99':>7}{'max':>7}{'% floor':>9}"
    )
    targets = {}
    for scenario in SCENARIOS.values():
        seen = outlook(scenario, shape, machine, precision)
        targets[scenario.name] = {name: brief(value) for name, value in dataclasses.asdict(seen).items()}
        print(
            f"{scenario.name:<22}{seen.tokens_per_s:>9.0f}{seen.ttft_p50:>10.1f}{seen.ttft_p99:>8.1f}{seen.tpot_p50:>8.3f}"
            f"{seen.itl_p50:>9.2f}{seen.itl_p99:>7.2f}{seen.itl_max:>7.1f}{seen.pct_of_floor:>9.1f}"
        )
    for path in given.into:
        document = json.loads(path.read_text())
        complete(document, given.label, given.server_flags, (shape, machine, precision))
        path.write_text(json.dumps(document, indent=1) + "\n")
    print(
        json.dumps(
            {
                "bench": "model",
                "model": shape.name,
                "precision": given.precision,
                "machine_model": dataclasses.asdict(machine),
                "steps": steps,
                "targets": targets,
                **fit,
            }
        )
    )
    return 0


def complete(
    document: dict[str, Any], label: str, flags: str, rates: tuple[Shape, Machine, Precision]
) -> None:
    """Every run of `document` (those of the server `label`, where one is named) gets its floor and expectation."""
    for run in document["results"]:
        if label and run["label"] != label:
            continue
        run |= expectation(run, *rates)
        if flags:
            run["server_flags"] = flags
        if "floor_ms" in run:
            print(
                f"{run['label']}, {run['workload']}, {run['transport']}: floor {run['floor_ms']:.3f} ms, "
                f"{run['pct_of_floor']:.1f} % of the time per token"
            )


def refitted(results: Sequence[dict[str, Any]], start: Machine) -> tuple[Machine, dict[str, Any]]:
    """The machine that these results speak of, with the rates that they were measured at, and a printed account of
    what moved and how well it fits."""
    rates = results[0]["rates"]
    if any(result["rates"] != rates for result in results):
        print("note: the results were measured at different rates; those of the first one count")
    item = 4 if results[0]["dtype"] == "float32" else 2
    rate = rates["tflops"] * 1e12
    start = dataclasses.replace(
        start, read_bytes=rates["read_gb_s"] * 1e9, flops={**start.flops, item: rate}, name="as measured"
    )
    found = refit(results, start)
    print(f"{'constant':<20}{'before':>12}{'after':>12}")
    for name in FITTED:
        print(f"{name:<20}{getattr(start, name):>12.4g}{getattr(found, name):>12.4g}")
    ratios = residuals(results, found)
    for name, ratio in ratios:
        print(f"  {ratio:>6.3f}  {name}")
    off = statistics.median(abs(ratio - 1) for _, ratio in ratios)
    print(f"predicted over measured time above; median error {100 * off:.1f} %\n")
    return found, {"fit": {name: brief(ratio) for name, ratio in ratios}, "median_error": brief(off)}


if __name__ == "__main__":
    sys.exit(main())
