"""What the server package must never contain (reliability.md 8): read from the syntax tree, not from the text.

Each rule has planted violations, so that a rule which stopped seeing fails here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

Finding = tuple[int, str]
Rule = Callable[[str, ast.AST], Iterator[Finding]]

FORBIDDEN_MODULES = (
    "pickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "multiprocessing",
    "concurrent.futures.process",
    "yaml",
    "zmq",
    "requests",
    "urllib.request",
    "subprocess",  # allowed in a grammar child alone, which does not exist yet
)
CODEC = "server/protocol/codec.py"  # the one place where client bytes become objects
FLAGS = "server/flags.py"  # converts what the operator wrote on the command line, which is not a client
# The one place that names the wall clock: `created_at` of objects is Unix seconds. Nothing measured may use it.
WALL_CLOCKS = {"server/faces/settings.py"}
FORBIDDEN_BUILTINS = {"eval", "exec", "compile", "__import__"}
SECRET_NAME = re.compile(r"(\A|_)(api_?key|secret|password|digest|bearer|presented)\Z", re.IGNORECASE)


def dotted(node: ast.AST) -> str:
    """`a.b.c` for a chain of names, else ""."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        front = dotted(node.value)
        return f"{front}.{node.attr}" if front else ""
    return ""


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            yield f"{node.module}.{alias.name}"


def is_under(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def no_dangerous_module(path: str, node: ast.AST) -> Iterator[Finding]:
    for name in imported(node):
        for module in FORBIDDEN_MODULES:
            if is_under(name, module):
                yield node.lineno, f"imports {module}"  # type: ignore[attr-defined]
        if name.endswith(".ProcessPoolExecutor"):
            yield node.lineno, "a process pool pickles"  # type: ignore[attr-defined]


def no_code_from_data(path: str, node: ast.AST) -> Iterator[Finding]:
    if isinstance(node, ast.Call):
        name = dotted(node.func)
        if name in FORBIDDEN_BUILTINS or name.removeprefix("builtins.") in FORBIDDEN_BUILTINS:
            yield node.lineno, f"calls {name}"
        if name == "torch.load" or name.endswith(".torch.load"):
            yield node.lineno, "torch.load unpickles"
        if any(keyword.arg == "allow_pickle" for keyword in node.keywords):
            yield node.lineno, "allow_pickle"


def one_decoder(path: str, node: ast.AST) -> Iterator[Finding]:
    """json.loads, msgspec.*.decode and decoder objects are made in the codec module alone."""
    if path == CODEC:
        return
    for name in imported(node):
        if re.fullmatch(r"json(\.(load|loads|JSONDecoder))|msgspec\.(json|msgpack|yaml|toml)\.\w+", name) or (
            is_under(name, "orjson")
        ):
            yield node.lineno, f"imports {name}: decode in the codec"  # type: ignore[attr-defined]
    if isinstance(node, ast.Attribute):
        name = dotted(node)
        if path == FLAGS and name == "msgspec.convert":
            return
        if re.fullmatch(r"(.*\.)?(json|msgpack|yaml|toml)\.(decode|Decoder)", name) or (
            name in ("json.loads", "json.load", "json.JSONDecoder", "msgspec.convert")
        ):
            yield node.lineno, f"{name}: decode in the codec"


def monotonic_time_only(path: str, node: ast.AST) -> Iterator[Finding]:
    if path in WALL_CLOCKS:
        return
    for name in imported(node):
        if name in ("time.time", "time.time_ns"):
            yield node.lineno, f"imports {name}"  # type: ignore[attr-defined]
    if isinstance(node, ast.Attribute):
        name = dotted(node)
        if name in ("time.time", "time.time_ns") or re.fullmatch(
            r"(datetime\.)?(datetime|date)\.(now|utcnow|today)", name
        ):
            yield node.lineno, f"{name} jumps when the clock is set"


def no_ambient_randomness(path: str, node: ast.AST) -> Iterator[Finding]:
    """`random.Random(seed)` and `secrets` are fine; the shared generator of `random` is not."""
    for name in imported(node):
        if is_under(name, "random") and name not in ("random", "random.Random"):
            yield node.lineno, f"imports {name}"  # type: ignore[attr-defined]
    if isinstance(node, ast.Attribute) and dotted(node.value) == "random" and node.attr != "Random":
        yield node.lineno, f"random.{node.attr} draws from the shared generator"


def no_broadcast(path: str, node: ast.AST) -> Iterator[Finding]:
    """websockets.broadcast piles up memory behind a stalled reader."""
    if isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] == "broadcast":
        yield node.lineno, "broadcast() has no brake"
    for name in imported(node):
        if name.endswith(".broadcast"):
            yield node.lineno, "broadcast() has no brake"  # type: ignore[attr-defined]


def sandboxed_templates_only(path: str, node: ast.AST) -> Iterator[Finding]:
    names = list(imported(node))
    if isinstance(node, ast.Attribute):
        names.append(dotted(node))
    for name in names:
        if is_under(name, "jinja2") and name.rpartition(".")[2] in (
            "Environment",
            "NativeEnvironment",
            "SandboxedEnvironment",
            "Template",
        ):
            yield node.lineno, f"{name}: ImmutableSandboxedEnvironment only"  # type: ignore[attr-defined]


