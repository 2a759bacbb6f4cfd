"""POST /v1/responses/compact: the model sums a conversation up. Knows the reply; knows no store.

The reply's items are the next request's input: what was said by others than the model, then one compaction item.
"""

from __future__ import annotations

from collections.abc import Mapping

from headrace.runtime.interface import Ask, Message, Runtime, Tenant, TextPiece, TokenStream, ToolCall, joined
from headrace.server.exchange import HttpReply, Part, Wire
from headrace.server.faces import compaction
from headrace.server.faces.answers import StreamAnswer, error_reply
from headrace.server.faces.asks import check_outputs, join_leading_system, response_messages
from headrace.server.faces.item_ids import input_id, output_id
from headrace.server.faces.pictures import picture_url
from headrace.server.faces.responses import usage_of
from headrace.server.faces.settings import FaceSettings
from headrace.server.ids import new_id
from headrace.server.protocol import fields as f
from headrace.server.protocol import response_events as ev
from headrace.server.protocol.codec import encode
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.responses import CompactRequest


class CompactAnswer(StreamAnswer):
    """One summary under way; it ends with its connection."""

    def __init__(
        self,
        runtime: Runtime,
        settings: FaceSettings,
        wire: Wire,
        headers: Mapping[str, str],
        tenant: Tenant,
    ) -> None:
        super().__init__(runtime, wire, headers, streamed=False)
        self._settings = settings
        self._tenant = tenant
        self._kept: list[Message] = []
        self._waiting: tuple[ToolCall, ...] = ()
        self._texts: list[str] = []

    def begin(self, request: CompactRequest, history: tuple[Message, ...]) -> None:
        """Ask for the summary of `history` and the request's input. Raises WireError or Refusal."""
        f.check_supported(request)
        added = response_messages(request.input, self._tenant)
        messages = history + added
        if not messages:
            raise WireError("missing_required_parameter", "input must not be empty", "input")
        check_outputs(request.input, messages)
        self._kept = compaction.kept(messages)
        self._waiting = compaction.waiting_calls(messages)
        leading = (Message("system", request.instructions),) if request.instructions else ()
        self.open(
            Ask(
                tenant=self._tenant,
                messages=join_leading_system(leading + compaction.asked_for_summary(messages)),
                max_tokens=compaction.SUMMARY_TOKENS,
                fit=True,
                template_options={"enable_thinking": False},
                param_names={"messages": "input", "max_tokens": "input"},
            )
        )

    def parts(self, stream: TokenStream) -> list[bytes]:
        """What the model thinks on the way is no part of the summary."""
        pieces = stream.take_pieces()
        if stream.ended:
            pieces = joined([*pieces, *stream.tail_pieces])
        self._texts += [piece.text for piece in pieces if isinstance(piece, TextPiece)]
        return []

    def render(self) -> list[Part]:
        """See StreamAnswer. An empty summary is a failure of the model's."""
        told = super().render()
        if told and isinstance(told[0], HttpReply) and told[0].status == 200 and not self._summary:
            return [error_reply(compaction.empty_summary(), self._headers)]
        return told

    def whole(self, stream: TokenStream) -> bytes:
        """The compacted conversation."""
        response_id = new_id("resp")
        sealed = compaction.seal(compaction.Summary(self._summary, self._waiting), self._tenant)
        output: list[ev.InputMessageItem | ev.CompactionItem] = [
            ev.InputMessageItem(
                input_id("message", response_id, index), message.role, "completed", _content(message)
            )
            for index, message in enumerate(self._kept)
        ]
        output.append(ev.CompactionItem(output_id("cmp", response_id, len(output)), sealed))
        return encode(ev.CompactedResponse(response_id, int(self._settings.now()), output, usage_of(stream)))

    def failure(self, error: WireError) -> list[bytes]:
        """Never asked for: the reply is whole."""
        raise AssertionError("a compaction is not streamed")

    @property
    def _summary(self) -> str:
        return "".join(self._texts).strip()


def _content(message: Message) -> list[ev.InputText | ev.InputImage]:
    """A message as content parts, its pictures at their places."""
    parts: list[ev.InputText | ev.InputImage] = []
    done = 0
    for picture in message.pictures:
        if picture.at > done:
            parts.append(ev.InputText(message.content[done : picture.at]))
        parts.append(ev.InputImage(picture_url(picture), "low" if picture.small else "auto"))
        done = picture.at
    if done < len(message.content) or not parts:
        parts.append(ev.InputText(message.content[done:]))
    return parts
