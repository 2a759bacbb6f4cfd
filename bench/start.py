"""How long a server takes from exec to healthy to its first token, and what memory it holds then.

    headrace bench start                                  the model inside the package
    headrace bench start ./Qwen3-0.6B --repeats 5 -- --threads 2      what follows -- goes to `headrace serve`
    headrace bench start Qwen/Qwen3-0.6B --command "vllm serve {model} --port {port}" --healthy /health

Each repeat starts a real process on a free port, asks it every few milliseconds whether it is ready, has it say a
few tokens twice, and ends it with SIGTERM. The first repeat is told apart: it may have found cold files.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import re
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from headrace.bench.machine import facts_of_machine

OWN = [sys.executable, "-P", "-m", "headrace.clients.cli", "serve"]
POLL_S = 0.005
# A line of headrace's own log of its start: seconds since the first import, peak MiB, stage.
STAGE = re.compile(r"^\s*(\d+\.\d+) s\s+(\d+) MiB  ([^:\n]+)", re.MULTILINE)


class NotStarted(RuntimeError):
    """The server ended, or did not become healthy or answer in time. The message holds the end of what it said."""


@dataclass(frozen=True, slots=True)
class Server:
    """How to start the server under test and where to ask it. `command` has the port filled in."""

    command: list[str]
    port: int
    healthy: str
    model: str
    patience: float


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    """A port of this machine that nobody listens on, kept from others where the system can keep it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port = int(holder.getsockname()[1])
        if sys.platform != "linux":
            holder.close()  # elsewhere it would keep the server out too, not only those that ask for any port
        yield port


