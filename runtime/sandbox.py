"""A Jinja environment whose templates end: every step counts against a budget and no value outgrows its cap.

Knows Jinja; must not know models, tokens or messages. Jinja's own sandbox keeps a template away from Python's
insides but lets it loop, multiply and nest as long as it likes. Python cannot interrupt one long operation,
so each operation that can make something large from something small is measured before it runs, and every
block of statements, call, filter and test looks at the clock.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn, cast

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from headrace.runtime.caps import (
    RenderLimit,
    bounded,
    check_filter,
    check_format,
    check_method,
    check_operator,
    checked,
    weigh,
)
from headrace.runtime.woven import Woven, weave

TIME_LIMIT = 0.5  # seconds of the rendering thread's CPU time: about 1 s on a clock beside other work
_TICKS_PER_LOOK = 16


class _Render(threading.local):
    """What the render on this thread may still use. Compiling has the same caps but no clock."""

    deadline: float | None = None
    ticks: int = 0
    weaving: bool = False


_render = _Render()


class Rendering:
    """`with Rendering(weaving):` one render runs on this thread, against a fresh budget.

    weaving: strings that the template itself writes become Woven, so that the result knows its origins.
    """

    def __init__(self, weaving: bool) -> None:
        self._weaving = weaving

    def __enter__(self) -> None:
        _render.deadline = time.thread_time() + TIME_LIMIT
        _render.ticks = 0
        _render.weaving = self._weaving

    def __exit__(self, *_: object) -> None:
        _render.deadline = None
        _render.weaving = False


# fmt: off
_FILTERS = (
    "abs", "attr", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
    "format", "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min",
    "reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string",
    "title", "trim", "unique", "upper", "wordcount",
)
# fmt: on


def _guarded_filter(name: str, function: Callable[..., Any], skip: int) -> Callable[..., Any]:
    """`function` with measured arguments; `skip` counts what Jinja passes before the value."""

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        tick()
        measured = check_filter(name, args[skip:], kwargs)
        return checked(function(*args[:skip], *measured, **kwargs))

    return guarded


def _guarded_test(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        tick()
        return function(*args, **kwargs)

    return guarded


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON with transformers' defaults: no HTML escapes, no ASCII escapes."""
    weigh(value)
    if indent is not None:
        bounded(len(indent) if isinstance(indent, str) else int(indent), 64)
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


# -- globals
# ---------------------------------------------------------------------------------------------------


def raise_exception(message: str) -> NoReturn:
    """The template refuses its input."""
    raise TemplateError(str(message))


def strftime_now(form: str) -> str:
    """The server's local time, in a strftime form without field widths."""
    if len(form) > 200 or re.search(r"%[^A-Za-z%]", form):
        raise RenderLimit("strftime_now takes a short form without widths")
    return datetime.now().strftime(form)


def make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """`dict` for templates, without the attributes of the type."""
    return dict(*args, **kwargs)


def tick() -> bool:
    """One step of the running template; RenderLimit when time is up. True, so that it fits in a test."""
    if _render.deadline is not None:
        _render.ticks += 1
        if _render.ticks % _TICKS_PER_LOOK == 0 and time.thread_time() > _render.deadline:
            raise RenderLimit(f"the chat template ran for more than {TIME_LIMIT:g} s of computing")
    return True


class GenerationTag(Extension):
    """`{% generation %}` marks what an assistant wrote, for training. Here it renders its body alone."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # Jinja only looks names up in it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Generator(CodeGenerator):
    """Compiled templates tick, weigh what they build, and say which strings are their own."""

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        self.writeline("environment.tick()")
        super().blockvisit(nodes, frame)

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        if node.test is not None:  # a filtered loop looks for its next item without entering its block
            look = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
            node.test = nodes.And(look, node.test)
        super().visit_For(node, frame)

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        self.write(_source(node.as_const(frame.eval_ctx)))

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:
        self.write(_source(node.data))

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return _source("".join(str(each) for each in group))

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat(map(environment.text, (")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write(")))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self.write("environment.made(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self.write("environment.made(")
        super().visit_Dict(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx != "load":
            return super().visit_Tuple(node, frame)
        self.write("environment.made(")
        super().visit_Tuple(node, frame)
        self.write(")")


def _source(value: Any) -> str:
    """Python source for a constant of the template; its strings are marked as the template's own."""
    if isinstance(value, str):
        return f"environment.own({str(value)!r})"
    if isinstance(value, list):
        return "[" + ", ".join(_source(each) for each in value) + "]"
    if isinstance(value, tuple):
        return "(" + "".join(_source(each) + ", " for each in value) + ")"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_source(key)}: {_source(each)}" for key, each in value.items()) + "}"
    return str(value) if isinstance(value, float) else repr(value)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """The environment of all chat templates: what transformers offers, within the caps of this file."""

    code_generator_class = _Generator
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, loopcontrols],
            finalize=self.printable,
        )
        filters = {"tojson": tojson, **{name: self.filters[name] for name in _FILTERS}}
        self.filters = {
            name: _guarded_filter(name, each, int(hasattr(each, "jinja_pass_arg")))
            for name, each in filters.items()
        }
        self.tests = {
            name: _guarded_test(cast(Callable[..., Any], each)) for name, each in self.tests.items()
        }
        self.globals = {
            "range": self.globals["range"],  # at most 100,000 numbers, says the sandbox
            "namespace": self.globals["namespace"],
            "cycler": self.globals["cycler"],
            "joiner": self.globals["joiner"],
            "dict": make_dict,
            "raise_exception": raise_exception,
            "strftime_now": strftime_now,
        }

    tick = staticmethod(tick)

    @staticmethod
    def own(text: str) -> str:
        """A string that the template itself wrote."""
        return Woven(text, ((0, len(text)),)) if _render.weaving and text else text

    @staticmethod
    def made(value: Any) -> Any:
        """A list, tuple or dict that the template wrote down."""
        weigh(value)
        return value

    @staticmethod
    def printable(value: Any) -> Any:
        """A value on its way into text."""
        if not isinstance(value, str | int | float | Undefined):
            weigh(value)
        return value

    @classmethod
    def text(cls, value: Any) -> str:
        return str(cls.printable(value))

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """The parts joined, within the cap, origins kept."""
        laid = []
        size = 0
        for part in parts:
            size += len(part)
            bounded(size)
            laid.append(part)
        return weave(laid) if _render.weaving else "".join(laid)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        tick()
        check_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` as the sandbox runs it, measured first."""
        inner = super().wrap_str_format(value)
        if inner is None:
            return None
        text, name = value.__self__, value.__name__

        @wraps(inner)
        def measured(*args: Any, **kwargs: Any) -> str:
            values = [*args, *kwargs.values()]
            if name == "format_map" and args and isinstance(args[0], Mapping):
                values = list(args[0].values())
            check_format(text, values, "{")
            return inner(*args, **kwargs)

        return measured

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        tick()
        target = getattr(__obj, "__self__", None)
        if isinstance(target, str):
            args = check_method(target, __obj.__name__, args, kwargs)
        return checked(super().call(__context, __obj, *args, **kwargs))
