"""Ids that nobody can guess. Knows nothing of what they name."""

from __future__ import annotations

import os

_POOL = 4096  # random bytes asked of the system at once
_ID = 16

_bytes = b""
_at = 0


def new_id(prefix: str) -> str:
    """128 random bits, each used once, behind `prefix`. For one thread, the event loop's.

    The system is asked for many at a time: on machines that run in a sandbox such a call takes longer than all else
    that an id needs, and a response has four of them."""
    global _bytes, _at
    if _at == len(_bytes):
        _bytes, _at = os.urandom(_POOL), 0
    taken = _bytes[_at : _at + _ID]
    _at += _ID
    return f"{prefix}_{taken.hex()}"
