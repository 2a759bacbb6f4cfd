"""Who may import whom: read from the source, and seen in a fresh interpreter per module."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("server", "runtime", "kernels", "graphs", "clients", "bench")

# What a module may import from headrace: prefixes, without "headrace.". The most specific row counts.
ALLOWED: dict[str, tuple[str, ...]] = {
    "server": ("server", "runtime.interface", "runtime.config", "runtime.refusal"),
    "server.app": ("server", "runtime"),  # builds the parts
    "server.__main__": ("server.app",),  # importing it runs it, so it is only read here
    "server.protocol": ("server.protocol", "runtime.refusal"),  # clients share these types: keep them light
    "runtime": ("runtime", "graphs", "kernels"),
    "graphs": ("graphs",),
    "kernels": ("kernels",),
    "kernels.reference": (),
    "clients": ("clients", "server.protocol"),
    "clients.cli": ("clients", "server.protocol", "server.app", "bench"),
    "bench": ("",),
}
# The core of headrace: no tensor, no event loop.
CORE = tuple(
    f"runtime.{name}"
    for name in (
        "scheduler",
        "admission",
        "line",
        "shares",
        "claim",
        "foresight",
        "pace",
        "pins",
        "drafts",
        "request",
        "logprobs",
        "plan",
        "pages",
        "prefix",
        "stream",
        "text",
        "parsers",
        "refusal",
        "config",
    )
)
# Outside packages that belong to some layers only.
CONFINED: dict[str, tuple[str, ...]] = {
    "torch": ("runtime", "graphs", "kernels", "bench"),
    "triton": ("kernels",),
    # The loop meets the device in one file; the interface hands prompt work to an executor and back, and waits for
    # pictures that are named by address.
    "asyncio": ("server", "clients", "bench", "runtime.loop", "runtime.interface", "runtime.fetching"),
    "uvloop": ("server", "bench"),
    "transformers": ("bench",),
    "websockets": ("server", "clients", "bench"),
    "h11": ("server",),
}
TORCH_FAMILY = ("torch", "triton", "transformers")


def modules() -> dict[str, Path]:
    found = {}
    for layer in LAYERS:
        for path in sorted((ROOT / layer).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
IMPORTABLE = [module for module in MODULES if not module.endswith(".__main__")]


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(not prefix or name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def rule_for(module: str) -> tuple[str, ...]:
    while module not in ALLOWED:
        module = module.rpartition(".")[0]
    return ALLOWED[module]


def imports_of(source: str) -> Iterator[tuple[str, int]]:
    """(absolute dotted name, line) of every import that runs; those under `if TYPE_CHECKING:` do not run."""
    tree = ast.parse(source)
    unseen: list[ast.AST] = [tree]
    while unseen:
        node = unseen.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            unseen.extend(node.orelse)
            continue
        unseen.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute in headrace"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def offences(module: str, source: str) -> list[str]:
    found = []
    for name, line in imports_of(source):
        top = name.partition(".")[0]
        if top == "headrace":
            inside = name.removeprefix("headrace.")
            if not within(inside, rule_for(module)) and not within(
                inside.rpartition(".")[0], rule_for(module)
            ):
                found.append(f"{module}:{line} must not import {name}")
        elif top in (*LAYERS, "tests"):
            found.append(f"{module}:{line} imports {name} past the headrace namespace")
        elif top in CONFINED and not within(module, CONFINED[top]):
            found.append(f"{module}:{line} must not import {name}")
        elif top in ("torch", "asyncio") and within(module, CORE):
            found.append(f"{module}:{line} belongs to the core, which imports no {top}")
    return found


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_follow_the_layers(module: str) -> None:
    assert offences(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("server.faces.responses", "from headrace.runtime.scheduler import Scheduler"),
        ("server.faces.responses", "from headrace.runtime import scheduler"),
        ("server.front", "def f():\n    import headrace.runtime.engine"),
        ("server.protocol.responses", "from headrace.runtime.interface import Ask"),
        ("server.session", "import torch"),
        ("runtime.scheduler", "import torch"),
        ("runtime.scheduler", "import asyncio"),
        ("runtime.engine", "import asyncio"),
        ("runtime.engine", "from headrace.server.app import main"),
        ("runtime.engine", "import triton"),
        ("graphs.decode", "from headrace.runtime.plan import StepPlan"),
        ("kernels.reference", "from headrace.kernels import norm"),
        ("clients.client", "from headrace.runtime.interface import Ask"),
        ("clients.client", "from headrace.server.front import Front"),
        ("clients.chat", "from headrace.bench.step import main"),
        ("clients.chat", "import kernels.norm"),
        ("bench.step", "from tests.fake_engine import FakeEngine"),
    ],
)
def test_a_planted_import_is_caught(module: str, source: str) -> None:
    assert offences(module, source) != []


def test_type_checking_imports_do_not_count() -> None:
    source = "if TYPE_CHECKING:\n    from headrace.runtime.loop import StepLoop"
    assert offences("server.session", source) == []
    assert offences("server.session", source + "\nelse:\n    import headrace.runtime.loop") != []


# Imports each named module alone: the parent stays bare and every module gets its own fork, so one module's
# imports cannot hide what another lacks, and a circular import shows from every end of the circle.
PROBE = """
import json, os, sys
ask = json.load(sys.stdin)
for name in ask["first"]:
    __import__(name)
told = {}
for module in ask["modules"]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            __import__("headrace." + module)
            said = [name for name in ask["watch"] if name in sys.modules]
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, json.dumps(said).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as reader:
        told[module] = json.loads(reader.read())
    os.waitpid(child, 0)
print(json.dumps(told))
"""


def probe(names: list[str], first: list[str]) -> dict[str, list[str] | str]:
    ask = {"modules": names, "first": first, "watch": [*TORCH_FAMILY, "asyncio"]}
    ran = subprocess.run(
        [sys.executable, "-P", "-c", PROBE],
        input=json.dumps(ask),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return json.loads(ran.stdout)


def heavy(module: str) -> bool:
    """May have torch behind it: then it is imported in a fork of an interpreter that has torch already."""
    return within(
        module, ("runtime", "graphs", "kernels", "bench", "server.app", "server.__main__")
    ) and not (within(module, (*CORE, "runtime.interface")))


def test_light_modules_have_no_torch_behind_them() -> None:
    light = [module for module in IMPORTABLE if not heavy(module)]
    assert {"clients.cli", "runtime.interface", "server.exchange", "runtime.request"} <= set(light)
    told = probe(light, first=[])
    for module, seen in told.items():
        assert isinstance(seen, list), f"{module}: {seen}"
        assert not set(seen) & set(TORCH_FAMILY), f"importing {module} drags in {seen}"
        if within(module, CORE):
            assert seen == [], f"importing {module} drags in {seen}"


def test_heavy_modules_import_alone() -> None:
    told = probe([module for module in IMPORTABLE if heavy(module)], first=["torch"])
    broken = {module: seen for module, seen in told.items() if isinstance(seen, str)}
    # Kernels written in triton exist for machines that have it; everything else imports everywhere.
    assert {m: s for m, s in broken.items() if not (m.startswith("kernels.") and "triton" in s)} == {}


def test_the_probe_sees_what_it_looks_for() -> None:
    told = probe(["runtime.request", "runtime.no_such_module"], first=["asyncio"])
    assert told["runtime.request"] == ["asyncio"]
    assert str(told["runtime.no_such_module"]).startswith("ModuleNotFoundError")
