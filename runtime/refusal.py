"""The one error a client's request can cause. Knows codes and fields, knows no wire protocol."""

from __future__ import annotations

CLIENT_TEXT_LIMIT = 200


def shorten(text: str, limit: int = CLIENT_TEXT_LIMIT) -> str:
    """Client-derived text, cut to `limit` characters so that an error never repeats a whole request."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


class Refusal(Exception):
    """A request is answered with an error; nobody else is affected.

    `code` is one of `CODES` (the same word on every wire), `param` names the offending request field or is
    None, `message` is a sentence for a person. `retry_after` is in seconds, only where trying again helps.
    """

    CODES = frozenset(
        {
            "invalid_value",
            "missing_required_parameter",
            "unsupported_parameter",
            "unknown_parameter",
            "context_length_exceeded",
            "fork_not_supported",
            "fork_point_invalid",
            "model_not_found",
            "previous_response_not_found",
            "rate_limit_exceeded",
            "server_is_overloaded",
            "server_error",
            "timeout",
        }
    )

    def __init__(
        self, code: str, message: str, param: str | None = None, retry_after: float | None = None
    ) -> None:
        assert code in self.CODES, code
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after
