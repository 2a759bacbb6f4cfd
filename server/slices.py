"""How long the kernel lets a thread run before others get their turn. Knows Linux; knows nothing of what runs."""

from __future__ import annotations

import ctypes
import platform
import struct
import sys

SHORT = 100_000  # nanoseconds; the shortest that Linux takes
# sched_setattr, for which neither Python nor most C libraries have a name.
_CALLS = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
# struct sched_attr: size, policy, flags, nice value, priority, runtime, deadline, period
_ATTRIBUTES = "=IIQiIQQQ"


def take_short_turns(nanoseconds: int = SHORT) -> bool:
    """This thread asks for turns of `nanoseconds`, and in return gets one at once when it wakes, though others are
    at work on every core (Linux 6.12 and newer; sched_setattr(2)). True if the kernel took it.

    A thread that serves sockets wakes often and works briefly. With turns like those of the threads that compute,
    it would wait until one of them has had its own: milliseconds, each time. Nobody is starved: turns are shorter,
    not more. No privilege is needed, and older kernels ignore it."""
    call = _CALLS.get(platform.machine())
    if sys.platform != "linux" or call is None:
        return False
    size = struct.calcsize(_ATTRIBUTES)
    wanted = struct.pack(_ATTRIBUTES, size, 0, 0, 0, 0, nanoseconds, 0, 0)
    return bool(ctypes.CDLL(None).syscall(call, 0, ctypes.create_string_buffer(wanted, size), 0) == 0)
