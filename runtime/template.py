"""A model's chat template: compiled once at start, rendered per request. Knows Jinja, not tokens.

Templates come from the model folder alone, never from a client (reliability.md, D10).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import meta, nodes
from jinja2.exceptions import TemplateError, TemplateSyntaxError

from headrace.runtime.caps import RenderLimit
from headrace.runtime.checkpoint import CheckpointError
from headrace.runtime.refusal import shorten
from headrace.runtime.sandbox import Rendering, TemplateSandbox
from headrace.runtime.woven import Woven

SOURCE_LIMIT = 1 << 20


class TemplateRefused(Exception):
    """The template did not take these messages; the text says why, in a sentence for the client."""


class ChatTemplate:
    """Messages to prompt text. `specials`: special tokens by the names templates use (`bos_token`, ...).

    source: the template's own text. takes_tools: it has a place for tools. takes_parts: it reads contents that are
    lists of parts, and only those.
    """

    def __init__(self, source: str, specials: Mapping[str, Any]) -> None:
        """Raises CheckpointError for a template that does not compile or does not end."""
        if len(source) > SOURCE_LIMIT:
            raise CheckpointError(
                f"the chat template has {len(source)} characters; at most {SOURCE_LIMIT} are read"
            )
        self.source = source
        self._sandbox = TemplateSandbox()
        self._specials = dict(specials)
        try:
            tree = self._sandbox.parse(source)
            for kind in (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends):
                if tree.find(kind) is not None:
                    raise CheckpointError("the chat template wants another file, and there is only one")
            self.takes_tools = "tools" in meta.find_undeclared_variables(tree)
            self._template = self._sandbox.from_string(source)
        except TemplateSyntaxError as error:
            raise CheckpointError(
                f"the chat template is wrong in line {error.lineno}: {shorten(str(error))}"
            ) from error
        except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError) as error:
            raise CheckpointError(f"the chat template cannot be compiled: {shorten(str(error))}") from error
        self._try_out()

    def _try_out(self) -> None:
        # A template that never ends is told at start; one that merely wants other messages is not.
        said = "Hello"
        try:
            self.takes_parts = said not in self.render([{"role": "user", "content": said}], {}, weaving=False)
        except TemplateRefused as refused:
            if isinstance(refused.__cause__, RenderLimit | RecursionError):
                raise CheckpointError(f"{refused}") from refused
            self.takes_parts = True
        if self.takes_parts:  # a plain text is lost or refused: is it told as a part?
            parts = [{"role": "user", "content": [{"type": "text", "text": said}]}]
            try:
                self.takes_parts = said in self.render(parts, {}, weaving=False)
            except TemplateRefused:
                self.takes_parts = False

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        options: Mapping[str, bool | str],
        *,
        weaving: bool,
        tools: Sequence[Mapping[str, Any]] = (),
        answering: bool = True,
    ) -> str:
        """The prompt text, ready for an answer (or not, without `answering`). weaving: a Woven, which knows what
        the template wrote.

        Raises TemplateRefused: the template said no, failed on these messages, or wanted too much.
        """
        values: dict[str, Any] = {
            name: _own(value) if weaving else value for name, value in self._specials.items()
        }
        values.update(options)
        values.update(
            messages=[dict(message) for message in messages],
            tools=list(tools) or None,
            documents=None,
            add_generation_prompt=answering,
        )
        try:
            with Rendering(weaving):
                context = self._template.new_context(values)
                return self._sandbox.concat(self._template.root_render_func(context))
        except RenderLimit as error:
            raise TemplateRefused(str(error)) from error
        except TemplateError as error:
            raise TemplateRefused(
                f"the chat template refuses these messages: {shorten(str(error))}"
            ) from error
        except Exception as error:
            # Whatever else a template does to itself with some input (a wrong type, a missing key, endless
            # recursion) belongs to this request alone.
            raise TemplateRefused(
                f"the chat template fails on these messages: {type(error).__name__}: {shorten(str(error))}"
            ) from error


def _own(value: Any) -> Any:
    if isinstance(value, str):
        return Woven(value, ((0, len(value)),))
    return [_own(each) for each in value] if isinstance(value, list) else value
