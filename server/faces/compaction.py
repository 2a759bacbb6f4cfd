"""A conversation made shorter: the model's own summary of it, sealed so that a client can keep it and send it back.

Knows what is kept and how it is read again; opens no stream. What users and the operator said stays as it is, in
messages of its own; the rest becomes a summary. Calls that wait for their output are kept in the seal, word by
word, or nobody could answer them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from dataclasses import replace

import msgspec

from headrace.runtime.interface import Message, Refusal, Tenant, ToolCall
from headrace.server.protocol.codec import decode, encode
from headrace.server.protocol.errors import WireError

SUMMARY_TOKENS = 2048  # of one summary, at most
_BLOB = "hrc1."
_TAG = 32  # bytes in front of what was sealed
_KEPT = frozenset({"user", "system"})
_ASKED = (
    "Summarize this conversation. The summary will stand in the place of everything that was not said by the user, "
    "so keep what the rest of the conversation may need: facts, names, numbers, decisions, results of tools, what "
    "was promised and what is still open. Write the summary and nothing else."
)
_HEAD = "Summary of the conversation so far:\n\n"


class Summary(msgspec.Struct, frozen=True):
    """What a compaction item holds."""

    text: str
    calls: tuple[ToolCall, ...] = ()

    @property
    def turn(self) -> Message:
        """What the model reads in the place of what was compacted."""
        return Message("assistant", _HEAD + self.text, self.calls)


def seal(summary: Summary, tenant: Tenant) -> str:
    """The summary as opaque text that only this tenant can send back."""
    data = encode(summary)
    return _BLOB + base64.urlsafe_b64encode(_tag(data, tenant) + data).decode()


def unseal(blob: str, item_id: str | None, path: str, tenant: Tenant) -> Summary:
    """What `seal` made for this tenant. Raises WireError for anything else; clients know its sentence."""
    try:
        if not blob.startswith(_BLOB):
            raise ValueError(blob)
        sealed = base64.urlsafe_b64decode(blob.removeprefix(_BLOB).encode())
        tag, data = sealed[:_TAG], sealed[_TAG:]
        if not hmac.compare_digest(tag, _tag(data, tenant)):
            raise ValueError(tag)
        return decode(data, Summary).value
    except (binascii.Error, ValueError, WireError):
        what = f" for item {item_id[:64]}" if item_id else f" {blob[:4]}...{blob[-4:]}"
        raise WireError(
            "invalid_encrypted_content",
            f"The encrypted content{what} could not be verified. Reason: Encrypted content could not be "
            "decrypted or parsed.",
            path,
        ) from None


def _tag(data: bytes, tenant: Tenant) -> bytes:
    return hmac.digest(tenant.secret, _BLOB.encode() + data, hashlib.sha256)


def kept(messages: tuple[Message, ...]) -> list[Message]:
    """What stays as it was said."""
    return [message for message in messages if message.role in _KEPT]


def waiting_calls(messages: tuple[Message, ...]) -> tuple[ToolCall, ...]:
    """The calls that have no output yet."""
    answered = {message.call_id for message in messages if message.call_id is not None}
    return tuple(call for message in messages for call in message.calls if call.id not in answered)


def asked_for_summary(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The conversation with the request for its summary at the end, as templates take it: no call without its
    output, no two turns of a user in a row."""
    waiting = {call.id for call in waiting_calls(messages)}
    turns = []
    for message in messages:
        if any(call.id in waiting for call in message.calls):
            message = replace(message, calls=tuple(call for call in message.calls if call.id not in waiting))
            if not (message.calls or message.content):
                continue
        turns.append(message)
    return tuple(joined_users([*turns, Message("user", _ASKED)], 2))


def joined_users(turns: list[Message], most: int | None = None) -> list[Message]:
    """`turns` with the user's turns at their end (at most so many) as one: many templates let the roles change with
    every turn."""
    first = len(turns)
    while first and turns[first - 1].role == "user" and (most is None or len(turns) - first < most):
        first -= 1
    if len(turns) - first < 2:
        return turns
    text = ""
    pictures = []
    for turn in turns[first:]:
        text += "\n\n" if text else ""
        pictures += [replace(picture, at=picture.at + len(text)) for picture in turn.pictures]
        text += turn.content
    return [*turns[:first], Message("user", text, pictures=tuple(pictures))]


def empty_summary() -> Refusal:
    """The model was asked for a summary and said nothing: what it should have kept would be lost."""
    return Refusal("server_error", "the model gave no summary of this conversation")
