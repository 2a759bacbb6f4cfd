"""What can go wrong for a program that talks to a headrace server. Knows no socket."""

from __future__ import annotations


class ClientError(Exception):
    """Base of every error that `headrace.clients` raises on purpose."""


class ServerRefused(ClientError):
    """The server answered this request, or this connection, with an error; no response exists.

    `code` is the machine-readable word (`model_not_found`, `context_length_exceeded`, ...), `param` the offending
    field or None, `status` the HTTP-like number, `retry_after` seconds or None where trying again cannot help.
    """

    def __init__(
        self,
        code: str | None,
        message: str,
        param: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{message} ({code})" if code else message)
        self.code = code
        self.message = message
        self.param = param
        self.status = status
        self.retry_after = retry_after


class ServerUnreachable(ClientError):
    """No connection came about: nothing listens there, or it did not answer in time."""


class ConnectionLost(ClientError):
    """The connection ended before this answer did. What had arrived was handed out before this error.

    `close_code` is the WebSocket close code; 1006 if the connection broke without one.
    """

    def __init__(self, message: str, close_code: int = 1006) -> None:
        super().__init__(message)
        self.close_code = close_code


class ResponseFailed(ClientError):
    """The answer began and then failed on the server."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.message = message


class SlowReader(ClientError):
    """Nobody read this stream for so long that it was cancelled; see `ResponseStream` for the rule."""
