"""The command line of `headrace bench serve`."""

from __future__ import annotations

import argparse
import os
import typing
from collections.abc import Sequence
from typing import Any

import msgspec

from headrace.bench.metrics import Bounds
from headrace.bench.transports import DIALECTS
from headrace.bench.workloads import CELLS, PRESETS, SHAPES, WorkloadSettings

ABOUT = """\
Measure the token streams of a running server, over websocket and SSE, with one client for all servers.

examples:
  headrace bench serve http://127.0.0.1:8000
  headrace bench serve http://127.0.0.1:8000 --transport ws-responses --transport sse-chat --workload c64_512_256
  headrace bench serve http://gpu:8000 --workload c8_512_256 --workload c64_512_256 --html report.html
  headrace bench serve http://gpu:8000 --workload poisson --rate 20 --duration 60 --html report.html
  headrace bench serve http://127.0.0.1:8000 --against http://127.0.0.1:9000 --transport sse-chat --repeats 5
"""
SETTINGS_HELP = {
    "input_tokens": "tokens of a prompt, shared prefix included",
    "output_tokens": "tokens of an answer",
    "lengths": "exact, or drawn: uniform from --least-tokens, lognormal around the median",
    "sigma": "spread of lognormal lengths",
    "least_tokens": "shortest drawn length",
    "most_tokens": "longest drawn length",
    "shared_prefix_tokens": "tokens at the beginning that all prompts share",
    "turns": "turns of a conversation",
    "prompt": "token ids, exact bytes, or words; without: ids where the transport carries them, else words",
    "first_id": "token ids are drawn from here",
    "end_id": "to below here",
    "tokens_per_word": "without: asked of the server",
    "template_tokens": "what a chat template adds to a turn; without: asked of the server",
    "file": "JSON lines of {prompt, output_tokens}",
    "concurrency": "streams at once",
    "requests": "how many; 0: the workload's own number",
    "duration": "seconds, for workloads that last a time",
    "rate": "arrivals per second",
    "final_rate": "arrivals per second at the end of a ramp",
    "burst": "requests at one instant",
    "every": "seconds between bursts or long prompts",
    "long_tokens": "tokens of a prompt that interferes",
    "long_output_tokens": "tokens of its answer",
    "slow": "streams that read slowly; 0: half",
    "read_pause": "seconds without reading after each token",
    "cut_after": "tokens after which a client leaves",
    "typing_rate": "tokens that a person types per second",
}
BOUND_NAMES = {"ttft": "ttft_ms", "tpot": "tpot_ms", "e2el": "e2el_ms", "gap": "max_gap_ms"}


def parser() -> argparse.ArgumentParser:
    """Everything that the command takes."""
    made = argparse.ArgumentParser(
        prog="headrace bench serve", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("url", help="the server; a path up to /v1 may be part of it")
    made.add_argument(
        "--transport",
        action="append",
        choices=list(DIALECTS),
        help="how to ask; may be repeated [ws-responses and sse-chat; with --against sse-chat]",
    )
    made.add_argument(
        "--workload",
        action="append",
        help="may be repeated, for a curve over load: "
        f"cells {', '.join(CELLS)} (other numbers make others); {', '.join(PRESETS)}; "
        f"shapes {', '.join(SHAPES)} [c8_512_256]",
    )
    made.add_argument("--model", help="what requests ask for [the first of /v1/models]")
    made.add_argument("--api-key", default=os.environ.get("HEADRACE_API_KEY", ""), help="[HEADRACE_API_KEY]")
    made.add_argument(
        "--label", help="the server's name in tables and plots [owner of the model and address]"
    )
    made.add_argument("--repeats", type=int, default=3, help="measured runs; one more goes before them [3]")
    made.add_argument("--no-warmup", action="store_true", help="leave that one out")
    made.add_argument("--seed", type=int, default=1, help="of the workload; each repeat takes another [1]")
    made.add_argument(
        "--goodput",
        type=read_bounds,
        default=Bounds(),
        metavar="ttft=MS,tpot=MS,e2el=MS,gap=MS",
        help="count requests per second that keep to these",
    )
    made.add_argument("--out", help="write the JSON there too")
    made.add_argument("--html", help="write a report with plots there")

    beside = made.add_argument_group("a second server, measured in turns with the first")
    beside.add_argument("--against", metavar="URL", help="the other server; ratios are paired by repeat")
    beside.add_argument("--against-model", help="[the first of its /v1/models]")
    beside.add_argument("--against-key", default="", help="its API key")
    beside.add_argument("--against-label", help="its name in tables and plots")

    asking = made.add_argument_group("requests")
    asking.add_argument("--temperature", type=float, default=0.0, help="[0]; below 0: leave it to the server")
    asking.add_argument(
        "--totals", action="store_true", help="ask for token totals on every chunk of chat answers"
    )
    asking.add_argument(
        "--fields", type=read_fields, default={}, metavar="JSON", help="an object to add to every request"
    )

    client = made.add_argument_group("client")
    cores = len(os.sched_getaffinity(0))
    own = max(1, min(8, cores // 2))
    client.add_argument("--workers", type=int, default=own, help=f"client processes [{own}]")
    client.add_argument(
        "--cores", type=read_cores, default=(), metavar="0,1,4-7", help="pin them to these cores"
    )
    client.add_argument("--lanes", type=int, default=16, help="answers at once on a shared socket [16]")
    client.add_argument(
        "--patience", type=float, default=120.0, help="seconds of silence that fail an answer [120]"
    )
    client.add_argument(
        "--no-calibration",
        action="store_true",
        help="do not measure what the client could take; CPU is still judged",
    )

    group = made.add_argument_group("settings of the workload (defaults are its own)")
    for field in msgspec.structs.fields(WorkloadSettings):
        group.add_argument(f"--{field.name.replace('_', '-')}", **flag_of(field.name, field.type))
    return made


def flag_of(name: str, kind: Any) -> dict[str, Any]:
    """How argparse takes one setting; unset means the workload's own value."""
    flag: dict[str, Any] = {"default": None, "help": SETTINGS_HELP[name]}
    if typing.get_origin(kind) is typing.Literal:
        return flag | {"choices": typing.get_args(kind)}
    return flag | {"type": kind, "metavar": {"int": "N", "float": "X"}.get(kind.__name__, "FILE")}


def given_settings(given: argparse.Namespace) -> dict[str, Any]:
    """The workload settings that the command line names."""
    values = {name: getattr(given, name) for name in WorkloadSettings.__struct_fields__}
    return {name: value for name, value in values.items() if value is not None}


def read_bounds(text: str) -> Bounds:
    """`ttft=500,tpot=30` as bounds."""
    found = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in BOUND_NAMES:
            raise argparse.ArgumentTypeError(f"a bound is one of {', '.join(BOUND_NAMES)}, not {name!r}")
        try:
            found[BOUND_NAMES[name]] = float(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r} has no milliseconds") from None
    return Bounds(**found)


def read_fields(text: str) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not isinstance(fields, dict):
        raise argparse.ArgumentTypeError("request fields are a JSON object")
    return fields


def read_cores(text: str) -> tuple[int, ...]:
    """`0,2,4-7` as core numbers."""
    cores: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        try:
            cores += range(int(first), int(last or first) + 1)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r} names no cores") from None
    missing: Sequence[int] = sorted(set(cores) - os.sched_getaffinity(0))
    if missing:
        raise argparse.ArgumentTypeError(f"this process may not use the cores {missing}")
    return tuple(cores)
