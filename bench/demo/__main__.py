"""Trains the demo model in minutes on one GPU, scores it, and writes its folder.

    python -P -m headrace.bench.demo --seconds 420 --seed 0 --out DIR

DIR becomes a model folder: weights, tokenizer, configuration, README.md (the model card) and scores.json.
Needs torch, tokenizers, numpy and Pillow, and no network.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> None:
    """Read the command line, train, and say how it goes."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -P -m headrace.bench.demo", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--seconds", type=float, default=420.0, help="wall clock of the training itself [420]"
    )
    parser.add_argument("--steps", type=int, help="in place of --seconds: exactly so many steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="the model folder to write")
    parser.add_argument(
        "--workers", type=int, help="processes that make batches, for each form of batch [cores - 2]"
    )
    parser.add_argument(
        "--count", type=int, default=200, help="questions of each kind in the evaluation [200]"
    )
    parser.add_argument("--eager", action="store_true", help="do not compile")
    given = parser.parse_args(arguments)
    # Torch comes in only here: the processes that make batches start from this file, and do without it.
    import torch

    from headrace.bench.demo.train import Plan, run

    workers = given.workers if given.workers is not None else max(1, len(os.sched_getaffinity(0)) - 2)
    plan = Plan(
        given.seconds,
        given.seed,
        given.steps,
        workers,
        compiled=torch.cuda.is_available() and not given.eager,
        count=given.count,
    )
    sys.setswitchinterval(0.001)  # the threads that read batches want a short turn, often
    command = "python -P -m headrace.bench.demo " + " ".join(arguments)
    run(plan, given.out, command, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main(sys.argv[1:])