def family(pid: int) -> list[int]:
    """`pid` and all that it started, by the system's process table; `pid` alone where there is none."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found


def resident_mib(pid: int) -> dict[str, float] | None:
    """Resident memory of the process and its children, now and at most (the sum of their peaks); None where the
    system does not tell."""
    held = peak = 0
    for member in family(pid):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{member}/status").read_text()
            for name, kibibytes in re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", status, re.MULTILINE):
                if name == "VmRSS":
                    held += int(kibibytes)
                else:
                    peak += int(kibibytes)
    return {"rss_mib": round(held / 1024, 1), "peak_mib": round(peak / 1024, 1)} if held else None


def graphics_mib() -> float | None:
    """Memory in use on the first GPU, by whomever; None without one."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return None
    asked = [tool, "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)
    return float(done.stdout) if done.returncode == 0 else None


def healthy(port: int, path: str) -> bool:
    """Whether `path` is answered with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def first_token(server: Server, deadline: float) -> float:
    """Seconds from sending a streamed chat completion to its first text; the stream is read to its end."""
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": "Hello!"}],
        "max_tokens": 4,
        "temperature": 0,
        "stream": True,
    }
    connection = http.client.HTTPConnection(
        "127.0.0.1", server.port, timeout=max(1.0, deadline - time.monotonic())
    )
    try:
        begin = time.perf_counter()
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        reply = connection.getresponse()
        if reply.status != 200:
            raise NotStarted(
                f"/v1/chat/completions: {reply.status} {reply.read(500).decode(errors='replace')}"
            )
        seen = None
        for line in reply:
            if seen is None and carries_text(line):
                seen = time.perf_counter() - begin
        if seen is None:
            raise NotStarted("the completion ended without a token")
        return seen
    except OSError as error:
        raise NotStarted(f"/v1/chat/completions: {error}") from None
    finally:
        connection.close()


def carries_text(line: bytes) -> bool:
    """Whether a line of a completion's event stream brings text, in either dialect; empty deltas do not."""
    if not line.startswith(b"data:") or line.strip() == b"data: [DONE]":
        return False
    for choice in json.loads(line[5:]).get("choices", ()):
        delta = choice.get("delta") or {}
        if choice.get("text") or delta.get("content") or delta.get("reasoning_content"):
            return True
    return False


def one_start(server: Server, said: IO[str]) -> dict[str, Any]:
    """Start it, wait for it, let it speak, end it. Seconds since exec; `said` takes what it writes."""
    before = graphics_mib()
    deadline = time.monotonic() + server.patience
    begin = time.perf_counter()
    process = subprocess.Popen(server.command, stdout=said, stderr=subprocess.STDOUT, text=True)
    try:
        while not healthy(server.port, server.healthy):
            if process.poll() is not None:
                raise NotStarted(f"it ended with status {process.returncode}:\n{tail(said)}")
            if time.monotonic() > deadline:
                raise NotStarted(f"not healthy after {server.patience:g} s:\n{tail(said)}")
            time.sleep(POLL_S)
        ready = time.perf_counter() - begin
        ttft = first_token(server, deadline)
        memory = resident_mib(process.pid) or {}
        after = graphics_mib()
        again = first_token(server, deadline)
    finally:
        stopping = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        stopped = time.perf_counter() - stopping
    return {
        "healthy_s": round(ready, 3),
        "first_token_s": round(ready + ttft, 3),
        "first_ttft_ms": round(1e3 * ttft, 2),
        "second_ttft_ms": round(1e3 * again, 2),
        "stop_s": round(stopped, 3),
        **memory,
        "gpu_mib": None if before is None or after is None else after - before,
        "stages": {name.strip(): float(at) for at, _, name in STAGE.findall(tail(said, 1 << 20))},
    }


def tail(said: IO[str], most: int = 2000) -> str:
    """The end of what a server wrote."""
    said.flush()
    return Path(said.name).read_text(errors="replace")[-most:]


def middle(runs: Sequence[dict[str, Any]], name: str) -> float | None:
    found = [run[name] for run in runs if run.get(name) is not None]
    return round(statistics.median(found), 3) if found else None


MEASURED = (
    "healthy_s", "first_token_s", "first_ttft_ms", "second_ttft_ms", "stop_s", "rss_mib", "peak_mib", "gpu_mib",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench; 0 if every repeat started and spoke, else 1. Prints a table, then one line of JSON."""
    given = list(sys.argv[1:] if argv is None else argv)
    own, extra = (
        (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    )
    parser = argparse.ArgumentParser(
        prog="headrace bench start",
        description=(__doc__ or "").partition("\n")[0],
        usage="%(prog)s [MODEL] [options] [-- flags of the server]",
    )
    parser.add_argument(
        "model",
        nargs="?",
        default="",
        metavar="MODEL",
        help="folder or hub id [the model inside the package]",
    )
    parser.add_argument("--repeats", type=int, default=3, help="starts [3]")
    parser.add_argument(
        "--command", default="", help="another server's command line, with {model} and {port} in it"
    )
    parser.add_argument("--healthy", default="/ready", help="path that answers 200 once it is ready [/ready]")
    parser.add_argument("--name", default="", help="model name to ask for [MODEL, or headrace's default]")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds that one start may take [600]")
    parser.add_argument("--out", type=Path, help="write the JSON to this file as well")
    args = parser.parse_args(own)
    if args.repeats < 1:
        parser.error("--repeats from 1 on")

    def command(port: int) -> list[str]:
        if args.command:
            filled = (part.format(model=args.model, port=port) for part in shlex.split(args.command))
            return [*filled, *extra]
        return [*OWN, *([args.model] if args.model else []), "--port", str(port), *extra]

    name = args.name or (args.model if args.command else "default")
    try:
        runs = repeats(args, command, name)
    except NotStarted as error:
        print(f"headrace bench start: {error}", file=sys.stderr)
        return 1
    later = runs[1:] or runs
    result = {
        "bench": "start",
        "model": args.model or "inside the package",
        "server_flags": [*command(0)],
        "flags": {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()},
        "machine": facts_of_machine(0),
        "first": runs[0],
        "median_of_later": {measured: middle(later, measured) for measured in MEASURED},
        "runs": runs,
    }
    line = json.dumps(result)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(line)
    return 0


def repeats(args: argparse.Namespace, command: Callable[[int], list[str]], name: str) -> list[dict[str, Any]]:
    """Every start with its line of the table."""
    print("".join(f"{measured:>16}" for measured in ("start", *MEASURED)), flush=True)
    runs = []
    for number in range(args.repeats):
        with free_port() as port, tempfile.NamedTemporaryFile("w+", prefix="headrace-start-") as said:
            runs.append(one_start(Server(command(port), port, args.healthy, name, args.patience), said))
        cells = (runs[-1].get(measured) for measured in MEASURED)
        print(
            f"{number + 1:>16}" + "".join(f"{'-' if cell is None else cell:>16}" for cell in cells),
            flush=True,
        )
    for stage, seconds in runs[-1]["stages"].items():
        print(f"{seconds:>9.2f} s  {stage}")
    return runs


if __name__ == "__main__":
    sys.exit(main())