def anchored_patterns(path: str, node: ast.AST) -> Iterator[Finding]:
    r"""`^...$` lets "ab\n" pass: Meta(pattern=) is written \A...\Z, and re.match is re.fullmatch."""
    if isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] == "Meta":
        for keyword in node.keywords:
            if keyword.arg == "pattern":
                text = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if not (isinstance(text, str) and text.startswith(r"\A") and text.endswith(r"\Z")):
                    yield node.lineno, r"a pattern is a literal between \A and \Z"


def secrets_in_constant_time(path: str, node: ast.AST) -> Iterator[Finding]:
    if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
        for side in (node.left, *node.comparators):
            if SECRET_NAME.search(dotted(side).rpartition(".")[2]):
                yield node.lineno, f"{dotted(side)} is compared with ==: use hmac.compare_digest"


def images_with_formats_only(path: str, node: ast.AST) -> Iterator[Finding]:
    if isinstance(node, ast.Call) and dotted(node.func).endswith("Image.open"):
        yield node.lineno, "images are opened in the image module, with formats="


RULES: tuple[Rule, ...] = (
    no_dangerous_module,
    no_code_from_data,
    one_decoder,
    monotonic_time_only,
    no_ambient_randomness,
    no_broadcast,
    sandboxed_templates_only,
    anchored_patterns,
    secrets_in_constant_time,
    images_with_formats_only,
)
# The rest of what runs while clients are served: these rules hold there too.
RUNTIME_RULES: tuple[Rule, ...] = (
    no_dangerous_module,
    no_code_from_data,
    no_ambient_randomness,
    sandboxed_templates_only,
    images_with_formats_only,
)


def findings(rules: tuple[Rule, ...], path: str, source: str) -> list[str]:
    return [
        f"{path}:{line} {what}"
        for node in ast.walk(ast.parse(source))
        for rule in rules
        for line, what in rule(path, node)
    ]


def sources(folder: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", sources("server"))
def test_server_follows_the_rules(path: str) -> None:
    assert findings(RULES, path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize("path", sources("runtime") + sources("kernels") + sources("graphs"))
def test_runtime_follows_its_share_of_the_rules(path: str) -> None:
    assert findings(RUNTIME_RULES, path, (ROOT / path).read_text()) == []


PLANTED: list[tuple[Rule, str]] = [
    *((no_dangerous_module, f"import {module}") for module in FORBIDDEN_MODULES),
    (no_dangerous_module, "def f():\n    from subprocess import run"),
    (no_dangerous_module, "from urllib.request import urlopen"),
    (no_dangerous_module, "from concurrent.futures import ProcessPoolExecutor"),
    (no_code_from_data, "eval(text)"),
    (no_code_from_data, "exec(text)"),
    (no_code_from_data, "builtins.eval(text)"),
    (no_code_from_data, "__import__(name)"),
    (no_code_from_data, "torch.load(path)"),
    (no_code_from_data, "numpy.load(path, allow_pickle=flag)"),
    (one_decoder, "json.loads(body)"),
    (one_decoder, "from json import loads"),
    (one_decoder, "msgspec.json.decode(body)"),
    (one_decoder, "decoder = msgspec.json.Decoder(Event)"),
    (one_decoder, "from msgspec.json import decode"),
    (one_decoder, "msgspec.convert(value, Event)"),
    (monotonic_time_only, "now = time.time()"),
    (monotonic_time_only, "clock = time.time"),
    (monotonic_time_only, "from time import time"),
    (monotonic_time_only, "datetime.datetime.now()"),
    (monotonic_time_only, "datetime.now()"),
    (no_ambient_randomness, "random.random()"),
    (no_ambient_randomness, "from random import choice"),
    (no_broadcast, "websockets.broadcast(sockets, text)"),
    (no_broadcast, "from websockets.asyncio.server import broadcast"),
    (sandboxed_templates_only, "from jinja2 import Environment"),
    (sandboxed_templates_only, "jinja2.Template(text)"),
    (sandboxed_templates_only, "from jinja2.sandbox import SandboxedEnvironment"),
    (anchored_patterns, "Meta(pattern='^[a-z]+$')"),
    (anchored_patterns, "msgspec.Meta(pattern='[a-z]+')"),
    (anchored_patterns, "Meta(pattern=PATTERN)"),
    (secrets_in_constant_time, "ok = self.api_key == presented"),
    (secrets_in_constant_time, "if secret != other: pass"),
    (images_with_formats_only, "Image.open(data)"),
]


@pytest.mark.parametrize(("rule", "source"), PLANTED)
def test_a_planted_violation_is_caught(rule: Rule, source: str) -> None:
    assert findings((rule,), "server/faces/planted.py", source) != []


@pytest.mark.parametrize(
    "source",
    [
        "import time\nnow = time.monotonic()",
        "from jinja2.sandbox import ImmutableSandboxedEnvironment",
        r"Meta(pattern=r'\A[a-z]+\Z')",
        "rng = random.Random(seed)",
        "text = body.decode('utf-8')",
        "encoder = msgspec.json.Encoder()",
        "json.dumps(value)",
        "if kind == key: pass",
        "hmac.compare_digest(api_key, presented)",
    ],
)
def test_what_is_allowed_stays_allowed(source: str) -> None:
    assert findings(RULES, "server/faces/allowed.py", source) == []


def test_every_rule_has_a_planted_violation() -> None:
    assert {rule for rule, _ in PLANTED} == set(RULES)
