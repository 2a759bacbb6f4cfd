"""Short turns: asked for without privilege, taken where the kernel knows them, harmless elsewhere."""

from __future__ import annotations

import ctypes
import platform
import struct
import sys
import threading

import pytest

from headrace.server import slices
from headrace.server.slices import SHORT, take_short_turns

GET = {"x86_64": 315, "aarch64": 275, "riscv64": 275}


def in_thread(work):
    """What `work` gives in a thread of its own, whose turns nobody else has."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def turn_of_this_thread() -> int:
    held = ctypes.create_string_buffer(48)
    assert ctypes.CDLL(None).syscall(GET[platform.machine()], 0, held, 48, 0) == 0
    return struct.unpack("=IIQiIQQQ", held)[5]


def test_the_kernel_holds_what_was_asked_for() -> None:
    taken, turn = in_thread(
        lambda: (take_short_turns(), turn_of_this_thread() if platform.machine() in GET else 0)
    )
    assert taken is (sys.platform == "linux" and platform.machine() in GET)
    # Kernels before 6.12 take the call and know no turns of a thread's own: they say 0.
    assert turn in (0, SHORT)


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices.platform, "machine", lambda: "vax")
    assert take_short_turns() is False
