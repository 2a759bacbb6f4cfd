"""What an error looks like on the wire. Knows statuses, codes and shapes; knows no request and no socket."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from headrace.runtime.refusal import Refusal, shorten

STATUS = {
    "invalid_json": 400,
    "invalid_value": 400,
    "missing_required_parameter": 400,
    "unsupported_parameter": 400,
    "unsupported_endpoint": 400,
    "unknown_parameter": 400,
    "unknown_event": 400,
    "invalid_stream_id": 400,
    "websocket_stream_limit_reached": 400,
    "websocket_connection_limit_reached": 400,
    "context_length_exceeded": 400,
    "previous_response_not_found": 400,
    "not_supported": 400,
    "conversation_already_has_active_response": 400,
    "conversation_full": 400,
    "response_cancel_not_active": 400,
    "item_retrieve_invalid_item_id": 400,
    "input_audio_buffer_commit_empty": 400,
    "session_expired": 400,
    "model_not_found": 404,
    "response_not_found": 404,
    "item_not_found": 404,
    "invalid_encrypted_content": 400,
    "credit_not_enabled": 400,
    "fork_point_invalid": 400,
    "fork_not_supported": 400,
    "lane_busy": 400,
    "pin_quota_exceeded": 429,
    "draft_not_found": 404,
    "draft_limit_reached": 400,
    "draft_too_long": 400,
    "draft_changed": 409,
    "rate_limit_exceeded": 429,
    "server_error": 500,
    "server_is_overloaded": 503,
    "timeout": 504,
}


class WireError(Exception):
    """One request is answered with this error. `code` is a key of STATUS; `retry_after` is in seconds."""

    def __init__(
        self, code: str, message: str, param: str | None = None, retry_after: float | None = None
    ) -> None:
        assert code in STATUS, code
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after

    @classmethod
    def of(cls, error: Refusal | WireError) -> WireError:
        """The wire form of a Refusal; a WireError is returned as it is."""
        if isinstance(error, WireError):
            return error
        return cls(error.code, error.message, error.param, error.retry_after)

    @property
    def status(self) -> int:
        return STATUS[self.code]

    @property
    def type(self) -> str:
        """The coarse class that SDKs read beside the code."""
        if self.status >= 500:
            return "server_error"
        return "rate_limit_error" if self.status == 429 else "invalid_request_error"

    def fields(self) -> ErrorFields:
        """The inner object of every nested error body."""
        return ErrorFields(shorten(self.message, 600), self.type, self.param, self.code)

    def headers(self) -> dict[str, str]:
        """Retry advice as HTTP headers: only where trying again can help, and "no" where it cannot."""
        after = self.retry_after
        if after is None and self.status in (429, 503):
            after = 1.0  # both say that later is better, and clients that hear no number guess
        if after is not None:
            return {
                "retry-after-ms": str(math.ceil(after * 1000)),
                "retry-after": str(math.ceil(after)),
            }
        # The wall clock of a request ended it: a client that repeats it by itself doubles the damage.
        return {"x-should-retry": "false"} if self.code == "timeout" else {}


@dataclass(frozen=True, slots=True)
class ErrorFields:
    """`{"message","type","param","code"}`: what sits under "error" on HTTP, in SSE data and in error frames."""

    message: str
    type: str
    param: str | None
    code: str

    def nested(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}
