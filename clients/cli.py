"""The `headrace` command. Imports what a subcommand needs only when it runs: `--help` answers at once."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

USAGE = """\
headrace serves language models to people who watch the tokens arrive.

usage: headrace COMMAND [options]

commands:
  serve   start the server: websocket, HTTP and a chat page on one port
  chat    talk to a running server in this terminal
  bench   measure; without a name, list what can be measured
  replay  compute an answer again from its receipt, and say whether it is the same

  headrace COMMAND --help   says what a command takes
  headrace --version        prints the version

examples:
  headrace serve                              the model inside the package, at http://127.0.0.1:8000
  headrace serve ./Qwen3-0.6B --port 8123     a model folder in Hugging Face layout
  headrace serve Qwen/Qwen3-0.6B              a hub id; downloaded once
  headrace chat                               a chat in this terminal
  echo "Why is the sky blue?" | headrace chat > answer.txt
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status of the process. `argv` has no program name in it."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        print(USAGE, end="", file=sys.stderr)
        return 2
    command, rest = arguments[0], arguments[1:]
    match command:
        case "-h" | "--help" | "help":
            print(USAGE, end="")
            return 0
        case "-V" | "--version":
            print(f"headrace {version('headrace')}")
            return 0
        case "serve":
            from headrace.server.app import main as serve

            return _status(serve, rest)
        case "chat":
            from headrace.clients.chat import main as chat

            return _status(chat, rest)
        case "bench":
            return _bench(rest)
        case "replay":
            from headrace.clients.replay import main as replay

            return _status(replay, rest)
        case _:
            print(f"headrace: there is no command {command!r}\n\n{USAGE}", end="", file=sys.stderr)
            return 2


def _status(run: Callable[[list[str]], int | None], rest: list[str]) -> int:
    try:
        return run(rest) or 0
    except KeyboardInterrupt:
        # Each command handles Ctrl-C while it works; this one came between, while it was starting or ending.
        return 130


def _benches() -> dict[str, str]:
    """Name of every measurement with the first line of its module's docstring."""
    import headrace.bench

    found = {}
    for module in pkgutil.iter_modules(headrace.bench.__path__, "headrace.bench."):
        spec = importlib.util.find_spec(module.name)
        assert spec is not None and spec.origin is not None, module.name
        with open(spec.origin, encoding="utf-8") as source:
            tree = ast.parse(source.read())
        # A file without main() serves the others; it measures nothing by itself.
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[module.name.rpartition(".")[2]] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def _bench(rest: list[str]) -> int:
    benches = _benches()
    if not rest or rest[0] in ("-h", "--help"):
        print(
            "usage: headrace bench NAME [options]\n\nThe last line that a bench prints is its result as JSON.\n"
        )
        width = max(map(len, benches), default=0) + 2
        for name, line in benches.items():
            print(f"  {name:<{width}}{line}")
        return 0
    if rest[0] not in benches:
        known = ", ".join(benches) or "none yet"
        print(f"headrace bench: there is no measurement {rest[0]!r} (known: {known})", file=sys.stderr)
        return 2
    return _status(importlib.import_module(f"headrace.bench.{rest[0]}").main, rest[1:])


if __name__ == "__main__":
    sys.exit(main())
